"""Intervals: of a mean over clustered rows, of a paired difference, of a proportion, of a mean over seeds.

Rows that share a prompt are not independent, so prompts are resampled, never rows.
"""

# Shapes: N rows, M columns, C clusters, R resamples.

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray, Numbers, finite, same_length

Clusters: TypeAlias = Sequence[Hashable] | npt.NDArray[np.generic]
Statistic: TypeAlias = Literal["mean", "cluster_mean"]
_CELLS_AT_ONCE = 4_000_000  # bounds the resampling weights held in memory to 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where it lies.

    Attributes:
        estimate: The point estimate.
        low: Lower end; NaN where one cluster alone says nothing about its spread.
        high: Upper end, or NaN likewise.
        n: Rows behind it.
        n_clusters: Independent units behind it: prompts or seeds.
    """

    estimate: float
    low: float
    high: float
    n: int
    n_clusters: int

    @property
    def known(self) -> bool:
        """Whether there is an interval, not an estimate alone."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def of_a_share(self) -> Interval:
        """The interval with its ends between 0 and 1, which few seeds put outside; as it is where there are none.

        Example:
            >>> Interval(0.9, 0.7, 1.1, 3, 3).of_a_share()
            Interval(estimate=0.9, low=0.7, high=1.0, n=3, n_clusters=3)
        """
        return replace(self, low=max(self.low, 0.0), high=min(self.high, 1.0)) if self.known else self

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON, which knows no NaN.

        Example:
            >>> Interval(0.5, math.nan, math.nan, 3, 1).as_dict()
            {'estimate': 0.5, 'low': None, 'high': None, 'n': 3, 'n_clusters': 1}
        """
        low, high = (self.low, self.high) if self.known else (None, None)
        return {"estimate": self.estimate, "low": low, "high": high, "n": self.n, "n_clusters": self.n_clusters}


def cluster_bootstrap(
    values: Numbers,
    clusters: Clusters | None = None,
    *,
    statistic: Statistic = "mean",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a mean, resampling whole clusters.

    Args:
        values: One number a row, shape `(N,)`.
        clusters: The cluster of each row, usually its prompt's key; each row its own if absent.
        statistic: `mean` over rows (a big cluster counts for more), or `cluster_mean`, where every cluster counts once.
        n_resamples: Bootstrap resamples.
        level: Coverage of the interval, in (0, 1).
        seed: Seed of the resampling.

    Returns:
        The interval; its ends are NaN if there is only one cluster, or if so few resamples have none beyond ends of that level.

    Raises:
        EvaluationError: If there are no values, one is not finite, the lengths differ, or `level` is not in (0, 1).

    Example:
        >>> interval = cluster_bootstrap([1, 1, 0, 1, 0, 1], ["a", "a", "b", "b", "c", "d"])
        >>> round(interval.estimate, 3), interval.n, interval.n_clusters, interval.low < interval.estimate < interval.high
        (0.667, 6, 4, True)

    Reference:
        Davison and Hinkley, Bootstrap Methods and their Application, section 3.8.
    """
    values_N1 = finite(values, "values")[:, None]
    return cluster_bootstrap_columns(values_N1, clusters, statistic=statistic, n_resamples=n_resamples, level=level, seed=seed)[0]


def cluster_bootstrap_columns(
    values_NM: Numbers,
    clusters: Clusters | None = None,
    *,
    statistic: Statistic = "mean",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """`cluster_bootstrap` of several columns under the same resamples, so that their intervals can be read side by side.

    Args:
        values_NM: Rows by columns.
        clusters: As in `cluster_bootstrap`.
        statistic: As in `cluster_bootstrap`.
        n_resamples: Bootstrap resamples.
        level: Coverage of each interval.
        seed: Seed of the resampling.

    Returns:
        One interval a column.

    Raises:
        EvaluationError: As `cluster_bootstrap`.

    Example:
        >>> low, high = cluster_bootstrap_columns([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]])
        >>> low.estimate, high.estimate, round(high.low - low.low, 6)
        (1.0, 11.0, 10.0)
    """
    values_NM = finite(values_NM, "values")
    if not 0.0 < level < 1.0:
        raise EvaluationError(f"level={level} is no coverage; expected a number in (0, 1), for example 0.95.")
    index_N, n_clusters = cluster_index(clusters, len(values_NM))
    if clusters is not None:
        same_length(values_NM, clusters, "values and clusters")
    size_C = np.bincount(index_N, minlength=n_clusters).astype(np.float64)
    sums_CM = np.zeros((n_clusters, values_NM.shape[1]))
    np.add.at(sums_CM, index_N, values_NM)
    if statistic == "cluster_mean":
        sums_CM, size_C = sums_CM / size_C[:, None], np.ones(n_clusters)
    estimate_M = sums_CM.sum(axis=0) / size_C.sum()
    if n_clusters == 1 or beyond_resampling(level, n_resamples):
        ends_2M = np.full((2, len(estimate_M)), math.nan)
    else:
        means_RM = np.concatenate([w @ sums_CM / (w @ size_C)[:, None] for w in resample_weights(n_clusters, n_resamples, seed)])
        ends_2M = np.quantile(means_RM, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(float(e), float(low), float(high), len(values_NM), n_clusters)
        for e, low, high in zip(estimate_M, ends_2M[0], ends_2M[1], strict=True)
    ]


def paired_difference(
    a: Numbers,
    b: Numbers,
    clusters: Clusters | None = None,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of `a - b` where both were measured on the same rows.

    Args:
        a: One number a row.
        b: The other system's number on the same row.
        clusters: The cluster of each row.
        n_resamples: Bootstrap resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        The interval; `a` is better than `b` at this level where it lies above 0.

    Raises:
        EvaluationError: If the rows differ in number, or a value is not finite.

    Example:
        >>> paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
        Interval(estimate=0.5, low=0.5, high=0.5, n=3, n_clusters=3)
    """
    a_N, b_N = finite(a, "values of a"), finite(b, "values of b")
    same_length(a_N, b_N, "a and b")
    return cluster_bootstrap(a_N - b_N, clusters, n_resamples=n_resamples, level=level, seed=seed)


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion: honest at 0 and 1, where the bootstrap claims certainty.

    Args:
        successes: How many of the n succeeded; halves (ties) are allowed.
        n: Independent trials.
        level: Coverage of the interval.

    Returns:
        The interval, inside [0, 1].

    Raises:
        EvaluationError: If `n` is not positive or `successes` is not in [0, n].

    Example:
        >>> interval = wilson(10, 10)
        >>> round(interval.low, 3), interval.high
        (0.722, 1.0)

    Reference:
        Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, 2001, eq. 4.
    """
    if n < 1 or not 0 <= successes <= n:
        raise EvaluationError(f"{successes} successes of {n} trials; expected 0 <= successes <= n and n >= 1. Check what was counted.")
    z = float(stats.norm.ppf((1 + level) / 2))
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n, n)


def seed_interval(values: Sequence[float] | FloatArray, *, level: float = 0.95) -> Interval:
    """Mean over training seeds with Student's t interval: with three seeds the bootstrap is far too narrow.

    Args:
        values: One number a seed.
        level: Coverage of the interval.

    Returns:
        The interval; its ends are NaN for one seed.

    Raises:
        EvaluationError: If there are no values or one is not finite.

    Example:
        >>> interval = seed_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
        (-0.484, 2.0, 4.484)
    """
    array = finite(values, "values over seeds")
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, 1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, n)


def cluster_index(clusters: Clusters | None, n_rows: int) -> tuple[npt.NDArray[np.intp], int]:
    """Clusters numbered from 0 in order of appearance, and how many there are.

    Example:
        >>> cluster_index(["b", "a", "b"], 3)
        (array([0, 1, 0]), 2)
    """
    if clusters is None:
        return np.arange(n_rows), n_rows
    numbers: dict[Hashable, int] = {}
    index = np.fromiter((numbers.setdefault(c, len(numbers)) for c in clusters), dtype=np.intp, count=len(clusters))
    return index, len(numbers)


def beyond_resampling(level: float, n_resamples: int) -> bool:
    """Whether an interval's ends lie where not even one resample is expected, so that the resamples' range would pass for them.

    Example:
        >>> beyond_resampling(0.95, 2000), beyond_resampling(0.9999, 2000)
        (False, True)
    """
    return (1 - level) / 2 * n_resamples < 1


def resample_weights(n_clusters: int, n_resamples: int, seed: int) -> Iterator[FloatArray]:
    """Multinomial weights, shape `(r, C)` with r so small that a block stays within memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS_AT_ONCE // n_clusters)
    for start in range(0, n_resamples, rows):
        r = min(rows, n_resamples - start)
        drawn = generator.integers(0, n_clusters, size=(r, n_clusters), dtype=np.int64)
        drawn += np.arange(r, dtype=np.int64)[:, None] * n_clusters
        yield np.bincount(drawn.ravel(), minlength=r * n_clusters).reshape(r, n_clusters).astype(np.float64)
