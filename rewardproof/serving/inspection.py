"""What the page shows of answers: their rewards, how each grew token by token, and where the voices behind it disagree."""

# M voices, N answers.
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from rewardproof.data.group import Group, Message
from rewardproof.errors import ModelError
from rewardproof.merging.specialisation import alone
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import moe_blocks
from rewardproof.report.heat_map import HeatMap, heat_maps
from rewardproof.scoring import AnyModel, DoubleMixture, ModelEnsemble, reads_tokens
from rewardproof.serving.answering import Desk, desk_of
from rewardproof.serving.bodies import FirstFault
from rewardproof.serving.served import Served

router = APIRouter()
MOST_ANSWERS = 8


class InspectBody(BaseModel):
    """Answers to look into."""

    model_config = ConfigDict(extra="forbid")
    model: str = ""
    """Which of the server's models; empty for its first."""
    prompt: str
    """What the user said."""
    answers: Annotated[list[str], Field(min_length=1, max_length=MOST_ANSWERS), FirstFault()]
    """What was answered."""


class PieceReply(BaseModel):
    """A stretch of an answer."""

    text: str
    """The stretch; empty for what comes after the answer."""
    gain: float
    """What the reward gains by it."""
    reached: float
    """The reward after it."""
    shade: float
    """The gain over the largest gain inside any of the answers, from -1 to 1."""


class AnswerReply(BaseModel):
    """One answer."""

    reward: float
    """Its reward."""
    before: float | None
    """What the model says before the answer; null where it cannot say."""
    pieces: list[PieceReply]
    """The answer in pieces; empty where the model does not read token by token."""


class VoicesReply(BaseModel):
    """Those whose judgements make the reward, or would make it alone."""

    kind: str
    """What they are."""
    names: list[str]
    """What each is called."""
    rewards: list[list[float]]
    """One list a voice, one number an answer."""
    heard: list[bool]
    """Whether the voice counts for this prompt."""


class InspectReply(BaseModel):
    """What there is to see."""

    model: str
    answers: list[AnswerReply]
    without_pieces: str
    """Why there are no pieces; empty where there are."""
    voices: VoicesReply | None
    """Null for a model that is one."""


@router.post("/inspect")
async def inspect(body: InspectBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> InspectReply:
    """Rewards, their growth, and the voices behind them, for the page."""
    served = desk.model(request, body.model)
    answers = tuple((Message("assistant", answer),) for answer in body.answers)
    group = Group((Message("user", body.prompt),), answers, id="this prompt")
    return await desk.work(request, served, len(answers), lambda: look_into(served, group))


def look_into(served: Served, group: Group) -> InspectReply:
    """What the page shows of a group; raises as `Served.encode` does."""
    encoded = served.encode([group])
    (rewards,) = served.score(encoded)
    maps, without = _maps(served.model, group)
    found = [
        AnswerReply(reward=reward, before=one.before if one else None, pieces=_pieces(one) if one else [])
        for reward, one in zip(rewards.values, maps, strict=True)
    ]
    return InspectReply(model=served.name, answers=found, without_pieces=without, voices=voices(served.model, group))


def _maps(model: AnyModel, group: Group) -> tuple[Sequence[HeatMap | None], str]:
    if not reads_tokens(model):
        return [None] * len(group.answers), "This model judges whole answers: it cannot say which words it liked."
    try:
        (scores,) = model.score_tokens([group])
    except ModelError as error:
        return [None] * len(group.answers), str(error)
    if not all(one.located for one in scores):
        return [None] * len(group.answers), "The chat template rewrites this answer, so its words cannot be found among the tokens."
    return heat_maps([("", text, one) for text, one in zip(group.answer_texts, scores, strict=True)]), ""


def _pieces(found: HeatMap) -> list[PieceReply]:
    return [PieceReply(text=one.text, gain=one.gain, reached=one.reached, shade=one.shade) for one in found.pieces]


def voices(model: AnyModel, group: Group) -> VoicesReply | None:
    """Who judges: an ensemble's members, a DMoERM's categories, or the routed experts of a mixture, each as if it were alone."""
    if isinstance(model, ModelEnsemble):
        (rewards_MN,) = model.by_member([group])
        names = [f"member {number}" for number in range(1, len(rewards_MN) + 1)]
        return VoicesReply(
            kind="Members, in units of their own spread", names=names, rewards=rewards_MN.tolist(), heard=[True] * len(names)
        )
    if isinstance(model, DoubleMixture):
        encoded = model.encode([group])[0]
        (chosen,) = model.route(encoded)
        names = list(model.categories)
        rewards = [list(model.score_as(encoded, [name])[0]) for name in names]
        return VoicesReply(kind="Categories; the router chose one", names=names, rewards=rewards, heard=[name == chosen for name in names])
    return _experts(model, group) if isinstance(model, RewardModel) else None


def _experts(model: RewardModel, group: Group) -> VoicesReply | None:
    blocks = moe_blocks(model.model)
    if not blocks:
        return None
    n_routed = next(iter(blocks.values())).experts.n_experts - 1
    rewards: list[list[float]] = []
    for expert in range(n_routed):
        with alone(model.model, expert):
            rewards.append(list(model.score([group])[0]))
    names = [f"expert {number}" for number in range(1, n_routed + 1)]
    return VoicesReply(kind="Routed experts, each alone", names=names, rewards=rewards, heard=[True] * n_routed)
