"""Our own: groups of answers to a prompt, as messages or plain texts; what `RemoteScorer` and `RewardClient` send."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from rewardproof.data.group import Group, Message
from rewardproof.serving.answering import Desk, desk_of
from rewardproof.serving.bodies import MOST, FirstFault

router = APIRouter()


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Annotated[str, Field(max_length=64, examples=["user"])]
    """system, user, assistant or tool."""
    content: str
    """What was said."""


Said = str | Annotated[list[Turn], Field(max_length=MOST), FirstFault()]
"""Messages, or a text: the user's as a prompt, the assistant's as an answer."""


class GroupBody(BaseModel):
    """A prompt and its answers."""

    model_config = ConfigDict(extra="forbid")
    id: str = ""
    """The client's own name for it, which is not used."""
    prompt: Said
    """The conversation up to the answers."""
    answers: Annotated[list[Said], Field(min_length=1, max_length=MOST), FirstFault()]
    """The answers to compare."""
    raw: bool = False
    """The texts are joined as they are, with no chat template."""

    def as_group(self) -> Group:
        """The group."""
        answers = tuple(messages(answer, "assistant") for answer in self.answers)
        return Group(messages(self.prompt, "user") if self.prompt else (), answers, raw=self.raw)


class ScoreBody(BaseModel):
    """Groups to score."""

    model_config = ConfigDict(extra="forbid")
    model: str = ""
    """Which of the server's models; empty for its first."""
    groups: Annotated[list[GroupBody], Field(max_length=MOST), FirstFault()]
    """Any number of groups."""


class ScoreReply(BaseModel):
    """Rewards."""

    model: str
    """The model that gave them."""
    rewards: list[list[float]]
    """One list a group, one number an answer, in order."""
    disagreement: list[list[float]] | None
    """Of an ensemble: the variance of its members' standardised scores about each; else null."""


def messages(said: Said, role: str) -> tuple[Message, ...]:
    """What was said as messages; a plain text is by `role`."""
    return (Message(role, said),) if isinstance(said, str) else tuple(Message(turn.role, turn.content) for turn in said)


@router.post("/score")
async def score(body: ScoreBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> ScoreReply:
    """Rewards of every answer of every group."""
    served = desk.model(request, body.model)
    n_texts = sum(len(group.answers) for group in body.groups)
    found = await desk.rewards(request, served, n_texts, lambda: served.encode([group.as_group() for group in body.groups]))
    apart = [list(rewards.apart) for rewards in found]
    return ScoreReply(model=served.name, rewards=[list(rewards.values) for rewards in found], disagreement=apart if any(apart) else None)
