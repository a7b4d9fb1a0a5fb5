"""Clusters of points, and a linear classifier that tells them apart: how a router learns to part prompts before any training."""

# N points, D features, K clusters.
from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from rewardproof.errors import DataError

Floats = NDArray[np.float64]


def cluster(points_ND: Floats, k: int, *, seed: int, components: int = 8, restarts: int = 8) -> NDArray[np.int64]:
    """Labels of k-means (k-means++ starts, the best of several) on whitened principal components, shape `(N,)`; no cluster is empty.

    Features are scaled to unit variance, their first components to the same variance: otherwise one direction, as the length of a text,
    decides alone.

    Args:
        points_ND: At least `k` distinct points.
        k: Number of clusters.
        seed: Of the starts.
        components: Principal components that count, at most.
        restarts: How many starts are tried.

    Raises:
        DataError: There are fewer distinct points than clusters, or a cluster stays empty from every start.

    Example:
        >>> labels = cluster(np.array([[0.0], [0.1], [5.0], [5.1]]), 2, seed=0)
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True
    """
    whitened_NC = whitened(points_ND, components)
    distinct = len(np.unique(points_ND, axis=0))
    if distinct < k:
        raise DataError(
            f"{len(points_ND)} points, {distinct} of them distinct, cannot be parted into {k} clusters, expected at least as many: "
            "a router for an empty cluster would learn nothing. Take fewer experts, or more prompts."
        )
    found: list[tuple[float, NDArray[np.int64]]] = []
    for start in range(restarts):
        with contextlib.suppress(ClusterError):  # a start that loses a cluster on the way
            centres_KC, labels_N = kmeans2(whitened_NC, k, iter=50, minit="++", rng=np.random.default_rng(seed + start), missing="raise")
            found.append((float(((whitened_NC - centres_KC[labels_N]) ** 2).sum()), labels_N.astype(np.int64)))
    if not found:
        raise DataError(
            f"None of {restarts} starts parted {len(points_ND)} points into {k} clusters, expected one that leaves none empty: "
            "a router for an empty cluster would learn nothing. Take fewer experts, or more prompts."
        )
    return min(found, key=lambda entry: entry[0])[1]


def whitened(points_ND: Floats, components: int) -> Floats:
    """Leading principal components of the features, these and those scaled to unit variance, shape `(N, C)`; constant ones fall away."""
    centred_ND = points_ND - points_ND.mean(axis=0)
    scaled_ND = centred_ND / np.maximum(centred_ND.std(axis=0), 1e-6 * np.abs(points_ND).max())
    left_NC, strengths_C, _ = np.linalg.svd(scaled_ND, full_matrices=False)
    counting = strengths_C[:components] > 1e-9 * strengths_C[0]
    return left_NC[:, :components][:, counting] * len(points_ND) ** 0.5


def softmax_regression(points_ND: Floats, labels_N: NDArray[np.int64], k: int, *, penalty: float = 1e-2) -> Floats:
    r"""Weights of the linear classifier that gives each point its label, shape `(K, D)`; its biases are carried by the points' mean.

    With :math:`\mu` the mean point, :math:`h = x - \mu\, (x \cdot \mu) / \lVert\mu\rVert^2` what is left of a point beside it, and
    :math:`\sigma` the root mean square deviation of its features,

    .. math::
        \min_{W, b} \; \frac1N \sum_n -\log \mathrm{softmax}(W h_n / \sigma + b)_{y_n} + \frac{\text{penalty}}{2} \lVert W \rVert^2

    One scale for all features: points drift while a network trains, about as far in a feature that hardly varies as in one that does, and a
    classifier that had blown up the former would follow the drift instead of the point.

    Args:
        points_ND: Points whose mean is not 0.
        labels_N: Label of each, from 0 to k - 1.
        k: Number of labels.
        penalty: On features of unit mean variance, so that it means the same for every layer.

    Example:
        >>> points = np.array([[1.0, 1.0], [1.0, -1.0]])
        >>> (points @ softmax_regression(points, np.array([0, 1]), 2).T).argmax(axis=1)
        array([0, 1])
    """
    mean_D = points_ND.mean(axis=0)
    carrier_D = mean_D / (mean_D @ mean_D)
    beside_ND = points_ND - np.outer(points_ND @ carrier_D, mean_D)
    scale = max(float(beside_ND.std()), 1e-6 * float(np.abs(points_ND).max()))
    scaled_ND = beside_ND / scale
    one_hot_NK = np.eye(k)[labels_N]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight_KD, bias_K = flat[:-k].reshape(k, -1), flat[-k:]
        logits_NK = scaled_ND @ weight_KD.T + bias_K
        value = float((logsumexp(logits_NK, axis=1) - (logits_NK * one_hot_NK).sum(axis=1)).mean())
        error_NK = (softmax(logits_NK, axis=1) - one_hot_NK) / len(scaled_ND)
        gradient = np.concatenate(((error_NK.T @ scaled_ND + penalty * weight_KD).ravel(), error_NK.sum(axis=0)))
        return value + 0.5 * penalty * float((weight_KD**2).sum()), gradient

    found = minimize(loss, np.zeros(k * points_ND.shape[1] + k), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weight_KD, bias_K = found.x[:-k].reshape(k, -1) / scale, found.x[-k:]
    return weight_KD - np.outer(weight_KD @ mean_D, carrier_D) + np.outer(bias_K, carrier_D)


def mutual_information(left_N: NDArray[np.int64], right_N: NDArray[np.int64]) -> float:
    """Mutual information of two labellings in nats; at most the smaller of their entropies.

    Example:
        >>> bool(mutual_information(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])) == np.log(2))
        True
    """
    joint = np.zeros((left_N.max() + 1, right_N.max() + 1))
    np.add.at(joint, (left_N, right_N), 1 / len(left_N))
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())
