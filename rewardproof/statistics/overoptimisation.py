"""Laws of over-optimisation: how gold rises and falls with the distance from the initial policy, fitted to a measured curve."""

# L points of a curve, R resamples.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewardproof.errors import EvaluationError

Floats = NDArray[np.float64]
Law = Literal["best_of_n", "rl"]
NEAR_ZERO = 0.3
"""The law of RL has an infinite slope at the origin and does not hold near it: closer points are left out of its fit."""

LARGEST = 700.0
"""Of the logarithm of a distance: a number holds no larger ones."""


@dataclass(frozen=True, slots=True)
class GoldLaw:
    r"""A fitted law; d is the square root of the KL divergence in nats, and gold is 0 at d = 0.

    .. math::
        \text{best\_of\_n:}\; R(d) = d\,(\alpha - \beta d) \qquad \text{rl:}\; R(d) = d\,(\alpha - \beta \log d)

    Attributes:
        law: Which of the two.
        alpha: The gain.
        beta: What over-optimisation takes; at or below 0 gold does not bend.
        r_squared: Share of gold's weighted variation about its mean that the law explains; NaN where gold does not vary.
        n_points: Points that it was fitted to.
    """

    law: Law
    alpha: float
    beta: float
    r_squared: float
    n_points: int

    def gold(self, distance_L: Floats) -> Floats:
        """Gold at distances of 0 or more."""
        return _design(np.asarray(distance_L, dtype=np.float64), self.law) @ np.array([self.alpha, self.beta])

    @property
    def peak(self) -> tuple[float, float] | None:
        """Distance and gold where gold is highest; `None` where the law never bends down within any number, or is down from the start.

        Example:
            >>> peak = GoldLaw("best_of_n", 0.5, 0.12, 1.0, 9).peak
            >>> [round(value, 3) for value in peak]
            [2.083, 0.521]
        """
        if self.beta <= 0 or (self.law == "best_of_n" and self.alpha <= 0):
            return None
        if self.law == "rl" and self.alpha / self.beta > LARGEST:
            return None
        distance = self.alpha / (2 * self.beta) if self.law == "best_of_n" else math.exp(self.alpha / self.beta - 1)
        return distance, float(self.gold(np.array([distance]))[0])


def fit_law(distance_L: Floats, gold_L: Floats, law: Law, *, weights_L: Floats | None = None) -> GoldLaw:
    """Weighted least squares; both laws are linear in their two coefficients.

    Args:
        distance_L: Square roots of KL divergences, 0 or more.
        gold_L: Gold less its value at distance 0, the same shape.
        law: Which law.
        weights_L: One over each point's variance, up to a factor; equal if absent.

    Raises:
        EvaluationError: Fewer than three points can be used, or a value is not finite.

    Example:
        >>> distance = np.array([0.5, 1.0, 2.0, 3.0])
        >>> found = fit_law(distance, distance * (0.5 - 0.1 * distance), "best_of_n")
        >>> round(found.alpha, 6), round(found.beta, 6), round(found.r_squared, 6)
        (0.5, 0.1, 1.0)

    Reference:
        Gao et al., arXiv:2210.10760.
    """
    distance_L, gold_L = np.asarray(distance_L, dtype=np.float64), np.asarray(gold_L, dtype=np.float64)
    weights_L = np.ones_like(distance_L) if weights_L is None else np.asarray(weights_L, dtype=np.float64)
    if not distance_L.shape == gold_L.shape == weights_L.shape or not np.isfinite([distance_L, gold_L, weights_L]).all():
        raise EvaluationError(
            f"Got {distance_L.shape} distances, {gold_L.shape} gold scores and {weights_L.shape} weights, expected finite numbers, one of "
            "each a point: a law is fitted to a measured curve. Correct the curve."
        )
    used_L = distance_L > (NEAR_ZERO if law == "rl" else 0.0)
    count = int(used_L.sum())
    if count < 3:
        raise EvaluationError(
            f"{count} points beyond a distance of {NEAR_ZERO if law == 'rl' else 0}, expected three or more to fit two coefficients and "
            "judge the fit. Measure more values of n, or more checkpoints."
        )
    root_L = np.sqrt(weights_L[used_L])
    design_L2 = _design(distance_L[used_L], law)
    found_2, *_ = np.linalg.lstsq(design_L2 * root_L[:, None], gold_L[used_L] * root_L, rcond=None)
    residual = float((weights_L[used_L] * (gold_L[used_L] - design_L2 @ found_2) ** 2).sum())
    mean = float(np.average(gold_L[used_L], weights=weights_L[used_L]))
    total = float((weights_L[used_L] * (gold_L[used_L] - mean) ** 2).sum())
    return GoldLaw(law, float(found_2[0]), float(found_2[1]), 1 - residual / total if total > 0 else math.nan, count)


def _design(distance_L: Floats, law: Law) -> Floats:
    if law == "best_of_n":
        return np.stack((distance_L, -(distance_L**2)), axis=1)
    logs_L = np.log(np.where(distance_L > 0, distance_L, 1.0))
    return np.stack((distance_L, -distance_L * logs_L), axis=1)
