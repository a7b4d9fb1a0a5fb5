"""The over-optimisation curve: its columns agree with the estimator and its ends with common sense."""

import json

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import best_of_n_curve
from rewardproof.statistics import best_of_n


def pools(sizes: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    generator = np.random.default_rng(0)
    gold = [generator.normal(size=n) for n in sizes]
    return [(g + generator.normal(size=len(g))).tolist() for g in gold], [g.tolist() for g in gold]


def test_is_the_mean_of_the_estimator_over_pools_of_any_size() -> None:
    proxy, gold = pools([6, 9, 6, 12])
    curve = best_of_n_curve(proxy, gold, [1, 2, 5])
    expected = np.mean([best_of_n(p, g, [1, 2, 5]) for p, g in zip(proxy, gold, strict=True)], axis=0)
    np.testing.assert_allclose([x.estimate for x in curve.gold], expected)
    assert (curve.pool, curve.n_prompts) == (6, 4)
    assert curve.random_gold.estimate == pytest.approx(curve.gold[0].estimate)


def test_the_oracle_is_never_below_and_gold_as_proxy_reaches_it() -> None:
    proxy, gold = pools([16] * 8)
    curve = best_of_n_curve(proxy, gold, [1, 2, 4, 8])
    assert all(best.estimate >= picked.estimate for best, picked in zip(curve.oracle, curve.gold, strict=True))
    honest = best_of_n_curve(gold, gold, [1, 2, 4, 8])
    np.testing.assert_allclose([x.low for x in honest.gold], [x.low for x in honest.oracle])
    np.testing.assert_allclose([x.high for x in honest.gold], [x.high for x in honest.proxy])


def test_rescaling_a_proxy_moves_only_its_own_units() -> None:
    proxy, gold = pools([10] * 5)
    scaled = best_of_n_curve([[3 * x + 7 for x in pool] for pool in proxy], gold, [1, 4])
    plain = best_of_n_curve(proxy, gold, [1, 4])
    np.testing.assert_allclose([x.high for x in scaled.gold], [x.high for x in plain.gold])
    assert (scaled.proxy[1].estimate - scaled.proxy_mean) / scaled.proxy_std == pytest.approx(
        (plain.proxy[1].estimate - plain.proxy_mean) / plain.proxy_std
    )


def test_prompts_given_as_one_cluster_have_no_interval_and_still_are_json() -> None:
    proxy, gold = pools([5, 5])
    curve = best_of_n_curve(proxy, gold, [1, 2], clusters=["a", "a"])
    assert not curve.gold[0].known
    assert json.loads(json.dumps(curve.as_dict(), allow_nan=False))["kl"][0] == 0.0


def test_mistakes_stop_with_a_sentence() -> None:
    proxy, gold = pools([4, 8])
    with pytest.raises(EvaluationError, match="n=4 with a smallest pool of 4 answers; expected n <= 3"):
        best_of_n_curve(proxy, gold, [1, 4])
    with pytest.raises(EvaluationError, match="that ascend"):
        best_of_n_curve(proxy, gold, [2, 1])
    with pytest.raises(EvaluationError, match="2 proxy pools and 1 gold pools"):
        best_of_n_curve(proxy, gold[:1], [1])
    with pytest.raises(EvaluationError, match="prompt 0 has 4 proxy scores and 8 gold scores"):
        best_of_n_curve(proxy, gold[::-1], [1])
