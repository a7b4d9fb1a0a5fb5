"""`ScoredRow`: what an evaluation keeps of a row once it is scored: numbers and names, never text or tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rewardproof.data.files import path_names
from rewardproof.data.group import Group
from rewardproof.data.splitting import split_key
from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray

KEPT = ("num_correct", "domain", "generator_2")
"""Columns of the data that a benchmark's score needs."""


@dataclass(frozen=True)
class ScoredRow:
    """One prompt, what the data and the model say of its answers, and what the row is called.

    Attributes:
        rewards: A reward an answer.
        scores: The data's own score an answer, or `None`.
        lengths: Characters of each answer.
        answers: A hash of each answer's text, by which an answer is known again in another row.
        prompt: The prompt's key, or a hash of the answers where no prompt is known.
        id: The data's identifier, or the origin.
        origin: `file:line`.
        subset: As of the group.
        category: As of the group.
        format: Name of the format that it was read as.
        facts: Those of `KEPT` that the row has.
        index: Position among the rows of its source; files of JSON on one line have one origin for all rows.
    """

    rewards: tuple[float, ...]
    scores: tuple[float, ...] | None
    lengths: tuple[int, ...]
    answers: tuple[str, ...]
    prompt: str
    id: str = ""
    origin: str = ""
    subset: str = ""
    category: str = ""
    format: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0

    @property
    def ordered(self) -> bool:
        """Whether the data orders any two of its answers."""
        return self.scores is not None and len(set(self.scores)) > 1

    @cached_property
    def path_names(self) -> tuple[str, ...]:
        """Names of the file and of the folders that it lies in, in lower case, the nearest first; of a hub id the split comes first.

        Example:
            >>> row = ScoredRow((1.0,), None, (1,), ("a",), "p", origin="data/LLMBar/Natural/dataset.json:3")
            >>> row.path_names
            ('dataset', 'natural', 'llmbar', 'data')
        """
        return path_names(self.origin.rpartition(":")[0])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredRow:
        """Read what `as_dict` gave.

        Example:
            >>> row = ScoredRow((0.1, 0.2), (1.0, 0.0), (3, 4), ("a", "b"), "p", facts={"domain": "chat"})
            >>> ScoredRow.from_dict(row.as_dict()) == row
            True
        """
        read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**read)


def scored_row(group: Group, rewards: Sequence[float] | FloatArray, *, format: str = "", index: int = 0) -> ScoredRow:
    """Keep a group's numbers, after a look at them.

    Args:
        group: The group.
        rewards: A reward an answer.
        format: Name of the format that it was read as.
        index: Position among the rows of its source.

    Raises:
        EvaluationError: There is not one reward an answer, or a reward or score is not finite.
    """
    texts = group.answer_texts
    return ScoredRow(
        rewards=tuple(finite_row(group, rewards).tolist()),
        scores=group.scores,
        lengths=tuple(map(len, texts)),
        answers=tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts),
        prompt=split_key(group),
        id=group.id,
        origin=group.origin,
        subset=group.subset,
        category=group.category,
        format=format,
        facts={name: group.meta[name] for name in KEPT if group.meta.get(name) is not None},
        index=index,
    )


def finite_row(group: Group, row: Sequence[float] | FloatArray) -> FloatArray:
    """A group's rewards as an array, after a look at them and at its scores.

    Raises:
        EvaluationError: There is not one reward an answer, or a reward or score is not finite.
    """
    values = np.asarray(row, dtype=np.float64)
    name = group.origin or group.id or repr(group.prompt_text[:60])
    if values.shape != (len(group.answers),):
        raise EvaluationError(
            f"{name}: {values.size} rewards for {len(group.answers)} answers; expected one an answer, or the comparison is of other rows. "
            "Score the same rows that you evaluate."
        )
    for what, numbers in (("reward", values), ("score", np.asarray(group.scores or (), dtype=np.float64))):
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            cure = "Check the model: half precision may overflow." if what == "reward" else "Fix the row."
            raise EvaluationError(
                f"{name}: the {what} of answer {bad[0] + 1} is {numbers[bad[0]]}; expected a finite number. "
                f"A comparison with it would silently count as a wrong pair. {cure}"
            )
    return values
