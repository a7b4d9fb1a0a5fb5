"""Slopes within clusters: against dummy-variable regression, against what clusters differ in, and the width of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import cluster_slopes, determined


def rows(seed: int = 0, *, clusters: int = 40, size: int = 4) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rewards with slopes 0.5 and -0.2, clusters far apart, and a first regressor that is larger where the cluster's level is."""
    draw = np.random.default_rng(seed)
    names = [f"p{cluster}" for cluster in range(clusters) for _ in range(size)]
    level_N = np.repeat(draw.normal(0, 5, clusters), size)
    x_N2 = np.stack([level_N + draw.normal(size=len(names)), draw.normal(size=len(names))], axis=1)
    return 0.5 * x_N2[:, 0] - 0.2 * x_N2[:, 1] - 3 * level_N + 0.3 * draw.normal(size=len(names)), x_N2, names


def test_slopes_are_those_of_a_regression_with_a_dummy_for_every_cluster() -> None:
    y_N, x_N2, names = rows()
    dummies = np.array([[float(name == one) for one in dict.fromkeys(names)] for name in names])
    expected = np.linalg.lstsq(np.hstack([x_N2, dummies]), y_N, rcond=None)[0][:2]
    found = cluster_slopes(y_N, x_N2, names)
    np.testing.assert_allclose([slope.estimate for slope in found], expected, atol=1e-10)
    assert (found[0].n, found[0].n_clusters) == (160, 40)


def test_single_rows_are_compared_with_each_other() -> None:
    y_N, x_N2, _ = rows(size=1)
    expected = np.linalg.lstsq(np.hstack([x_N2, np.ones((40, 1))]), y_N, rcond=None)[0][:2]
    found = cluster_slopes(y_N, x_N2, list(range(40)))
    np.testing.assert_allclose([slope.estimate for slope in found], expected, atol=1e-10)


def test_intervals_cover_as_they_say() -> None:
    covered = []
    for seed in range(150):
        y_N, x_N2, names = rows(seed)
        first, second = cluster_slopes(y_N, x_N2, names, n_resamples=400, level=0.9, seed=seed)
        covered += [first.low <= 0.5 <= first.high, second.low <= -0.2 <= second.high]
    assert 0.83 <= np.mean(covered) <= 0.95


def test_a_regressor_that_few_clusters_vary_in_has_no_interval() -> None:
    y_N, _, names = rows(clusters=10)
    x_N1 = np.zeros((len(names), 1))
    x_N1[0] = 1.0
    (slope,) = cluster_slopes(y_N, x_N1, names, level=0.99)
    assert math.isfinite(slope.estimate)
    assert not slope.known, "a third of the resamples miss the one cluster that has it"
    assert not cluster_slopes([1.0, 2.0], [[1.0], [3.0]], ["a", "a"])[0].known


def test_regressors_that_do_not_vary_by_themselves_are_refused() -> None:
    y_N, x_N2, names = rows()
    level_N1 = np.repeat(np.arange(40.0), 4)[:, None]
    for x_NK in (level_N1, np.hstack([x_N2[:, :1], 2 * x_N2[:, :1]])):
        assert not determined(x_NK, names)
        with pytest.raises(EvaluationError, match=r"regressors over 160 rows do not vary by themselves; expected columns"):
            cluster_slopes(y_N, x_NK, names)
    assert determined(x_N2, names)
