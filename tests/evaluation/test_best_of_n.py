"""What is picked of n: columns agree with the estimator, and ends with common sense."""

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation.best_of_n import best_of_n_columns
from rewardproof.statistics import best_of_n


def pools(sizes: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    generator = np.random.default_rng(0)
    gold = [generator.normal(size=n) for n in sizes]
    return [(g + generator.normal(size=len(g))).tolist() for g in gold], [g.tolist() for g in gold]


def test_is_the_estimator_of_every_prompt_over_pools_of_any_size() -> None:
    proxy, gold = pools([6, 9, 6, 12])
    columns = best_of_n_columns(proxy, gold, [1, 2, 5])
    for row, (p, g) in enumerate(zip(proxy, gold, strict=True)):
        np.testing.assert_allclose(columns[row], [best_of_n(a, b, [1, 2, 5]) for a, b in ((p, g), (p, p), (g, g))])
        assert columns[row, 0, 0] == pytest.approx(np.mean(g))


def test_the_ceiling_is_never_below_and_gold_as_proxy_reaches_it() -> None:
    proxy, gold = pools([16] * 8)
    picked, _, ceiling = best_of_n_columns(proxy, gold, [1, 2, 4, 8]).transpose(1, 0, 2)
    assert (ceiling >= picked - 1e-12).all()
    honest = best_of_n_columns(gold, gold, [1, 2, 4, 8])
    np.testing.assert_allclose(honest[:, 0], honest[:, 2])
    np.testing.assert_allclose(honest[:, 0], honest[:, 1])


def test_rescaling_a_proxy_changes_no_pick() -> None:
    proxy, gold = pools([10] * 5)
    scaled = best_of_n_columns([[3 * x + 7 for x in pool] for pool in proxy], gold, [1, 4])
    plain = best_of_n_columns(proxy, gold, [1, 4])
    np.testing.assert_allclose(scaled[:, 0], plain[:, 0])
    np.testing.assert_allclose(scaled[:, 1], 3 * plain[:, 1] + 7)


def test_mistakes_stop_with_a_sentence() -> None:
    proxy, gold = pools([4, 8])
    with pytest.raises(EvaluationError, match="n=4 with a smallest pool of 4 answers; expected n <= 3"):
        best_of_n_columns(proxy, gold, [1, 4])
    with pytest.raises(EvaluationError, match="that ascend"):
        best_of_n_columns(proxy, gold, [2, 1])
    with pytest.raises(EvaluationError, match="2 proxy pools and 1 gold pools"):
        best_of_n_columns(proxy, gold[:1], [1])
    with pytest.raises(EvaluationError, match="prompt 0 has 4 proxy scores and 8 gold scores"):
        best_of_n_columns(proxy, gold[::-1], [1])
