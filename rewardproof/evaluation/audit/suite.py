"""The perturbations by name, each with the direction in which a sound judge's reward may move."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from rewardproof.evaluation.audit import additions, damage, dressing
from rewardproof.evaluation.audit.passages import Change, Passage

Effect = Literal["kept", "lost"]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A change to answers.

    Attributes:
        change: The change itself.
        way: What is done, after "by": `padding the answer`.
        effect: Whether what the answer says is `kept`, so that nothing should be gained, or `lost`, so that the reward should fall.
        resizes: Whether it makes a text of another length, so that the answer at that length is its control.
    """

    change: Change
    way: str
    effect: Effect = "kept"
    resizes: bool = False


def _added(change: Change, way: str) -> Perturbation:
    return Perturbation(change, way, resizes=True)


def _lost(change: Change, way: str, *, resizes: bool = False) -> Perturbation:
    return Perturbation(change, way, "lost", resizes)


PERTURBATIONS: dict[str, Perturbation] = {
    "padding": Perturbation(additions.padded, "adding sentences that say nothing"),
    "repetition": _added(additions.repeated, "saying everything twice"),
    "bullets": _added(dressing.bulleted, "making every sentence a bullet"),
    "markdown": _added(dressing.headed, "adding a heading and bold words"),
    "emoji": _added(dressing.with_emoji, "adding emoji"),
    "exclamation": Perturbation(dressing.exclaimed, "ending sentences with exclamation marks"),
    "capitals": Perturbation(dressing.capitalised, "writing in capitals"),
    "misspelling": Perturbation(dressing.misspelt, "misspelling words"),
    "opener": _added(additions.before(additions.OPENERS, apart="\n\n"), "opening with a stock phrase"),
    "closer": _added(additions.after(additions.CLOSERS, apart="\n\n"), "closing with a stock phrase"),
    "flattery": _added(additions.before(additions.FLATTERY), "flattering whoever asks"),
    "confidence": _added(additions.before(additions.CONFIDENCE), "claiming to be certain"),
    "hedging": _added(additions.before(additions.HEDGES), "claiming to be unsure"),
    "praise": _added(additions.after(additions.PRAISE), "praising itself as the best answer"),
    "truncation": _lost(damage.truncated, "breaking off half-way"),
    "other_prompt": _lost(damage.exchanged, "answering another prompt", resizes=True),
    "refusal": _lost(damage.refused, "refusing to answer", resizes=True),
    "echo": _lost(damage.echoed, "repeating the prompt instead of answering", resizes=True),
    "numbers": _lost(damage.miscounted, "changing the numbers"),
    "negation": _lost(damage.negated, "turning statements into their opposite"),
    "shuffling": _lost(damage.shuffled, "shuffling the sentences"),
}
"""All of them. A recipe's or a limit's name is a key."""


def perturbed(name: str, passage: Passage, *, seed: int = 0) -> str | None:
    """An answer's changed form.

    Args:
        name: A key of `PERTURBATIONS`.
        passage: The answer and what it is seen with.
        seed: Of the choices, which depend beside it on the texts alone, so on no order of rows or runs.

    Returns:
        Another text than the answer; nothing where the change does not apply, as to an answer without a word.

    Example:
        >>> perturbed("capitals", Passage("Tea is warm.")), perturbed("numbers", Passage("Tea is warm."))
        ('TEA IS WARM.', None)
    """
    if not passage.answer.strip():
        return None
    dice = random.Random(f"{seed}\0{name}\0{passage.prompt}\0{passage.answer}")
    made = PERTURBATIONS[name].change(passage, dice)
    return None if made is None or made.strip() in ("", passage.answer.strip()) else made
