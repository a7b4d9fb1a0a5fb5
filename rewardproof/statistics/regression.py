"""Slopes of linear regression, within clusters where these have several rows, with intervals that resample whole clusters."""

# Shapes: N rows, K regressors, C clusters, R resamples.

from __future__ import annotations

import math

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.bootstrap import Clusters, Interval, beyond_resampling, cluster_index, resample_weights
from rewardproof.statistics.checks import FloatArray, Numbers, finite, same_length
from rewardproof.statistics.correlation import centre_within


def cluster_slopes(
    y: Numbers, x_NK: Numbers, clusters: Clusters, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    r"""Least-squares slopes of y on several regressors together, with percentile intervals over clusters.

    .. math:: \hat\beta = \Big(\sum_c \tilde X_c^\top \tilde X_c\Big)^{-1} \sum_c \tilde X_c^\top \tilde y_c

    where :math:`\tilde{}` takes off the cluster's mean, so that what clusters differ in does not count; where every cluster has one row,
    the mean of all.

    Args:
        y: One number a row.
        x_NK: Regressors, a column each.
        clusters: The cluster of each row.
        n_resamples: Bootstrap resamples of clusters.
        level: Coverage of each interval.
        seed: Seed of the resampling.

    Returns:
        One interval a regressor. Its ends are NaN as of `cluster_bootstrap`, or where resamples lose what the regressor varies by.

    Raises:
        EvaluationError: Numbers that are not finite, of different lengths, or regressors that do not vary by themselves.

    Example:
        >>> rows = [[1.0], [2.0], [1.0], [3.0]]
        >>> [round(slope.estimate, 6) for slope in cluster_slopes([1.0, 3.0, 5.0, 9.0], rows, ["a", "a", "b", "b"])]
        [2.0]
    """
    y_N, x_NK = finite(y, "y values"), finite(x_NK, "regressors")
    same_length(y_N, x_NK, "y and regressors")
    same_length(y_N, clusters, "values and clusters")
    index_N, n_clusters = cluster_index(clusters, len(y_N))
    y_N, x_NK = _centred(y_N[:, None], clusters)[:, 0], _centred(x_NK, clusters)
    n_regressors = x_NK.shape[1]
    if np.linalg.matrix_rank(x_NK) < n_regressors:
        raise EvaluationError(
            f"{n_regressors} regressors over {len(y_N)} rows do not vary by themselves; expected columns of which none is constant within "
            "clusters or made of the others: such a slope could be anything. Leave the column out."
        )
    squares_CKK, products_CK = np.zeros((n_clusters, n_regressors, n_regressors)), np.zeros((n_clusters, n_regressors))
    np.add.at(squares_CKK, index_N, x_NK[:, :, None] * x_NK[:, None, :])
    np.add.at(products_CK, index_N, x_NK * y_N[:, None])
    estimate_K = np.linalg.solve(squares_CKK.sum(axis=0), products_CK.sum(axis=0))
    ends_2K = np.full((2, n_regressors), math.nan)
    if n_clusters > 1 and not beyond_resampling(level, n_resamples):
        slopes_RK = np.concatenate([_solved(w, squares_CKK, products_CK) for w in resample_weights(n_clusters, n_resamples, seed)])
        known_K = np.isfinite(slopes_RK).mean(axis=0) > (1 + level) / 2
        ends_2K[:, known_K] = np.nanquantile(slopes_RK[:, known_K], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(float(slope), float(low), float(high), len(y_N), n_clusters)
        for slope, low, high in zip(estimate_K, ends_2K[0], ends_2K[1], strict=True)
    ]


def determined(x_NK: Numbers, clusters: Clusters) -> bool:
    """Whether regressors vary enough, within clusters where these have several rows, for each to have a slope of its own.

    Example:
        >>> determined([[1.0], [2.0]], ["a", "a"]), determined([[1.0], [1.0], [2.0]], ["a", "a", "b"])
        (True, False)
    """
    centred_NK = _centred(finite(x_NK, "regressors"), clusters)
    return int(np.linalg.matrix_rank(centred_NK)) == centred_NK.shape[1]


def _centred(x_NK: FloatArray, clusters: Clusters) -> FloatArray:
    """Columns less their cluster's mean; less their own where every cluster has one row."""
    index_N, n_clusters = cluster_index(clusters, len(x_NK))
    if n_clusters == len(x_NK):
        return x_NK - x_NK.mean(axis=0)
    return np.stack([centre_within(x_N, index_N, n_clusters) for x_N in x_NK.T], axis=1)


def _solved(weight_RC: FloatArray, squares_CKK: FloatArray, products_CK: FloatArray) -> FloatArray:
    """Slopes of each resample; NaN where its clusters do not determine them."""
    squares_RKK = np.tensordot(weight_RC, squares_CKK, axes=1)
    products_RK = weight_RC @ products_CK
    determined_R = np.linalg.matrix_rank(squares_RKK, hermitian=True) == squares_RKK.shape[-1]
    slopes_RK = np.full(products_RK.shape, math.nan)
    slopes_RK[determined_R] = np.linalg.solve(squares_RKK[determined_R], products_RK[determined_R][:, :, None])[:, :, 0]
    return slopes_RK
