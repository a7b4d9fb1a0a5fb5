"""Calibration: does a stated probability of 0.8 come true 80 times in 100?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import Numbers, finite, same_length


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The rows whose probability lies in one bin; bins without rows are left out of the table.

    Attributes:
        low: Lower edge of the bin.
        high: Upper edge.
        n: Rows in it.
        weight: Their share of the total weight.
        probability: Mean stated probability.
        frequency: Mean outcome.
    """

    low: float
    high: float
    n: int
    weight: float
    probability: float
    frequency: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability table and its summary.

    Attributes:
        bins: The bins that hold rows, in order.
        error: Expected calibration error: weighted mean of |frequency - probability| over the bins, 0 to 1.
        n: Rows in all.
    """

    bins: tuple[ReliabilityBin, ...]
    error: float
    n: int


def reliability(
    probabilities: Numbers,
    outcomes: Numbers,
    *,
    bins: int = 10,
    span: tuple[float, float] = (0.0, 1.0),
    weights: Numbers | None = None,
) -> Reliability:
    """Bins of equal width: stated probability against what came true.

    Args:
        probabilities: Stated probabilities, in [0, 1].
        outcomes: 1 where it came true, 0 where not, 0.5 for a tie.
        bins: Number of bins.
        span: Range that the bins divide; (0.5, 1) for the confidence in the favoured of two.
        weights: Weight of each row, 1 if absent.

    Returns:
        The table with its expected calibration error.

    Raises:
        EvaluationError: If lengths differ, a value is not finite, or a probability or outcome is outside its range.

    Example:
        >>> table = reliability([0.9, 0.9, 0.2], [1, 0, 0])
        >>> [(b.n, round(b.probability, 3), b.frequency) for b in table.bins], round(table.error, 3)
        ([(1, 0.2, 0.0), (2, 0.9, 0.5)], 0.333)

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, eq. 3.
    """
    p, y = finite(probabilities, "probabilities"), finite(outcomes, "outcomes")
    same_length(p, y, "probabilities and outcomes")
    w = np.ones_like(p) if weights is None else finite(weights, "weights")
    same_length(p, w, "probabilities and weights")
    low, high = span
    for name, values, lowest, highest in (("probabilities", p, low, high), ("outcomes", y, 0.0, 1.0)):
        if values.min() < lowest or values.max() > highest:
            raise EvaluationError(
                f"{name} run from {values.min():.4g} to {values.max():.4g}; expected {lowest:g} to {highest:g}. "
                "Rewards are not probabilities: put the gap of two rewards through a sigmoid first."
            )
    index = np.minimum(((p - low) / (high - low) * bins).astype(int), bins - 1)
    edges = np.linspace(low, high, bins + 1)
    table: list[ReliabilityBin] = []
    for b in range(bins):
        rows = index == b
        if weight := float(w[rows].sum()):
            probability, frequency = float((w[rows] @ p[rows]) / weight), float((w[rows] @ y[rows]) / weight)
            table.append(
                ReliabilityBin(float(edges[b]), float(edges[b + 1]), int(rows.sum()), weight / float(w.sum()), probability, frequency)
            )
    return Reliability(tuple(table), sum(b.weight * abs(b.frequency - b.probability) for b in table), len(p))


def expected_calibration_error(probabilities: Numbers, outcomes: Numbers, *, bins: int = 10) -> float:
    """Mean distance between stated probability and frequency over bins of equal width; see `reliability` for the table.

    Args:
        probabilities: Stated probabilities, in [0, 1].
        outcomes: 1 where it came true, 0 where not, 0.5 for a tie.
        bins: Number of bins.

    Returns:
        A number in [0, 1]; 0 is calibrated.

    Raises:
        EvaluationError: As `reliability`.

    Example:
        >>> expected_calibration_error([1.0, 1.0, 0.0, 0.0], [1, 0, 0, 0])
        0.25
    """
    return reliability(probabilities, outcomes, bins=bins).error
