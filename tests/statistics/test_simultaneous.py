"""Intervals that hold together: how often all of them cover, few clusters or many, and skewed numbers too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import simultaneous_level
from rewardproof.statistics.bootstrap import cluster_bootstrap_columns

RUNS = 80


@pytest.mark.parametrize(
    ("clusters", "draw"),
    [(12, lambda dice, shape: dice.normal(size=shape)), (60, lambda dice, shape: dice.exponential(size=shape) - 1)],
    ids=["twelve clusters", "sixty skewed ones"],
)
def test_all_intervals_cover_together(clusters: int, draw: Callable[..., np.ndarray]) -> None:
    columns = 15
    level = simultaneous_level(columns, clusters)
    failed = 0
    for run in range(RUNS):
        dice = np.random.default_rng(run)
        values = draw(dice, (clusters, columns)) + draw(dice, (clusters, 1))  # columns that go together
        found = cluster_bootstrap_columns(values, n_resamples=20_000, level=level, seed=run)
        failed += any(interval.low > 0 or interval.high < 0 for interval in found)
    assert failed <= 0.05 * RUNS + 3 * np.sqrt(0.05 * 0.95 * RUNS), "not at the level stated"


def test_one_interval_of_many_clusters_needs_no_more() -> None:
    assert simultaneous_level(1, 100_000) == pytest.approx(0.95, abs=1e-4)
    assert simultaneous_level(1, 8) > simultaneous_level(1, 80) > 0.95
    assert simultaneous_level(30, 80) > simultaneous_level(3, 80)
    assert simultaneous_level(3, 1) == 0.95
    assert simultaneous_level(20, 2) < 1.0


def test_ends_that_no_resample_reaches_are_not_known() -> None:
    values = [[0.1], [0.2], [0.3], [0.7]]
    assert not cluster_bootstrap_columns(values, level=simultaneous_level(20, 4), n_resamples=2000)[0].known
    assert cluster_bootstrap_columns(values, level=0.95, n_resamples=2000)[0].known


@pytest.mark.parametrize(("n", "level"), [(0, 0.95), (3, 1.0)])
def test_what_is_no_level_is_refused(n: int, level: float) -> None:
    with pytest.raises(EvaluationError, match="expected at least one and a level in"):
        simultaneous_level(n, 20, level=level)
