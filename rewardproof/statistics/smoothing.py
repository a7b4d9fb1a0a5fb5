"""Smoothing a curve that was measured at uneven places: local lines."""

# E measured places, G places of the curve.
from __future__ import annotations

import numpy as np

from rewardproof.statistics.checks import FloatArray

RIDGE = 1e-9
ONE_PLACE = 0.5
"""Places closer than this share of the bandwidth count as one: between them no slope can be told from noise."""


def local_linear(places_E: FloatArray, grid_G: FloatArray, bandwidth: float) -> FloatArray:
    """Weights `(G, E)` with which measured values give the curve's.

    At each place of the grid the curve has the height of a line that is fitted to all values by weighted least squares, near ones counting
    most (Gaussian kernel); values on a line are given back as they are.

    Args:
        places_E: Where values were measured.
        grid_G: Where they are wanted.
        bandwidth: Standard deviation of the kernel; it is widened where it would hold fewer than two places that differ.

    Example:
        >>> weights = local_linear(np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0]), 0.5)
        >>> (weights @ np.array([1.0, 3.0, 7.0])).round(6).tolist(), weights.sum(axis=1).round(6).tolist()
        ([1.0, 5.0], [1.0, 1.0])

    Reference:
        Fan and Gijbels, Local Polynomial Modelling, 1996, section 2.3.
    """
    places_E, grid_G = np.asarray(places_E, dtype=np.float64), np.asarray(grid_G, dtype=np.float64)
    rows = []
    for place in grid_G:
        gap_E = places_E - place
        width = max(bandwidth, _second_nearest(places_E, place, ONE_PLACE * bandwidth) / 2, 1e-12)
        kernel_E = np.exp(-0.5 * (gap_E / width) ** 2)
        design_E2 = np.stack((np.ones_like(gap_E), gap_E / width), axis=1)
        normal = design_E2.T @ (kernel_E[:, None] * design_E2)
        # Where all values were measured at one place no slope is known: the ridge leaves it 0.
        rows.append(np.linalg.solve(normal + np.diag([0.0, RIDGE * normal[0, 0]]), design_E2.T * kernel_E)[0])
    return np.stack(rows)


def _second_nearest(places_E: FloatArray, place: float, apart: float) -> float:
    """Distance to the second nearest of the places that are apart from each other; to the nearest where all are together."""
    distinct: list[float] = []
    for found in sorted(places_E.tolist()):
        if not distinct or found - distinct[-1] > apart:
            distinct.append(found)
    gaps = sorted(abs(found - place) for found in distinct)
    return gaps[min(1, len(gaps) - 1)]
