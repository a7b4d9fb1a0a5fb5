"""Surfaces equal polynomials that they are fitted to; densities integrate to one; what cannot be fitted is refused."""

from __future__ import annotations

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import Surface, density


@pytest.mark.parametrize("degree", [1, 3, 10])
def test_a_polynomial_is_found_again(degree: int) -> None:
    draw = np.random.default_rng(0)
    points = draw.uniform([0.1, -3], [0.6, 5], size=(200, 2))
    x, y = (points / [0.6, 5]).T
    values = x**degree - 0.5 * x * y ** (degree - 1) + 0.2
    surface = Surface.fitted(points, values, degree=degree)
    places = draw.uniform([0.1, -3], [0.6, 5], size=(50, 2))
    x, y = (places / [0.6, 5]).T
    assert surface.at(places) == pytest.approx(x**degree - 0.5 * x * y ** (degree - 1) + 0.2, abs=1e-6)
    assert surface.residual < 1e-6
    assert len(surface.coefficients_F) == (degree + 1) * (degree + 2) / 2


def test_the_grid_spans_the_points() -> None:
    points = np.random.default_rng(1).normal(size=(30, 3))
    grid = Surface.fitted(points, points.sum(axis=1), degree=1).grid()
    assert grid.min(axis=0) == pytest.approx(points.min(axis=0))
    assert grid.max(axis=0) == pytest.approx(points.max(axis=0))
    assert len(np.unique(grid, axis=0)) == len(grid)


def test_a_density_integrates_to_one_however_many_points_there_are() -> None:
    draw = np.random.default_rng(2)
    axis = np.linspace(-6, 6, 121)
    places = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for count in (20, 500):
        assert density(draw.normal(size=(count, 2)), places).sum() * 0.1**2 == pytest.approx(1, abs=1e-2)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(EvaluationError, match="Got 10 points for a surface of degree 10 in 2 coordinates, expected at least 66"):
        Surface.fitted(np.random.default_rng(0).normal(size=(10, 2)), np.zeros(10), degree=10)


def test_a_coordinate_that_never_varies_is_refused() -> None:
    points = np.random.default_rng(0).normal(size=(10, 2)) * [1, 0] + [0, 0.5]
    with pytest.raises(EvaluationError, match=r"Coordinate 1 is 0\.5 in all 10 points"):
        Surface.fitted(points, np.zeros(10), degree=1)


def test_points_in_a_plane_have_no_density() -> None:
    line = np.linspace(0, 1, 9)
    with pytest.raises(EvaluationError, match="lie in a plane together"):
        density(np.stack([line, 2 * line], axis=1), np.zeros((1, 2)))
