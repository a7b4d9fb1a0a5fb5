"""slime: `--rm-type remote_rm --rm-url http://HOST:8000/reward`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request

from rewardproof.data.group import Group, Message
from rewardproof.serving.answering import Desk, desk_of, one_each
from rewardproof.serving.dialects.groups import Said, messages
from rewardproof.serving.dialects.written import rewards_of_texts

router = APIRouter()


class SampleBody(BaseModel):
    """One sample."""

    prompt: Said
    """A text that the chat template has written, or messages."""
    response: str
    """What the policy wrote after it."""
    label: Any = None
    """Not used."""


@router.post("/reward")
async def reward(body: SampleBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> float:
    """The reward alone."""
    served = desk.model(request)
    if isinstance(body.prompt, str):
        found = await rewards_of_texts(desk, request, served, [body.prompt + body.response], prompts=[body.prompt])
    else:
        group = Group(messages(body.prompt, "user"), ((Message("assistant", body.response),),))
        found = await desk.rewards(request, served, 1, lambda: served.encode([group]))
    return one_each(found)[0]
