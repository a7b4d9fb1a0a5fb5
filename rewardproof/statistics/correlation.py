"""Correlations that refuse what would come out as NaN."""

from __future__ import annotations

import numpy as np
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics.bootstrap import Clusters, cluster_index
from rewardproof.statistics.checks import FloatArray, Numbers, finite, same_length


def pearson(x: Numbers, y: Numbers) -> float:
    """Linear correlation.

    Args:
        x: One number a row.
        y: The other number of the row.

    Returns:
        A number in [-1, 1].

    Raises:
        EvaluationError: If a value is not finite, lengths differ, there are fewer than two rows, or a column is constant.

    Example:
        >>> round(pearson([1, 2, 3], [2, 4, 7]), 3)
        0.993
    """
    x_N, y_N = _columns(x, y)
    return float(np.clip(np.corrcoef(x_N, y_N)[0, 1], -1.0, 1.0))


def spearman(x: Numbers, y: Numbers) -> float:
    """Correlation of ranks; any monotone relation gives 1 or -1.

    Args:
        x: One number a row.
        y: The other number of the row.

    Returns:
        A number in [-1, 1].

    Raises:
        EvaluationError: As `pearson`.

    Example:
        >>> round(spearman([1, 2, 3], [1, 10, 100]), 6)
        1.0
    """
    x_N, y_N = _columns(x, y)
    return pearson(stats.rankdata(x_N), stats.rankdata(y_N))


def kendall(x: Numbers, y: Numbers) -> float:
    r"""Kendall's rank correlation with ties, :math:`\tau_b`: agreeing less disagreeing pairs, over the geometric mean of untied ones.

    .. math:: \tau_b = \frac{P - Q}{\sqrt{(P + Q + X)(P + Q + Y)}}

    where :math:`X` and :math:`Y` pairs are tied in one of the two alone.

    Args:
        x: One number a row.
        y: The other number of the row.

    Returns:
        A number in [-1, 1].

    Raises:
        EvaluationError: As `pearson`.

    Example:
        >>> round(kendall([1, 2, 3, 4], [1, 3, 2, 4]), 4), round(kendall([1, 2, 2], [1, 2, 3]), 4)
        (0.6667, 0.8165)

    Reference:
        Kendall, The Treatment of Ties in Ranking Problems, Biometrika 33, 1945.
    """
    x_N, y_N = _columns(x, y)
    return float(stats.kendalltau(x_N, y_N, variant="b").statistic)  # pyright: ignore[reportAttributeAccessIssue]


def is_constant(values: Numbers) -> bool:
    """Whether all values are the same to rounding, so that no correlation with them is defined.

    Example:
        >>> is_constant([0.1, 0.1]), is_constant([0.1, 0.2]), is_constant([3.0])
        (True, False, True)
    """
    values_N = np.asarray(values, dtype=np.float64)
    return bool(np.ptp(values_N) <= 1e-12 * np.abs(values_N).max())


def within_cluster_correlation(x: Numbers, y: Numbers, clusters: Clusters) -> float:
    """Linear correlation after each cluster's means are taken off: what is left once prompts are the same.

    Args:
        x: One number a row, for example a reward.
        y: The other number of the row, for example the answer's length.
        clusters: The cluster of each row, for example its prompt.

    Returns:
        A number in [-1, 1].

    Raises:
        EvaluationError: As `pearson`; also where x or y varies between clusters only.

    Example:
        >>> round(within_cluster_correlation([1, 2, 11, 12], [5, 6, 1, 2], ["a", "a", "b", "b"]), 6)
        1.0
    """
    x_N, y_N = finite(x, "x values"), finite(y, "y values")
    same_length(x_N, clusters, "values and clusters")
    index_N, n_clusters = cluster_index(clusters, len(x_N))
    return pearson(centre_within(x_N, index_N, n_clusters), centre_within(y_N, index_N, n_clusters))


def centre_within(values_N: FloatArray, index_N: np.ndarray, n_clusters: int) -> FloatArray:
    """The values less their cluster's mean.

    Example:
        >>> centre_within(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 2)
        array([-1.,  1.,  0.])
    """
    size_C = np.bincount(index_N, minlength=n_clusters)
    return values_N - (np.bincount(index_N, weights=values_N, minlength=n_clusters) / size_C)[index_N]


def _columns(x: Numbers, y: Numbers) -> tuple[FloatArray, FloatArray]:
    x_N, y_N = finite(x, "x values"), finite(y, "y values")
    same_length(x_N, y_N, "x and y")
    for name, values in (("x", x_N), ("y", y_N)):
        if is_constant(values):
            raise EvaluationError(
                f"{name} is constant over {len(values)} rows; expected at least two different values. "
                "A correlation with a constant is undefined, not 0: report it as absent."
            )
    return x_N, y_N
