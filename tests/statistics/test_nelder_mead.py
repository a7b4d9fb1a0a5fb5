"""Nelder and Mead's search finds the summit of known functions by the published steps, however its answers come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import NelderMead
from rewardproof.statistics.nelder_mead import CONTRACTION, EXPANSION, REFLECTION, SHRINKAGE


def climbed(function: Callable[[np.ndarray], float], simplex: list[list[float]], asked: int) -> NelderMead:
    search = NelderMead(simplex)
    for _ in range(asked):
        search.tell(function(search.asked_N))
    return search


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_it_converges_to_the_maximum_of_a_concave_function(dimensions: int) -> None:
    summit = np.linspace(0.3, 1.7, dimensions)
    stretch = np.linspace(1.0, 4.0, dimensions)

    def height(point: np.ndarray) -> float:
        return -float((stretch * (point - summit) ** 2).sum())

    simplex = np.vstack([np.zeros(dimensions), 0.2 * np.eye(dimensions)]).tolist()
    found = climbed(height, simplex, 120 * dimensions)
    assert found.best.point_N == pytest.approx(summit, abs=1e-3)


def test_the_coefficients_are_the_published_ones() -> None:
    assert (REFLECTION, EXPANSION, CONTRACTION, SHRINKAGE) == (1.0, 2.0, 0.5, 0.5)


def asked_after(values: list[float]) -> np.ndarray:
    """What is asked once the vertices (0, 0), (1, 0), (0, 1) and more are worth these values."""
    search = NelderMead([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for value in values:
        search.tell(value)
    return search.asked_N


def test_each_step_goes_where_it_should() -> None:
    """Best is (0, 0), worst (0, 1), so the centre is (0.5, 0) and the reflection (1, -1)."""
    vertices = [3.0, 2.0, 1.0]
    assert asked_after(vertices) == pytest.approx([1.0, -1.0])
    assert asked_after([*vertices, 4.0]) == pytest.approx([1.5, -2.0]), "better than the best: expand"
    assert asked_after([*vertices, 0.0]) == pytest.approx([0.25, 0.5]), "worse than the second worst: contract towards the worst"
    assert asked_after([*vertices, 0.0, 0.5]) == pytest.approx([0.5, 0.0]), "no better than the worst: shrink towards the best"
    assert asked_after([*vertices, 0.0, 0.5, 0.0]) == pytest.approx([0.0, 0.5]), "all vertices but the best shrink"
    between = asked_after([*vertices, 2.5])
    assert between == pytest.approx([0.0, -1.0]), "between: taken, and the next worst, (1, 0), is reflected"


def test_an_expansion_that_is_worse_leaves_the_reflection() -> None:
    search = NelderMead([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for value in (3.0, 2.0, 1.0, 4.0, 3.5):
        search.tell(value)
    assert search.best.point_N == pytest.approx([1.0, -1.0])
    assert search.best.value == 4.0


@pytest.mark.parametrize("simplex", [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], [[1.0], [1.0]]])
def test_a_simplex_without_volume_is_refused(simplex: list[list[float]]) -> None:
    with pytest.raises(EvaluationError, match="that lie in no plane together"):
        NelderMead(simplex)
