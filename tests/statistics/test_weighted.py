"""The weighted mean of parts' means and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import WeightedPart, cluster_bootstrap, weighted_interval


def part(weight: float, values: list[float], name: str = "", stratum: str = "") -> WeightedPart:
    return WeightedPart(weight, values, [f"{name}{place}" for place in range(len(values))], stratum)


def test_one_part_is_the_cluster_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=80).tolist()
    clusters = [str(place % 20) for place in range(80)]
    ours, theirs = weighted_interval([WeightedPart(1.0, values, clusters)]), cluster_bootstrap(values, clusters)
    assert ours.estimate == pytest.approx(theirs.estimate)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert (ours.n, ours.n_clusters) == (80, 20)


def test_independent_parts_spread_by_the_square_root_of_their_variances() -> None:
    draw = np.random.default_rng(1)
    parts = [part(weight, draw.normal(size=n).tolist(), name) for weight, n, name in ((0.7, 200, "a"), (0.3, 50, "b"))]
    found = weighted_interval(parts)
    error = math.sqrt(sum(one.weight**2 * np.var(one.values) / len(one.values) for one in parts))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.estimate == pytest.approx(sum(one.weight * np.mean(one.values) for one in parts))


def test_parts_of_one_stratum_move_together() -> None:
    values = np.random.default_rng(2).normal(size=100)
    against = [part(1.0, values.tolist(), "a", "s"), part(1.0, (-values).tolist(), "a", "s")]
    found = weighted_interval(against)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-9)
    apart = weighted_interval([part(1.0, values.tolist()), part(1.0, (-values).tolist())])
    assert apart.high - apart.low > 0.2


def test_certainty_is_not_claimed() -> None:
    right = weighted_interval([part(0.5, [1.0] * 5), part(0.5, [1.0] * 5)])
    assert (right.estimate, right.high) == (1.0, 1.0)
    assert 0.6 < right.low < 1.0
    assert not weighted_interval([part(1.0, [0.3])]).known


def test_a_part_without_rows_in_a_resample_stays_at_its_estimate() -> None:
    found = weighted_interval([WeightedPart(0.5, [0.0, 1.0, 1.0], "abc", "s"), WeightedPart(0.5, [0.7], "a", "s")])
    assert math.isfinite(found.low)
    assert found.high <= 0.5 + 0.35 + 1e-9


def test_nothing_and_the_unequal_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no parts given"):
        weighted_interval([])
    with pytest.raises(EvaluationError, match="values and clusters have 2 and 1 rows"):
        weighted_interval([WeightedPart(1.0, [0.0, 1.0], ["a"])])
    with pytest.raises(EvaluationError, match="not finite"):
        weighted_interval([WeightedPart(1.0, [math.nan], ["a"])])
