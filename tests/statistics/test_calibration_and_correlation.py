"""Calibration, correlation and entropy against known cases."""

import numpy as np
import pytest
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics import (
    effective_number,
    entropy,
    expected_calibration_error,
    pearson,
    reliability,
    spearman,
    within_cluster_correlation,
)


def test_calibrated_outcomes_have_almost_no_error_and_shifted_ones_the_shift() -> None:
    generator = np.random.default_rng(0)
    p = generator.uniform(0.2, 0.8, size=40_000)
    assert expected_calibration_error(p, generator.uniform(size=40_000) < p) < 0.015
    assert expected_calibration_error(p, generator.uniform(size=40_000) < p - 0.2) == pytest.approx(0.2, abs=0.015)


def test_reliability_counts_every_row_once_edges_included() -> None:
    table = reliability([0.5, 0.75, 1.0], [0, 1, 1], bins=2, span=(0.5, 1.0))
    assert [(b.low, b.high, b.n) for b in table.bins] == [(0.5, 0.75, 1), (0.75, 1.0, 2)]
    assert sum(b.weight for b in table.bins) == pytest.approx(1.0)


def test_a_weight_of_two_is_the_row_twice() -> None:
    p, y = [0.1, 0.9, 0.8], [0, 1, 0]
    assert reliability(p, y, weights=[1, 1, 2]).error == pytest.approx(reliability([*p, 0.8], [*y, 0]).error)


def test_correlations_equal_scipy() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 50))
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])


def test_within_prompts_differences_between_prompts_do_not_count() -> None:
    generator = np.random.default_rng(2)
    level = np.repeat(generator.normal(size=300) * 10, 4)
    x, y = level + generator.normal(size=1200), level + generator.normal(size=1200)
    assert pearson(x, y) > 0.95
    assert abs(within_cluster_correlation(x, y, np.repeat(np.arange(300), 4))) < 0.1


def test_entropy_counts_equal_shares() -> None:
    np.testing.assert_allclose(effective_number([[1, 0, 0, 0], [1, 2, 1, 1]]), [1.0, float(np.exp(stats.entropy([1, 2, 1, 1])))])
    np.testing.assert_allclose(entropy(np.ones((2, 8)) * 5), np.log(8))


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="Rewards are not probabilities"):
        expected_calibration_error([1.7, 0.2], [1, 0])
    with pytest.raises(EvaluationError, match="x is constant over 3 rows"):
        pearson([1, 1, 1], [1, 2, 3])
    with pytest.raises(EvaluationError, match="is constant over 1 rows"):
        spearman([1], [2])
    with pytest.raises(EvaluationError, match="x values are not finite"):
        pearson([1, float("nan")], [1, 2])
    with pytest.raises(EvaluationError, match="not logits"):
        entropy([[-1.0, 2.0]])
