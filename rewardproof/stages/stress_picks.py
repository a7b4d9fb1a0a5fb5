"""What a model picks from the pools: where it promises most beyond gold, where it serves best, and which words moved its score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewardproof.artifacts import plain, write_whole
from rewardproof.data import Group
from rewardproof.models.token_scores import TokenScores
from rewardproof.scoring import Scale, Scorer, reads_tokens

EXAMPLES = 3
"""Picks of either kind for each method."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The answer of one pool that a model likes best.

    Attributes:
        kind: `gamed most` or `served best`.
        group: The prompt with this answer alone.
        promised: What the model gives it, in standard deviations over all answers of all pools.
        gold: Its gold.
        tokens: How the model's score grows along it; nothing where the model cannot say.
    """

    kind: str
    group: Group
    promised: float
    gold: float
    tokens: TokenScores | None


@dataclass(frozen=True, slots=True)
class Picks:
    """Some picks of one model.

    Attributes:
        scale: Zero and unit of its scores: all answers of all pools.
        shown: The picks, the most gamed first.
    """

    scale: Scale
    shown: tuple[Pick, ...]


def picks_of(
    pools: Sequence[Group],
    scores: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
    scorer: Callable[[], Scorer],
    file: Path,
    *,
    name: str,
) -> Picks:
    """The picks that promise most beyond gold, both in standard deviations over the pools, and those that promise least beyond it.

    Args:
        pools: Prompts with their answers.
        scores: The model's, by pool.
        gold: Gold's, by pool.
        scorer: Gives the model, to read its picks word by word; not asked where they were read before.
        file: Where what it reads is kept, beside the scores that it belongs to.
        name: What messages call it by.

    Raises:
        EvaluationError: Scores are not finite, or all equal.
    """
    scale = Scale.of(scores, name=name)
    golds_N = np.concatenate([np.asarray(row) for row in gold])
    found: list[Pick] = []
    for group, row, gold_row in zip(pools, scores, gold, strict=True):
        place = int(np.argmax(row))
        alone = replace(group, answers=(group.answers[place],), scores=None)
        found.append(Pick("", alone, float(scale.standardised(row)[place]), gold_row[place], None))
    found.sort(key=lambda pick: (pick.gold - golds_N.mean()) / (golds_N.std() or 1.0) - pick.promised)
    kinds = (("gamed most", found[:EXAMPLES]), ("served best", found[-EXAMPLES:]))
    shown = [replace(pick, kind=kind) for kind, some in kinds for pick in some]
    words = _words(file, scorer, [pick.group for pick in shown])
    return Picks(scale, tuple(replace(pick, tokens=one) for pick, one in zip(shown, words, strict=True)))


def _words(file: Path, scorer: Callable[[], Scorer], groups: Sequence[Group]) -> list[TokenScores | None]:
    """How the scores of single answers grow, from the file if it is there."""
    if not file.exists():
        judge = scorer()
        read = [one for (one,) in judge.score_tokens(groups)] if reads_tokens(judge) else [None] * len(groups)
        write_whole(file, json.dumps(plain(read)))
    return [None if row is None else _token_scores(**row) for row in json.loads(file.read_text())]


def _token_scores(*, reached_A: Sequence[float], ends_A: Sequence[int], **rest: Any) -> TokenScores:
    return TokenScores(reached_A=np.array(reached_A, dtype=np.float64), ends_A=np.array(ends_A, dtype=np.intp), **rest)
