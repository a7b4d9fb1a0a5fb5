"""The best-of-n estimator against brute force, ties included."""

from itertools import combinations

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import best_of_n, best_of_n_weights, kl_upper_bound


def brute_force(proxy: np.ndarray, gold: np.ndarray, n: int) -> float:
    picks = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        picks.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
    return float(np.mean(picks))


@pytest.mark.parametrize("pool", range(1, 9))
@pytest.mark.parametrize("levels", [2, 3, 1000])
def test_equals_brute_force_for_every_n(pool: int, levels: int) -> None:
    generator = np.random.default_rng(pool)
    proxy, gold = generator.integers(0, levels, size=pool).astype(float), generator.normal(size=pool)
    expected = [brute_force(proxy, gold, n) for n in range(1, pool + 1)]
    np.testing.assert_allclose(best_of_n(proxy, gold, range(1, pool + 1)), expected, atol=1e-12)


def test_weights_sum_to_one_at_the_size_of_the_paper() -> None:
    weights = best_of_n_weights(12_600, [1, 2, 64, 6144, 12_500])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-10)


def test_ends_are_the_plain_mean_and_the_proxys_favourite() -> None:
    generator = np.random.default_rng(0)
    proxy, gold = generator.normal(size=(3, 20)), generator.normal(size=(3, 20))
    values = best_of_n(proxy, gold, [1, 20])
    np.testing.assert_allclose(values[:, 0], gold.mean(axis=1))
    np.testing.assert_allclose(values[:, 1], gold[np.arange(3), proxy.argmax(axis=1)])


def test_only_the_order_of_the_proxy_matters_and_gold_as_proxy_never_falls() -> None:
    generator = np.random.default_rng(1)
    proxy, gold = generator.normal(size=30), generator.normal(size=30)
    ns = [1, 2, 5, 17, 30]
    np.testing.assert_allclose(best_of_n(proxy, gold, ns), best_of_n(np.exp(3 * proxy + 7), gold, ns))
    assert (np.diff(best_of_n(gold, gold, ns)) >= 0).all()


def test_kl_of_the_paper() -> None:
    np.testing.assert_allclose(kl_upper_bound([1, 2, 1000, 12_500, 60_000]), [0, 0.1931, 5.909, 8.434, 10.002], atol=6e-4)


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="expected 1 <= n <= 3"):
        best_of_n([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [4])
    with pytest.raises(EvaluationError, match="same answers in the same order"):
        best_of_n([1.0, 2.0], [1.0, 2.0, 3.0], [1])
    with pytest.raises(EvaluationError, match="1 of 2 proxy scores are not finite"):
        best_of_n([1.0, float("nan")], [1.0, 2.0], [1])
    with pytest.raises(EvaluationError, match="expected n >= 1"):
        kl_upper_bound(0)
