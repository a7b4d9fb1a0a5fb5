"""OpenRLHF: `--reward.remote_url http://HOST:8000/get_reward`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from rewardproof.serving.answering import Desk, desk_of, one_each
from rewardproof.serving.bodies import MOST, FirstFault
from rewardproof.serving.dialects.written import rewards_of_texts

router = APIRouter()


class QueryBody(BaseModel):
    """Texts of the policy."""

    query: str | Annotated[list[str], Field(max_length=MOST), FirstFault()]
    """Prompts and responses with their special tokens; may be empty."""
    prompts: Annotated[list[str], Field(max_length=MOST), FirstFault()] | None = None
    """The prompts alone, by which responses to one prompt are found."""
    labels: Any = None
    """Not used."""
    model: str = ""
    """Which of the server's models; empty for its first."""


class QueryReply(BaseModel):
    """What OpenRLHF expects."""

    rewards: list[float]
    """One a query."""
    scores: list[float]
    """The same between 0 and 1, for its dynamic filtering: the logistic function of the standardised reward."""
    extra_logs: dict[str, list[float]]
    """`disagreement` of an ensemble's members, one a query."""


@router.post("/get_reward")
async def get_reward(body: QueryBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> QueryReply:
    """Rewards of a policy's texts, each with as much of the template's end as it lacks."""
    served = desk.model(request, body.model, any_name=True)
    texts = [body.query] if isinstance(body.query, str) else body.query
    prompts = body.prompts if body.prompts is not None and len(body.prompts) == len(texts) else None
    found = await rewards_of_texts(desk, request, served, texts, prompts=prompts)
    rewards = one_each(found)
    logs = {"disagreement": [one.apart[0] for one in found]} if any(one.apart for one in found) else {}
    return QueryReply(rewards=rewards, scores=[served.between_0_and_1(reward) for reward in rewards], extra_logs=logs)
