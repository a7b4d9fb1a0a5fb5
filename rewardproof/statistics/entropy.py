"""How evenly something is shared out: among experts, among answers."""

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
