"""Intervals of a mean over training seeds and prompts, both drawn at random and crossed: a prompt can be held out under several seeds."""

# Shapes: N rows, C clusters (seeds, prompts, or pairs of both).

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics.bootstrap import Clusters, Interval, cluster_index
from rewardproof.statistics.checks import FloatArray, Numbers, finite, same_length


def crossed_interval(values: Numbers, seeds: Clusters, prompts: Clusters, *, level: float = 0.95) -> Interval:
    """Mean in which every seed counts once, with an interval for other seeds and other prompts alike.

    The variance is that over seeds plus that over prompts less that over both, which each of them holds:
    `V = max(V_seeds − V_both, 0) + V_prompts`, with Student's quantile at Satterthwaite's degrees of freedom over the three mean squares,
    since few seeds say little of their own spread (a bootstrap of three seeds is far too narrow). Three seeds that happen to agree are no
    proof that seeds do not matter: the interval stays wide then, and covers more often than it says. With one seed only the prompts are
    counted. For a paired comparison, pass differences on the same rows.

    Args:
        values: One number a row, shape `(N,)`.
        seeds: The training seed of each row.
        prompts: The prompt of each row; equal under all seeds that hold it out.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The interval; `n_clusters` counts the prompts. Its ends are NaN where all rows are of one prompt.

    Raises:
        EvaluationError: If there are no values, one is not finite, the lengths differ, or `level` is not in (0, 1).

    Example:
        >>> interval = crossed_interval([1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1], ["a", "b", "c", "a", "b", "d"])
        >>> round(interval.estimate, 3), interval.n, interval.n_clusters
        (0.667, 6, 4)

    Reference:
        Cameron, Gelbach and Miller, Robust Inference with Multiway Clustering, 2011, eq. 2.11; Satterthwaite, 1946.
    """
    values_N = finite(values, "values")
    if not 0.0 < level < 1.0:
        raise EvaluationError(f"level={level} is no coverage; expected a number in (0, 1), for example 0.95.")
    same_length(values_N, seeds, "values and seeds")
    same_length(values_N, prompts, "values and prompts")
    seed_N, n_seeds = cluster_index(seeds, len(values_N))
    prompt_N, n_prompts = cluster_index(prompts, len(values_N))
    weight_N = 1.0 / (n_seeds * np.bincount(seed_N)[seed_N])
    estimate = float(weight_N @ values_N)
    if n_prompts == 1:
        return Interval(estimate, math.nan, math.nan, len(values_N), 1)
    residual_N = weight_N * (values_N - estimate)
    both_N, _ = cluster_index(list(zip(seed_N.tolist(), prompt_N.tolist(), strict=True)), len(values_N))
    over_prompts = n_prompts / (n_prompts - 1) * _square_sum(residual_N, prompt_N)
    over_seeds, over_both = 0.0, _square_sum(residual_N, both_N)
    if n_seeds > 1:
        over_seeds = n_seeds / (n_seeds - 1) * _square_sum(residual_N, seed_N)
    variance = max(over_seeds - over_both, 0.0) + over_prompts
    if variance == 0:
        return Interval(estimate, estimate, estimate, len(values_N), n_prompts)
    squares = over_prompts**2 / (n_prompts - 1)
    if n_seeds > 1:
        squares += over_seeds**2 / (n_seeds - 1) + over_both**2 / max(len(values_N) - n_seeds, 1)
    freedom = min(max(variance**2 / squares, n_seeds - 1.0), len(values_N) - 1.0)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half, len(values_N), n_prompts)


def _square_sum(residual_N: FloatArray, cluster_N: np.ndarray) -> float:
    """Sum over clusters of the squared sum of their residuals."""
    return float((np.bincount(cluster_N, weights=residual_N) ** 2).sum())
