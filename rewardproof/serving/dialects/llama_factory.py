"""LLaMA-Factory: `reward_model_type: api` posts here, and its own reward server answers at this address."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from rewardproof.serving.answering import Desk, desk_of, one_each
from rewardproof.serving.bodies import MOST, FirstFault
from rewardproof.serving.dialects.written import rewards_of_texts

router = APIRouter()


class EvaluationBody(BaseModel):
    """Texts of the policy."""

    model: str = ""
    """Which of the server's models; where it has one, it answers to every name."""
    messages: Annotated[list[str], Field(max_length=MOST), FirstFault()]
    """Prompts and answers with their special tokens."""
    max_length: int | None = None
    """Not used: a text that is longer than the server takes is refused, none is cut."""


class EvaluationReply(BaseModel):
    """What LLaMA-Factory expects."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


@router.post("/v1/score/evaluation")
async def evaluation(body: EvaluationBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> EvaluationReply:
    """Rewards of a policy's texts, each with as much of the template's end as it lacks."""
    served = desk.model(request, body.model, any_name=True)
    found = await rewards_of_texts(desk, request, served, body.messages)
    return EvaluationReply(id=f"scoreval-{uuid.uuid4().hex}", model=served.name, scores=one_each(found))
