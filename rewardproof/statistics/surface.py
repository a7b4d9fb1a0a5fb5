"""A polynomial surface through scattered points, and how densely points lie anywhere: where such a surface may be believed."""

# M points, N coordinates, F terms of the polynomial, Q points asked about.
from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import comb

import numpy as np
from numpy.polynomial import chebyshev
from scipy.stats import gaussian_kde

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray, Numbers, finite, same_length

CANDIDATES = 40_000
"""Points of a grid, at most."""


@dataclass(frozen=True, slots=True)
class Surface:
    """A polynomial in N coordinates, with the range that it was fitted on.

    Attributes:
        low_N: Least of each coordinate.
        high_N: Largest.
        powers_FN: Exponents of each term.
        coefficients_F: Weights of the terms.
        residual: Root of the mean squared distance of the values from the surface.
    """

    low_N: FloatArray
    high_N: FloatArray
    powers_FN: FloatArray
    coefficients_F: FloatArray
    residual: float

    @classmethod
    def fitted(cls, points_MN: Numbers, values_M: Numbers, *, degree: int) -> Surface:
        """The least-squares surface whose terms have at most this total degree, in Chebyshev polynomials over the points' range.

        Args:
            points_MN: Where values are known.
            values_M: The values.
            degree: Largest sum of a term's exponents.

        Raises:
            EvaluationError: There are fewer points than terms, or a coordinate is the same everywhere.

        Example:
            >>> x = np.linspace(0, 1, 20)
            >>> surface = Surface.fitted(x[:, None], 3 * x**2 - x, degree=2)
            >>> surface.at(np.array([[0.5]])).round(6)
            array([0.25])
        """
        points, values = finite(points_MN, "coordinates"), finite(values_M, "values")
        same_length(points, values, "points and values")
        terms = comb(degree + points.shape[1], degree)
        if len(points) < terms:
            raise EvaluationError(
                f"Got {len(points)} points for a surface of degree {degree} in {points.shape[1]} coordinates, expected at least {terms}, "
                "one a term: with fewer it goes through every point and says nothing between them. Lower degree, or give more points."
            )
        low_N, high_N = points.min(axis=0), points.max(axis=0)
        if (high_N <= low_N).any():
            place = int(np.flatnonzero(high_N <= low_N)[0])
            raise EvaluationError(
                f"Coordinate {place} is {low_N[place]:g} in all {len(points)} points, expected one that varies: nothing can be learnt of "
                "what it does. Leave it out, or give points where it differs."
            )
        powers = np.array([one for one in product(range(degree + 1), repeat=points.shape[1]) if sum(one) <= degree], dtype=np.float64)
        empty = cls(low_N, high_N, powers, np.zeros(len(powers)), 0.0)
        terms_MF = empty._terms(points)
        coefficients_F = np.linalg.lstsq(terms_MF, values, rcond=None)[0].astype(np.float64)
        residual = float(np.sqrt(np.mean((terms_MF @ coefficients_F - values) ** 2)))
        return cls(low_N, high_N, powers, coefficients_F, residual)

    def at(self, points_QN: FloatArray) -> FloatArray:
        """Its height at points, shape `(Q,)`."""
        return self._terms(points_QN) @ self.coefficients_F

    def grid(self) -> FloatArray:
        """Points evenly over its range, as many along every coordinate, shape `(Q, N)`."""
        count = max(2, int(CANDIDATES ** (1 / len(self.low_N))))
        axes = [np.linspace(low, high, min(count, 1001)) for low, high in zip(self.low_N, self.high_N, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))

    def _terms(self, points_QN: FloatArray) -> FloatArray:
        scaled_QN = 2 * (points_QN - self.low_N) / (self.high_N - self.low_N) - 1
        degree = int(self.powers_FN.max())
        single_QND = chebyshev.chebvander(scaled_QN, degree)
        columns = np.arange(len(self.low_N))
        return np.stack([single_QND[:, columns, powers_N.astype(int)].prod(axis=1) for powers_N in self.powers_FN], axis=1)


def density(points_MN: FloatArray, where_QN: FloatArray) -> FloatArray:
    """Gaussian kernel density of points, their number not counted, per unit of every coordinate, shape `(Q,)`.

    Raises:
        EvaluationError: The points lie in a plane, so that they have no density.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(4000, 1))
        >>> bool(abs(density(points, np.array([[0.0]]))[0] - 0.39) < 0.02)
        True
    """
    points, where = finite(points_MN, "points"), finite(where_QN, "places")
    standard_MN = (points - points.mean(axis=0)) / np.where(points.std(axis=0) > 0, points.std(axis=0), 1.0)
    if np.linalg.matrix_rank(standard_MN, tol=1e-6) < points.shape[1]:
        raise EvaluationError(
            f"Got {len(points)} points in {points.shape[1]} coordinates that lie in a plane together, expected more, or coordinates that "
            "do not determine each other: their density is nowhere finite. Leave a coordinate out, or give more points."
        )
    return gaussian_kde(points.T)(where.T)
