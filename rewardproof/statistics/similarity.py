"""How alike vectors are, within two kinds of them and across, where those of one prompt are never compared."""

# Shapes: N vectors, D width, C clusters (prompts), R resamples.

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.bootstrap import Clusters, Interval, cluster_index
from rewardproof.statistics.checks import FloatArray, same_length


class KindSimilarity(NamedTuple):
    """Mean cosine similarity of two vectors of different prompts, with its interval over prompts.

    Attributes:
        marked: Both are marked.
        others: Neither is.
        across: One is.
    """

    marked: Interval
    others: Interval
    across: Interval


def kind_similarity(
    vectors_ND: FloatArray, marked_N: FloatArray, clusters: Clusters, *, n_resamples: int = 1000, seed: int = 0
) -> KindSimilarity:
    r"""Mean cosine similarity within and across two kinds of vectors.

    .. math:: \frac{\sum_{c \neq c'} m_c m_{c'} \sum_{i \in c, j \in c'} a_i b_j \cos(x_i, x_j)}
                   {\sum_{c \neq c'} m_c m_{c'} \sum_{i \in c, j \in c'} a_i b_j}

    with indicators a and b of the two kinds; m is 1, and in a resample how often a prompt was drawn.

    Args:
        vectors_ND: One vector a row.
        marked_N: Which of them are of the first kind.
        clusters: The prompt of each.
        n_resamples: Resamples of the prompts.
        seed: Of the resampling.

    Returns:
        Percentile intervals; NaN where a kind has no two vectors of different prompts.

    Raises:
        EvaluationError: The lengths differ, or a vector is zero or not finite.

    Example:
        >>> found = kind_similarity(np.array([[1.0, 0], [1, 0], [0, 1], [0, 2]]), np.array([1, 1, 0, 0]), ["a", "b", "a", "b"])
        >>> [float(one.estimate) for one in found]
        [1.0, 1.0, 0.0]
    """
    same_length(vectors_ND, marked_N, "vectors and marks")
    same_length(vectors_ND, clusters, "vectors and prompts")
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    if not np.isfinite(length_N1).all() or not (length_N1 > 0).all():
        raise EvaluationError("Got a vector that is zero or not finite, expected directions to compare; check the model that made them.")
    cluster_N, count = cluster_index(clusters, len(vectors_ND))
    cosine_NN = (vectors_ND / length_N1) @ (vectors_ND / length_N1).T
    member_CN = (np.arange(count)[:, None] == cluster_N).astype(np.float64)
    drawn_RC = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n_resamples).astype(np.float64)
    first_CN = member_CN * np.asarray(marked_N, dtype=np.float64)
    second_CN = member_CN - first_CN
    return KindSimilarity(
        marked=_interval(first_CN, first_CN, cosine_NN, drawn_RC),
        others=_interval(second_CN, second_CN, cosine_NN, drawn_RC),
        across=_interval(first_CN, second_CN, cosine_NN, drawn_RC),
    )


def _interval(one_CN: FloatArray, other_CN: FloatArray, cosine_NN: FloatArray, drawn_RC: FloatArray) -> Interval:
    """The mean of one vector of each kind; within a kind every pair is met twice, which leaves the mean what it is."""
    apart_CC = 1.0 - np.eye(len(one_CN))
    sum_CC = apart_CC * (one_CN @ cosine_NN @ other_CN.T)
    pairs_CC = apart_CC * np.outer(one_CN.sum(axis=1), other_CN.sum(axis=1))
    n_clusters = int(((pairs_CC.sum(axis=0) + pairs_CC.sum(axis=1)) > 0).sum())
    if not n_clusters:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    pairs_R = np.einsum("rc,cd,rd->r", drawn_RC, pairs_CC, drawn_RC)
    sums_R = np.einsum("rc,cd,rd->r", drawn_RC, sum_CC, drawn_RC)
    low, high = np.percentile(sums_R[pairs_R > 0] / pairs_R[pairs_R > 0], [2.5, 97.5])
    n_pairs = int(pairs_CC.sum()) // (2 if one_CN is other_CN else 1)
    return Interval(float(sum_CC.sum() / pairs_CC.sum()), float(low), float(high), n_pairs, n_clusters)
