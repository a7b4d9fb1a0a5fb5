"""Pair accuracy: how often the reward orders two answers as the data does, with what a length rule alone would reach on the same pairs.

A group of n answers has a pair for every two answers whose scores differ. Its pairs are averaged first and every group counts once: a
list of nine answers has 36 pairs but is one judgement of one prompt. Intervals resample prompts.
"""

# Shapes: G ordered groups, A answers of them, P ordered pairs.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.data.group import Group
from rewardproof.data.pairs import Pair
from rewardproof.errors import EvaluationError
from rewardproof.evaluation.scored import ScoredRow, scored_row
from rewardproof.statistics import Interval, Reliability, cluster_bootstrap_columns, reliability, wilson, within_cluster_correlation
from rewardproof.statistics.bootstrap import Clusters
from rewardproof.statistics.checks import FloatArray


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """What `pair_accuracy` found. Accuracies are shares in [0, 1]; a tie counts as half a correct pair.

    Attributes:
        overall: Accuracy over all ordered groups.
        by_subset: Accuracy by the groups' subset; empty where there is only one.
        by_category: Accuracy by the groups' category; empty where there is only one.
        length_only: Accuracy of the rule "the longer answer wins" (characters) on the same pairs.
        length_only_by_subset: The same by subset; empty where there is only one.
        n_pairs: Ordered pairs.
        n_groups: Groups with at least one ordered pair.
        unordered: Groups left out because nothing orders their answers.
        tied: Pairs to whose answers the reward gives the same number.
        reward_mean: Mean reward over the answers of ordered groups.
        reward_std: Its standard deviation.
        gap_mean: Mean reward gap, better answer minus worse, every group counting once.
        gap_std: Standard deviation of that gap over groups' pairs, weighted alike.
        length_correlation: Correlation of reward and length in characters among the answers of one prompt; `None` where either is constant.
        calibration: Confidence sigmoid(|gap|) in the answer that the reward favours, against how often the data agrees.
    """

    overall: Interval
    by_subset: dict[str, Interval]
    by_category: dict[str, Interval]
    length_only: Interval
    length_only_by_subset: dict[str, Interval]
    n_pairs: int
    n_groups: int
    unordered: int
    tied: int
    reward_mean: float
    reward_std: float
    gap_mean: float
    gap_std: float
    length_correlation: float | None
    calibration: Reliability

    @property
    def ece(self) -> float:
        """Expected calibration error of sigmoid(gap)."""
        return self.calibration.error

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        values["overall"], values["length_only"] = self.overall.as_dict(), self.length_only.as_dict()
        for part in ("by_subset", "by_category", "length_only_by_subset"):
            values[part] = {name: interval.as_dict() for name, interval in getattr(self, part).items()}
        values["ece"] = self.ece
        return values


@dataclass(frozen=True, slots=True)
class _Pairs:
    """All ordered pairs in flat arrays; `group_P` says whose they are."""

    gap_P: FloatArray
    longer_P: FloatArray
    group_P: np.ndarray
    weight_P: FloatArray

    def by_group(self, values_P: FloatArray) -> FloatArray:
        return np.bincount(self.group_P, weights=values_P) / np.bincount(self.group_P)


def pair_accuracy(
    groups: Sequence[Group], rewards: Sequence[Sequence[float] | FloatArray] | FloatArray, *, seed: int = 0
) -> AccuracyReport:
    """How often the reward orders two answers as the data does.

    Args:
        groups: Prompts with their answers and the data's scores.
        rewards: The rewards of every group's answers, in the groups' order.
        seed: Seed of the bootstrap.

    Returns:
        Accuracy overall and by part, with intervals over prompts, and what helps to read it.

    Raises:
        EvaluationError: If rewards and groups do not match, a reward or a score is not finite, or no group is ordered.

    Example:
        >>> from rewardproof.data.group import Message
        >>> def pair(prompt, chosen, rejected):
        ...     answers = ((Message("assistant", chosen),), (Message("assistant", rejected),))
        ...     return Group((Message("user", prompt),), answers, scores=(1.0, 0.0))
        >>> report = pair_accuracy([pair("a", "yes", "no"), pair("b", "hm", "well")], [[2.0, 1.0], [0.5, 0.7]])
        >>> report.overall.estimate, report.length_only.estimate, report.n_pairs
        (0.5, 0.5, 2)
    """
    if len(groups) != len(rewards):
        raise EvaluationError(
            f"{len(rewards)} lists of rewards for {len(groups)} groups; expected one a group. Score the same rows that you evaluate."
        )
    return accuracy_of([scored_row(group, row) for group, row in zip(groups, rewards, strict=True)], seed=seed)


def accuracy_of(rows: Sequence[ScoredRow], *, seed: int = 0) -> AccuracyReport:
    """`pair_accuracy` of rows that are scored already.

    Args:
        rows: The rows.
        seed: Seed of the bootstrap.

    Raises:
        EvaluationError: If no row is ordered.
    """
    ordered = [row for row in rows if row.ordered]
    if not ordered:
        raise EvaluationError(
            f"none of {len(rows)} groups has an order; expected at least one with two different scores. "
            "Accuracy needs a preference: give pairs (chosen, rejected) or rows with scores."
        )
    pairs = _all_pairs(ordered)
    prompts = [row.prompt for row in ordered]
    correct_P = _wins(pairs.gap_P)
    correct_G, longer_G = pairs.by_group(correct_P), pairs.by_group(pairs.longer_P)
    overall, length_only = accuracy_intervals(np.stack([correct_G, longer_G], axis=1), prompts, seed=seed)
    gap_mean = float(np.average(pairs.gap_P, weights=pairs.weight_P))
    rewards_A = np.concatenate([row.rewards for row in ordered])
    return AccuracyReport(
        overall=overall,
        by_subset=_by_part(ordered, correct_G, prompts=prompts, seed=seed, part=lambda row: row.subset),
        by_category=_by_part(ordered, correct_G, prompts=prompts, seed=seed, part=lambda row: row.category),
        length_only=length_only,
        length_only_by_subset=_by_part(ordered, longer_G, prompts=prompts, seed=seed, part=lambda row: row.subset),
        n_pairs=len(pairs.gap_P),
        n_groups=len(ordered),
        unordered=len(rows) - len(ordered),
        tied=int((pairs.gap_P == 0).sum()),
        reward_mean=float(rewards_A.mean()),
        reward_std=float(rewards_A.std()),
        gap_mean=gap_mean,
        gap_std=float(np.sqrt(np.average((pairs.gap_P - gap_mean) ** 2, weights=pairs.weight_P))),
        length_correlation=_length_correlation(ordered, rewards_A),
        calibration=reliability(1 / (1 + np.exp(-np.abs(pairs.gap_P))), correct_P, span=(0.5, 1.0), weights=pairs.weight_P),
    )


@dataclass(frozen=True, slots=True)
class PairOutcomes:
    """Every held-out pair by itself, small enough to keep: what paired comparisons between models and seeds need later.

    Attributes:
        correct: A character a pair: `1` ordered as the data does, `0` the other way round, `=` tied.
        longer: The same of the rule "the longer answer wins".
        prompts: The beginning of the prompt's key, one a group.
        subsets: The subset, one a group.
        categories: The category, one a group.
        sizes: Pairs of each group; they follow one another in `correct`.
    """

    correct: str
    longer: str
    prompts: tuple[str, ...]
    subsets: tuple[str, ...]
    categories: tuple[str, ...]
    sizes: tuple[int, ...]


def pair_outcomes(groups: Sequence[Group], rewards: Sequence[Sequence[float] | FloatArray] | FloatArray) -> PairOutcomes:
    """What `pair_accuracy` averages, pair by pair; groups without an order are left out.

    Args:
        groups: Prompts with their answers and the data's scores.
        rewards: The rewards of every group's answers, in the groups' order.

    Returns:
        One outcome a pair.

    Example:
        >>> from rewardproof.data.group import Message
        >>> answers = tuple((Message("assistant", text),) for text in ("yes", "no", "maybe"))
        >>> pair_outcomes([Group((Message("user", "a"),), answers, scores=(2.0, 1.0, 0.0))], [[3.0, 5.0, 3.0]]).correct
        '0=1'
    """
    kept = [scored_row(group, row) for group, row in zip(groups, rewards, strict=True) if group.scores and len(set(group.scores)) > 1]
    pairs = _all_pairs(kept)
    return PairOutcomes(
        correct=_letters(_wins(pairs.gap_P)),
        longer=_letters(pairs.longer_P),
        prompts=tuple(row.prompt[:8] for row in kept),
        subsets=tuple(row.subset for row in kept),
        categories=tuple(row.category for row in kept),
        sizes=tuple(np.bincount(pairs.group_P).tolist()),
    )


def correct_shares(pairs: Sequence[Sequence[Pair]], rewards: Sequence[Sequence[float]]) -> FloatArray:
    """Share of each group's given pairs that the rewards order as they do; a tie is half a correct pair.

    Args:
        pairs: Ordered pairs of every group, at least one.
        rewards: The rewards of every group's answers, in the groups' order.

    Example:
        >>> correct_shares([[Pair(0, 1, None), Pair(1, 2, None)]], [[2.0, 1.0, 1.0]])
        array([0.75])
    """
    gaps = [np.array([row[pair.winner] - row[pair.loser] for pair in some]) for some, row in zip(pairs, rewards, strict=True)]
    return np.array([_wins(gap_P).mean() for gap_P in gaps])


def agreement(
    prompts: Sequence[str], pairs: Sequence[Sequence[Pair]], rewards: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval | None:
    """How often rewards order answers as given pairs do, which need not be the data's own; nothing where there are no pairs.

    Args:
        prompts: Key of every group's prompt, which the interval resamples.
        pairs: Ordered pairs of every group; groups without one are left out.
        rewards: The rewards of every group's answers, in the groups' order.
        seed: Seed of the bootstrap.
    """
    ordered = [place for place, some in enumerate(pairs) if some]
    if not ordered:
        return None
    shares_G = correct_shares([pairs[place] for place in ordered], [rewards[place] for place in ordered])
    return accuracy_intervals(shares_G[:, None], [prompts[place] for place in ordered], seed=seed)[0]


def _letters(wins_P: FloatArray) -> str:
    return "".join("1" if win == 1 else "0" if win == 0 else "=" for win in wins_P.tolist())


def _all_pairs(kept: Sequence[ScoredRow]) -> _Pairs:
    gaps, longer, sizes = [], [], []
    for row in kept:
        scores, rewards, lengths = (np.asarray(values, dtype=np.float64) for values in (row.scores, row.rewards, row.lengths))
        better, worse = np.nonzero(scores[:, None] > scores[None, :])
        gaps.append(rewards[better] - rewards[worse])
        longer.append(_wins(lengths[better] - lengths[worse]))
        sizes.append(len(better))
    group_P = np.repeat(np.arange(len(kept)), sizes)
    return _Pairs(np.concatenate(gaps), np.concatenate(longer), group_P, np.repeat(1.0 / np.asarray(sizes), sizes))


def _wins(difference_P: FloatArray) -> FloatArray:
    return np.where(difference_P > 0, 1.0, np.where(difference_P == 0, 0.5, 0.0))


def accuracy_intervals(correct_GM: FloatArray, prompts: Clusters, *, seed: int = 0) -> list[Interval]:
    """Accuracies with intervals: bootstrap over prompts; Wilson over prompts where every group agrees and resampling would claim certainty.

    Args:
        correct_GM: Share of each group's pairs that is ordered as the data does, a column a model.
        prompts: The prompt of each group.
        seed: Seed of the bootstrap, whose resamples all columns share.

    Returns:
        One interval a column.

    Example:
        >>> [interval.estimate for interval in accuracy_intervals(np.array([[1.0, 0.0], [0.5, 0.0]]), ["a", "b"])]
        [0.75, 0.0]
    """
    intervals = cluster_bootstrap_columns(correct_GM, prompts, seed=seed)
    for m, (interval, correct_G) in enumerate(zip(intervals, correct_GM.T, strict=True)):
        if correct_G.min() == correct_G.max() and correct_G[0] in (0.0, 1.0):
            honest = wilson(interval.n_clusters * correct_G[0], interval.n_clusters)
            intervals[m] = dataclasses.replace(interval, low=honest.low, high=honest.high)
    return intervals


def _by_part(
    rows: list[ScoredRow], correct_G: FloatArray, *, prompts: list[str], seed: int, part: Callable[[ScoredRow], str]
) -> dict[str, Interval]:
    of_part: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        of_part.setdefault(part(row) or "(none)", []).append(index)
    if len(of_part) == 1:
        return {}
    return {
        name: accuracy_intervals(correct_G[of_part[name], None], [prompts[i] for i in of_part[name]], seed=seed)[0]
        for name in sorted(of_part)
    }


def _length_correlation(rows: list[ScoredRow], rewards_A: FloatArray) -> float | None:
    lengths_A = np.concatenate([row.lengths for row in rows]).astype(np.float64)
    prompts_A = [row.prompt for row in rows for _ in row.lengths]
    if not (_varies_within(lengths_A, prompts_A) and _varies_within(rewards_A, prompts_A)):
        return None
    return within_cluster_correlation(rewards_A, lengths_A, prompts_A)


def _varies_within(values_A: FloatArray, prompts_A: list[str]) -> bool:
    first: dict[str, float] = {}
    return any(value != first.setdefault(prompt, value) for value, prompt in zip(values_A.tolist(), prompts_A, strict=True))
