"""How evenly something is shared out: among experts, among answers, among directions."""

from __future__ import annotations

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray, Numbers, finite


def entropy(shares: Numbers) -> FloatArray:
    """Shannon entropy along the last axis, in nats; the shares are normalised first.

    Args:
        shares: Non-negative amounts, shape `(..., E)`, with a positive sum along the last axis.

    Returns:
        Entropies, shape `(...)`.

    Raises:
        EvaluationError: If an amount is negative or not finite, or a row is all 0.

    Example:
        >>> entropy([[1.0, 1.0], [1.0, 0.0]]).round(4).tolist()
        [0.6931, 0.0]
    """
    amounts = finite(shares, "shares")
    total = amounts.sum(axis=-1, keepdims=True)
    if amounts.min() < 0 or total.min() <= 0:
        raise EvaluationError(
            f"shares run from {amounts.min():.4g} with row sums from {total.min():.4g}; expected amounts >= 0 with a positive sum. "
            "Pass counts or probabilities, not logits."
        )
    p = amounts / total
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) + 0.0


def effective_number(shares: Numbers) -> FloatArray:
    """Exponential of the entropy: how many equal shares would be as even.

    Args:
        shares: As in `entropy`.

    Returns:
        Numbers in [1, E], shape `(...)`.

    Raises:
        EvaluationError: As `entropy`.

    Example:
        >>> effective_number([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]]).round(4).tolist()
        [3.0, 1.0]
    """
    return np.exp(entropy(shares))


def effective_rank(rows: Numbers) -> float:
    r"""How many directions a set of vectors fills: the effective number of its singular values.

    .. math:: \exp\left(-\sum_i p_i \log p_i\right), \qquad p_i = \sigma_i / \sum_j \sigma_j

    Args:
        rows: One vector a row, shape `(N, D)`, not all zero; they are not centred.

    Returns:
        A number in [1, min(N, D)].

    Raises:
        EvaluationError: As `entropy`.

    Example:
        >>> round(effective_rank(np.eye(3)), 6), round(effective_rank([[1.0, 2.0], [2.0, 4.0]]), 6)
        (3.0, 1.0)

    Reference:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    return float(effective_number(np.linalg.svd(finite(rows, "rows"), compute_uv=False)))
