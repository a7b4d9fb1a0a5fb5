"""Interval of a weighted mean of parts' means: what a leaderboard's number is, where parts count by rule and not by their rows."""

# Shapes: N rows of a part, C clusters of a stratum, R resamples.

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.bootstrap import Interval, cluster_index, resample_weights, wilson
from rewardproof.statistics.checks import FloatArray, finite, same_length


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """One part of a weighted mean.

    Attributes:
        weight: What its mean is multiplied with.
        values: One number a row.
        clusters: The cluster of each row.
        stratum: Parts of one stratum are of the same clusters and are resampled together; the part's own if empty.
    """

    weight: float
    values: Sequence[float] | FloatArray
    clusters: Sequence[Hashable]
    stratum: str = ""


def weighted_interval(parts: Sequence[WeightedPart], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    r"""Percentile interval of :math:`\sum_p w_p \bar v_p`, the clusters of each stratum resampled among themselves.

    A resample in which a part of a stratum has no row leaves that part at its estimate.

    Args:
        parts: The parts; weights need not sum to one.
        n_resamples: Bootstrap resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        The interval. Where every row of every part has the same value, 0 or 1, and the weights sum to one it is Wilson's, because
        resampling would claim certainty; its ends are NaN where no stratum has two clusters.

    Raises:
        EvaluationError: There are no parts, or a part has no rows, a value that is not finite, or not one cluster a row.

    Example:
        >>> half = [WeightedPart(0.5, [1.0, 0.0], ["a", "b"]), WeightedPart(0.5, [1.0, 1.0, 1.0, 1.0], ["c", "d", "e", "f"])]
        >>> weighted_interval(half).estimate
        0.75
    """
    if not parts:
        raise EvaluationError("no parts given; expected at least one. A mean of nothing is undefined: check what was filtered out.")
    values = [finite(part.values, "values") for part in parts]
    for part, values_N in zip(parts, values, strict=True):
        same_length(values_N, part.clusters, "values and clusters")
    estimate = float(sum(part.weight * values_N.mean() for part, values_N in zip(parts, values, strict=True)))
    strata: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        strata.setdefault(part.stratum or f"\0{place}", []).append(place)
    total_R, n_clusters, spread = np.zeros(n_resamples), 0, False
    for number, places in enumerate(strata.values()):
        clusters = [cluster for place in places for cluster in parts[place].clusters]
        index_N, size = cluster_index(clusters, len(clusters))
        n_clusters, spread = n_clusters + size, spread or size > 1
        counts = np.cumsum([len(values[place]) for place in places])[:-1]
        drawn = np.random.SeedSequence([seed, number]).generate_state(1)[0]
        total_R += _resampled(
            [(parts[place].weight, values[place]) for place in places], np.split(index_N, counts), size, n_resamples, int(drawn)
        )
    n = sum(map(len, values))
    every = np.concatenate(values)
    if every.min() == every.max() and every[0] in (0.0, 1.0) and math.isclose(sum(part.weight for part in parts), 1.0):
        honest = wilson(n_clusters * float(every[0]), n_clusters, level=level)
        return Interval(estimate, honest.low, honest.high, n, n_clusters)
    if not spread:
        return Interval(estimate, math.nan, math.nan, n, n_clusters)
    low, high = np.quantile(total_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n, n_clusters)


def _resampled(
    weighted: Sequence[tuple[float, FloatArray]], index: Sequence[np.ndarray], n_clusters: int, n_resamples: int, seed: int
) -> FloatArray:
    """One stratum's contribution to each resample, shape `(R,)`."""
    blocks: list[FloatArray] = []
    for draws_RC in resample_weights(n_clusters, n_resamples, seed):
        total_R = np.zeros(len(draws_RC))
        for (weight, values_N), index_N in zip(weighted, index, strict=True):
            sums_C = np.bincount(index_N, weights=values_N, minlength=n_clusters)
            rows_R = draws_RC @ np.bincount(index_N, minlength=n_clusters)
            mean_R = np.divide(draws_RC @ sums_C, rows_R, out=np.full(len(draws_RC), values_N.mean()), where=rows_R > 0)
            total_R += weight * mean_R
        blocks.append(total_R)
    return np.concatenate(blocks)
