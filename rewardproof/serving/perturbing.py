"""What the page shows of the audit: the typed answers changed in ways that deserve nothing, and what the reward makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.group import Group, Message
from rewardproof.evaluation.audit import PERTURBATIONS, Passage, perturbed
from rewardproof.serving.answering import Desk, desk_of
from rewardproof.serving.inspection import InspectBody
from rewardproof.serving.served import Served

router = APIRouter()


class ChangedReply(BaseModel):
    """One answer, changed."""

    text: str
    """What it became."""
    shift: float
    """Its reward less that of the answer as it was typed."""


class ChangeReply(BaseModel):
    """One change, made to every answer that it applies to."""

    name: str
    """Its name in an audit."""
    way: str
    """What is done."""
    effect: Literal["kept", "lost"]
    """Whether the answer says the same, so that nothing should be gained, or is ruined, so that the reward should fall."""
    answers: list[ChangedReply | None]
    """One an answer; null where the change does not apply."""


class PerturbReply(BaseModel):
    """What the changes are paid."""

    model: str
    """The model that judged."""
    changes: list[ChangeReply]
    """Those that apply to an answer at least."""


@router.post("/perturb")
async def perturb(body: InspectBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> PerturbReply:
    """The answers, changed in every way that an audit knows, and what each change is paid."""
    served = desk.model(request, body.model)
    return await desk.work(request, served, len(body.answers) * (1 + len(PERTURBATIONS)), lambda: paid(served, body))


def paid(served: Served, body: InspectBody) -> PerturbReply:
    """What a model pays for the changes; raises as `Served.encode` does."""
    prompt = (Message("user", body.prompt),)

    def encoded(texts: Sequence[str]) -> list[EncodedGroup]:
        return served.encode([Group(prompt, tuple((Message("assistant", text),) for text in texts), id="this prompt")])

    encoded(body.answers)  # what is too long or no text is refused before anything is made of it
    texts = changed(body.prompt, body.answers)
    every = [*body.answers, *(text for row in texts.values() for text in row if text is not None)]
    (found,) = served.score(encoded(every))
    own, rest = found.values[: len(body.answers)], iter(found.values[len(body.answers) :])
    changes = [
        ChangeReply(
            name=name,
            way=PERTURBATIONS[name].way,
            effect=PERTURBATIONS[name].effect,
            answers=[
                None if text is None else ChangedReply(text=text, shift=next(rest) - reward) for text, reward in zip(row, own, strict=True)
            ],
        )
        for name, row in texts.items()
    ]
    return PerturbReply(model=served.name, changes=changes)


def changed(prompt: str, answers: list[str]) -> dict[str, list[str | None]]:
    """Changed forms of answers by the name of the change, those left out that apply to none.

    What an audit takes from another prompt's answers there is none of here.
    """
    rows = {name: [perturbed(name, Passage(answer, prompt)) for answer in answers] for name in PERTURBATIONS}
    return {name: row for name, row in rows.items() if any(text is not None for text in row)}
