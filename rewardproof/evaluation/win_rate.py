"""How often one policy's answers beat another's to the same prompts, by a gold that judges each answer alone."""

# Shapes: … any (runs, prompts), K and J answers.

from __future__ import annotations

from rewardproof.statistics.checks import FloatArray


def win_rate(gold_K: FloatArray, other_J: FloatArray) -> FloatArray:
    """Share of the pairs, an answer of each, that the first wins; a tie is half a win for both.

    A gold that judges answers one by one has no order of presentation, so both orders are one: what one side wins the other loses.

    Args:
        gold_K: Gold of one policy's answers, shape `(…, K)`.
        other_J: Of the other's, shape `(…, J)`.

    Returns:
        Shape `(…)`; with both sides exchanged it is 1 less this.

    Example:
        >>> import numpy as np
        >>> float(win_rate(np.array([1.0, 0.0]), np.array([0.0, 0.0])))
        0.75
    """
    gap_KJ = gold_K[..., :, None] - other_J[..., None, :]
    return ((gap_KJ > 0) + 0.5 * (gap_KJ == 0)).mean(axis=(-1, -2))
