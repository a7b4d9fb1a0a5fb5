"""What the best of n answers would score, from one pool of N answers a prompt: no resampling, no variance beyond the pool's own."""

# Shapes: P prompts, N answers in a prompt's pool, L values of n.

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray, Numbers, finite


def best_of_n_weights(pool: int, ns: Sequence[int]) -> FloatArray:
    r"""Probability that the i-th worst of the pool is the best of n drawn without replacement.

    .. math:: \binom{i-1}{n-1} \Big/ \binom{N}{n}, \quad i = 1 \ldots N

    Args:
        pool: N, the answers in the pool.
        ns: Values of n, each in [1, N].

    Returns:
        Weights, shape `(L, N)`; each row sums to 1.

    Raises:
        EvaluationError: If an n is not in [1, N].

    Example:
        >>> best_of_n_weights(4, [1, 2]).round(4).tolist()
        [[0.25, 0.25, 0.25, 0.25], [0.0, 0.1667, 0.3333, 0.5]]

    Reference:
        Nakano et al., WebGPT, arXiv:2112.09332, appendix I.
    """
    n_L1 = np.asarray(ns, dtype=np.float64)[:, None]
    if n_L1.size == 0 or n_L1.min() < 1 or n_L1.max() > pool:
        raise EvaluationError(f"n={list(ns)} with a pool of {pool} answers; expected 1 <= n <= {pool}. Draw a larger pool or lower n.")
    rank_N = np.arange(1, pool + 1, dtype=np.float64)[None, :]
    reachable_LN = rank_N >= n_L1
    log_LN = _log_binomial(np.where(reachable_LN, rank_N - 1, n_L1 - 1), n_L1 - 1) - _log_binomial(np.float64(pool), n_L1)
    return np.where(reachable_LN, np.exp(log_LN), 0.0)


def best_of_n(proxy: Numbers, gold: Numbers, ns: Sequence[int]) -> FloatArray:
    """Expected gold score of the answer that the proxy ranks first among n drawn from the pool without replacement.

    Exact and unbiased. Answers that tie in the proxy share their gold scores, which is the expectation over breaking ties at random.

    Args:
        proxy: Scores that choose, shape `(N,)` or `(P, N)`; only their order matters.
        gold: Scores that judge, same shape; pass the proxy itself for the proxy's own curve.
        ns: Values of n, each in [1, N].

    Returns:
        Expectations, shape `(L,)` or `(P, L)`.

    Raises:
        EvaluationError: If the shapes differ, a score is not finite, or an n is not in [1, N].

    Example:
        >>> best_of_n(proxy=[0.1, 0.9, 0.5], gold=[0.0, 1.0, 5.0], ns=[1, 2, 3]).round(3).tolist()
        [2.0, 2.333, 1.0]

    Reference:
        Nakano et al., WebGPT, arXiv:2112.09332, appendix I; Coste et al., arXiv:2310.02743, eq. 7 and 8.
    """
    proxy_PN, gold_PN = finite(proxy, "proxy scores"), finite(gold, "gold scores")
    if proxy_PN.shape != gold_PN.shape:
        raise EvaluationError(
            f"proxy scores have shape {proxy_PN.shape} and gold scores {gold_PN.shape}; expected the same answers in the same order. "
            "Score one pool with both."
        )
    weights_LN = best_of_n_weights(proxy_PN.shape[-1], ns)
    if proxy_PN.ndim == 1:
        return weights_LN @ _gold_by_rank(proxy_PN, gold_PN)
    return np.stack([_gold_by_rank(p, g) for p, g in zip(proxy_PN, gold_PN, strict=True)]) @ weights_LN.T


@overload
def kl_upper_bound(n: float) -> float: ...
@overload
def kl_upper_bound(n: Sequence[int] | npt.NDArray[np.generic]) -> FloatArray: ...
def kl_upper_bound(n: float | Sequence[int] | npt.NDArray[np.generic]) -> float | FloatArray:
    r"""Upper bound of the KL divergence from the policy that best-of-n reaches, :math:`\log n - (n-1)/n`.

    Exact only where rewards never tie; with tied or binary rewards it can be far too large. Not comparable with the KL of a trained policy.

    Args:
        n: Answers drawn, one number or several.

    Returns:
        Nats, a float or an array like `n`.

    Raises:
        EvaluationError: If an n is below 1.

    Example:
        >>> kl_upper_bound(1), round(kl_upper_bound(2), 4), round(kl_upper_bound(12_500), 3)
        (0.0, 0.1931, 8.434)

    Reference:
        Beirami et al., arXiv:2401.01879, theorem 3.1.
    """
    n_L = np.asarray(n, dtype=np.float64)
    if n_L.size and n_L.min() < 1:
        raise EvaluationError(f"n={n_L.min():g} answers; expected n >= 1. One answer is the policy itself, with KL 0.")
    kl_L = np.log(n_L) - (n_L - 1) / n_L
    return float(kl_L) if kl_L.ndim == 0 else kl_L


def _gold_by_rank(proxy_N: FloatArray, gold_N: FloatArray) -> FloatArray:
    """Gold scores in ascending order of the proxy, averaged within each tie."""
    _, tie_N, size_U = np.unique(proxy_N, return_inverse=True, return_counts=True)
    mean_U = np.bincount(tie_N, weights=gold_N) / size_U
    return np.repeat(mean_U, size_U)


def _log_binomial(n: FloatArray | np.float64, k: FloatArray) -> FloatArray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
