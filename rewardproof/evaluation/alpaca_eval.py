"""AlpacaEval's annotations: agreement with the majority of a pair's annotators, and what else its table of annotators tells.

Reference:
    Li et al., AlpacaEval, and Dubois et al., AlpacaFarm, arXiv:2305.14387, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewardproof.evaluation.published import BenchmarkScore, Line, best_beats_all, by_name, part_of
from rewardproof.evaluation.scored import ScoredRow
from rewardproof.statistics import is_constant, spearman


def is_row(row: ScoredRow) -> bool:
    """Whether a row is an annotation of AlpacaEval's: two answers, as against a pool of one's."""
    return row.format == "alpaca_eval" and len(row.rewards) == 2


def judge(rows: Sequence[ScoredRow]) -> BenchmarkScore:
    """Agreement with the majority of the annotations of a pair, every pair counted once; pairs whose annotations are even are left out.

    `further` has how often the longer answer is preferred by the model and by the annotators, and, where answers of three generators or
    more are compared with a baseline's, the rank correlation of the generators' win rates under both.
    """
    pairs = list(by_name(rows, _pair).values())
    voted = [majority(annotations) for annotations in pairs]
    decided = [row for row in voted if row.ordered]
    further: dict[str, Any] = {
        "pairs": len(pairs),
        "annotations": len(rows),
        "undecided_pairs": len(pairs) - len(decided),
        "prefers_longer": _prefers_longer([row.rewards for row in decided], decided),
        "annotators_prefer_longer": _prefers_longer([row.scores or () for row in decided], decided),
        "generators_spearman": _generators(rows),
    }
    lines = (Line("AlpacaEval", (1.0,), (part_of("AlpacaEval", decided, best_beats_all),)),) if decided else ()
    return BenchmarkScore("AlpacaEval", "agreement with the annotators' majority", lines, (), further)


def majority(annotations: Sequence[ScoredRow]) -> ScoredRow:
    """The first annotation of a pair, with the share of all that prefers each of its answers for scores.

    An annotation that is a probability counts as the answer that it favours.

    Example:
        >>> def says(*scores): return ScoredRow((0.0, 1.0), scores, (1, 2), ("x", "y"), "p")
        >>> swapped = ScoredRow((1.0, 0.0), (0.0, 1.0), (2, 1), ("y", "x"), "p")
        >>> round(majority([says(0.9, 0.1), says(0.0, 1.0), swapped]).scores[0], 3)
        0.667
    """
    first = annotations[0]
    votes: list[float] = []
    for row in annotations:
        scores = dict(zip(row.answers, row.scores or (0.5, 0.5), strict=True))
        votes.append(float(np.sign(scores[first.answers[0]] - scores[first.answers[1]])))
    share = (float(np.mean(votes)) + 1) / 2
    return ScoredRow(first.rewards, (share, 1 - share), first.lengths, first.answers, first.prompt, first.id, first.origin)


def _pair(row: ScoredRow) -> str:
    return " ".join([row.prompt, *sorted(row.answers)])


def _prefers_longer(judgements: Sequence[Sequence[float]], rows: Sequence[ScoredRow]) -> float | None:
    """Share of the pairs of different lengths of which the longer is preferred; half for a tie."""
    signs = [
        np.sign(values[0] - values[1]) * np.sign(row.lengths[0] - row.lengths[1])
        for values, row in zip(judgements, rows, strict=True)
        if row.lengths[0] != row.lengths[1]
    ]
    return (float(np.mean(signs)) + 1) / 2 if signs else None


def _generators(rows: Sequence[ScoredRow]) -> float | None:
    """Rank correlation of win rates of the second answers' generators, by the rewards and by the annotators."""
    found = by_name([row for row in rows if "generator_2" in row.facts], lambda row: str(row.facts["generator_2"]))
    rates = np.array([[_wins([row.rewards for row in own]), _wins([row.scores or () for row in own])] for own in found.values()])
    if len(found) < 3 or any(is_constant(column) for column in rates.T):
        return None
    return spearman(rates[:, 0], rates[:, 1])


def _wins(judgements: Sequence[Sequence[float]]) -> float:
    return float(np.mean([(np.sign(values[1] - values[0]) + 1) / 2 for values in judgements]))
