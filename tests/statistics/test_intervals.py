"""Intervals cover, respect clusters and do not claim what they cannot know."""

import math

import numpy as np
import pytest
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics import bootstrap, cluster_bootstrap, cluster_bootstrap_columns, paired_difference, seed_interval, wilson


def test_matches_the_normal_interval_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = cluster_bootstrap(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.low, interval.high) == (pytest.approx(values.mean() - half, abs=0.01), pytest.approx(values.mean() + half, abs=0.01))


def test_repeating_every_row_in_its_cluster_adds_no_certainty() -> None:
    values = np.random.default_rng(1).normal(size=100)
    once = cluster_bootstrap(values)
    often = cluster_bootstrap(np.repeat(values, 5), np.repeat(np.arange(100), 5))
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (often.n, often.n_clusters) == (500, 100)


def test_rows_weigh_alike_or_clusters_do() -> None:
    values, clusters = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert cluster_bootstrap(values, clusters).estimate == 0.75
    assert cluster_bootstrap(values, clusters, statistic="cluster_mean").estimate == 0.5


def test_memory_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = cluster_bootstrap(values, n_resamples=300)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 50 * 7)
    blocks = cluster_bootstrap(values, n_resamples=300)
    assert (blocks.low, blocks.high) == (pytest.approx(whole.low), pytest.approx(whole.high))


def test_columns_share_their_resamples() -> None:
    values = np.random.default_rng(3).normal(size=(40, 2))
    together = cluster_bootstrap_columns(values, seed=5)
    for column, interval in enumerate(together):
        alone = cluster_bootstrap(values[:, column], seed=5)
        assert (interval.low, interval.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for trial in range(150):
        centres = np.repeat(generator.normal(size=40), 3)
        interval = cluster_bootstrap(centres + generator.normal(size=120), np.repeat(np.arange(40), 3), n_resamples=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.87 <= covered / 150 <= 0.99


def test_one_cluster_has_no_interval() -> None:
    interval = cluster_bootstrap([1.0, 2.0], ["a", "a"])
    assert (interval.estimate, interval.known, interval.n_clusters) == (1.5, False, 1)
    assert interval.as_dict()["low"] is None


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(size=200)
    a, b = hard + 0.1 + 0.05 * generator.normal(size=200), hard + 0.05 * generator.normal(size=200)
    interval = paired_difference(a, b)
    assert 0 < interval.low < 0.1 < interval.high < 0.15


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 10), (10, 10)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high))


def test_seeds_use_student_and_one_seed_says_nothing_of_spread() -> None:
    low, high = stats.t.interval(0.9, 3, loc=2.5, scale=stats.sem([1, 2, 3, 4]))
    interval = seed_interval([1, 2, 3, 4], level=0.9)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(seed_interval([2.0]).low)


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="1 of 2 values are not finite"):
        cluster_bootstrap([1.0, float("inf")])
    with pytest.raises(EvaluationError, match="no values given"):
        cluster_bootstrap([])
    with pytest.raises(EvaluationError, match="have 2 and 1 rows"):
        cluster_bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(EvaluationError, match="level=95 is no coverage"):
        cluster_bootstrap([1.0, 2.0], level=95)
    with pytest.raises(EvaluationError, match="6 successes of 5"):
        wilson(6, 5)
