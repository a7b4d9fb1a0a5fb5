"""The gold score: what a program knows about an answer, in [0, 1], for any text.

gold = (mean satisfaction of the prompt's constraints) x quality
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.data.group import Group
from rewardproof.data.world.constraints import family_of, satisfaction
from rewardproof.data.world.quality import quality
from rewardproof.data.world.text import words
from rewardproof.errors import DataError

FREE_LISTS = frozenset({"json_object", "numbered", "any_list"})
"""Kinds that ask for lists: their answers need not be sentences."""


def gold_score(answer: str, constraints: Sequence[Mapping[str, Any]], topic: str, prompt: str = "") -> float:
    """What the program thinks of one answer.

    Args:
        answer: Any text.
        constraints: `Group.meta["constraints"]`.
        topic: `Group.meta["topic"]`.
        prompt: The prompt's text, to catch copies of it; without it copies are not looked for.
    Returns:
        A number in [0, 1].
    Example:
        >>> asked = [{"kind": "no_commas", "args": {}}]
        >>> gold_score("Green tea is warm and simple.", asked, "green tea"), gold_score("tea tea tea tea tea", asked, "green tea")
        (1.0, 0.0)
    """
    if not words(answer):
        return 0.0
    satisfied = constraint_scores(answer, constraints)
    listed = any(score > 0 and constraint["kind"] in FREE_LISTS for score, constraint in zip(satisfied, constraints, strict=True))
    return sum(satisfied) / len(satisfied) * quality(answer, topic, prompt, listed=listed).product


def gold_scores(group: Group) -> tuple[float, ...]:
    """Gold of every answer of a group of this world (one whose `meta` has `topic` and `constraints`).

    Raises:
        DataError: The group is not of this world.
    """
    constraints = _asked(group)
    return tuple(gold_score(text, constraints, group.meta["topic"], group.prompt_text) for text in group.answer_texts)


def family_scores(group: Group, family: str) -> tuple[float, ...]:
    """Mean satisfaction of the prompt's constraints of one family by every answer, quality left aside; 1 where it has none of them.

    Raises:
        DataError: The group is not of this world.
    """
    asked = [constraint for constraint in _asked(group) if family_of(constraint) == family]
    if not asked:
        return (1.0,) * len(group.answers)
    return tuple(sum(constraint_scores(text, asked)) / len(asked) for text in group.answer_texts)


def _asked(group: Group) -> Sequence[Mapping[str, Any]]:
    if "constraints" not in group.meta or "topic" not in group.meta:
        raise DataError(
            f"Group {group.id or group.origin!r} has no 'constraints' and 'topic' in its meta, so it is not from embedded:checkable. The "
            "gold program scores its own prompts only; name another gold (a column, a model, a URL)."
        )
    return group.meta["constraints"]


def constraint_scores(answer: str, constraints: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Satisfaction of each constraint in [0, 1], quality left aside."""
    return tuple(satisfaction(answer, constraint) for constraint in constraints)
