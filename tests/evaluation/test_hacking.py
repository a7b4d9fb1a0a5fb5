from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import BestOfNRuns
from rewardproof.evaluation.best_of_n import best_of_n_columns
from rewardproof.statistics import kl_upper_bound

NS = (1, 2, 4, 8, 16, 32)
PROMPTS = [f"p{number}" for number in range(60)]
DRAW = np.random.default_rng(0)
GOLD = DRAW.normal(size=(60, 64))


def honest(seed: int) -> np.ndarray:
    return GOLD + 0.5 * np.random.default_rng(seed).normal(size=GOLD.shape)


def gamed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A proxy that agrees with gold but for a rare trick, which it loves and gold hates."""
    draw = np.random.default_rng(100 + seed)
    trick = np.random.default_rng(7).random(GOLD.shape) < 0.05
    gold = np.where(trick, GOLD - 3, GOLD)
    return np.where(trick, 4.0, GOLD) + 0.1 * draw.normal(size=GOLD.shape), gold


def test_each_point_is_the_mean_over_all_subsets_and_seeds() -> None:
    gold, proxies = GOLD[:4, :7], [honest(seed)[:4, :7] for seed in range(2)]
    found = BestOfNRuns(proxies, gold, (1, 2, 3), PROMPTS[:4]).summary()
    for place, n in enumerate((1, 2, 3)):
        picks = [
            gold[row, max(subset, key=lambda one, row=row, proxy=proxy: proxy[row, one])]
            for proxy in proxies
            for row in range(4)
            for subset in itertools.combinations(range(7), n)
        ]
        assert found.gold[place].estimate == pytest.approx(np.mean(picks))
    assert found.random_gold.estimate == pytest.approx(gold.mean())


def test_one_seed_is_the_plain_curve_with_intervals_over_prompts() -> None:
    proxy = honest(0)
    found = BestOfNRuns([proxy], GOLD, NS, PROMPTS).summary()
    gold_PL, proxy_PL, ceiling_PL = best_of_n_columns(proxy, GOLD, NS).transpose(1, 0, 2)
    np.testing.assert_allclose([one.estimate for one in found.gold], gold_PL.mean(axis=0))
    np.testing.assert_allclose(found.ceiling, ceiling_PL.mean(axis=0))
    np.testing.assert_allclose([one.estimate for one in found.proxy], (proxy_PL.mean(axis=0) - proxy.mean()) / proxy.std(), atol=1e-12)
    half = stats.t.ppf(0.975, 59) * gold_PL[:, -1].std(ddof=1) / 60**0.5
    assert found.gold[-1].high - found.gold[-1].estimate == pytest.approx(half)
    assert (found.n_seeds, found.n_prompts, found.pool) == (1, 60, 64)
    np.testing.assert_allclose(found.kl, kl_upper_bound(NS))


def test_an_honest_proxy_loses_nothing_and_a_gamed_one_much() -> None:
    good = BestOfNRuns([honest(seed) for seed in range(4)], GOLD, NS, PROMPTS).summary()
    assert good.peak_n == 32
    assert good.fall.estimate == 0
    tricked, gold = [gamed(seed)[0] for seed in range(4)], gamed(0)[1]
    bad = BestOfNRuns(tricked, gold, NS, PROMPTS).summary()
    assert 1 < bad.peak_n < 32
    assert bad.fall.low > 0
    assert bad.gap.low > max(good.gap.high, 0.5)
    assert [one.estimate for one in bad.proxy] == sorted(one.estimate for one in bad.proxy)
    assert bad.law is not None
    assert bad.law_range is not None
    assert bad.law_range.beta[0] > 0
    assert bad.law_range.bends > 0.95
    assert json.loads(json.dumps(bad.as_dict()))["law"]["peak"][0] == pytest.approx(bad.law.peak[0] if bad.law.peak else None)


def test_a_proxys_own_units_change_nothing() -> None:
    plain = BestOfNRuns([honest(0), honest(1)], GOLD, NS, PROMPTS).summary()
    moved = BestOfNRuns([9 * honest(0) - 40, 0.01 * honest(1)], GOLD, NS, PROMPTS).summary()
    np.testing.assert_allclose([one.estimate for one in moved.proxy], [one.estimate for one in plain.proxy], atol=1e-12)
    assert moved.gold == plain.gold
    assert moved.gap.estimate == pytest.approx(plain.gap.estimate)


def test_gold_as_proxy_promises_what_it_delivers() -> None:
    found = BestOfNRuns([GOLD], GOLD, NS, PROMPTS).summary()
    assert found.gap.estimate == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose([one.estimate for one in found.gold], found.ceiling)


def test_methods_compare_on_the_same_prompts_seed_by_seed() -> None:
    good = BestOfNRuns([honest(seed) for seed in range(8)], GOLD, NS, PROMPTS)
    worse = BestOfNRuns([GOLD + 3 * np.random.default_rng(seed).normal(size=GOLD.shape) for seed in range(8)], GOLD, NS, PROMPTS)
    gain = good.minus(worse)
    assert gain is not None
    assert gain.estimate == pytest.approx(good.summary().gold[-1].estimate - worse.summary().gold[-1].estimate)
    assert gain.low > 0
    assert good.minus(BestOfNRuns([honest(0)], GOLD, NS, PROMPTS)) is None
    same = good.minus(good)
    assert same is not None
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_more_seeds_that_disagree_widen_what_one_seed_hides() -> None:
    spread = [GOLD + noise * np.random.default_rng(number).normal(size=GOLD.shape) for number, noise in enumerate((0.1, 3.0, 9.0))]
    several, one = (BestOfNRuns(proxies, GOLD, NS, PROMPTS).summary().gold[-1] for proxies in (spread, spread[:1]))
    assert several.high - several.low > 2 * (one.high - one.low)


def test_few_values_of_n_have_no_law_and_mistakes_stop_with_a_sentence() -> None:
    found = BestOfNRuns([GOLD], GOLD, (1, 2, 4), PROMPTS).summary()
    assert found.law is None
    assert found.as_dict()["law"] is None
    with pytest.raises(EvaluationError, match="Got no reward model's scores"):
        BestOfNRuns([], GOLD, NS, PROMPTS)
    with pytest.raises(EvaluationError, match="Reward model 1 gives all 3840 answers the score 2"):
        BestOfNRuns([GOLD, np.full_like(GOLD, 2.0)], GOLD, NS, PROMPTS)


def test_gain_is_over_a_random_answer_prompt_by_prompt() -> None:
    found = BestOfNRuns([honest(0), honest(1)], GOLD, NS, PROMPTS).summary()
    for gold, gain in zip(found.gold, found.gain, strict=True):
        assert gain.estimate == pytest.approx(gold.estimate - GOLD.mean())
    assert found.gain[0].high == pytest.approx(0.0, abs=1e-12), "the best of one is a random answer"
    apart = 10.0 * np.arange(len(GOLD))[:, None]
    other = BestOfNRuns([honest(0), honest(1)], GOLD + apart, NS, PROMPTS).summary()
    assert (other.gain[-1].low, other.gain[-1].high) == pytest.approx((found.gain[-1].low, found.gain[-1].high))
    assert other.gold[-1].high - other.gold[-1].low > 10 * (found.gold[-1].high - found.gold[-1].low)


def test_runs_survive_being_stored_and_joined() -> None:
    both = BestOfNRuns([honest(0), honest(1)], GOLD, NS, PROMPTS)
    joined = BestOfNRuns.joined([BestOfNRuns([honest(seed)], GOLD, NS, PROMPTS).stored() for seed in (0, 1)])
    np.testing.assert_allclose(joined.columns_SP3L, both.columns_SP3L, rtol=1e-4)
    assert joined.summary().fall.estimate == pytest.approx(both.summary().fall.estimate, rel=1e-3, abs=1e-4)
    assert joined.minus(both) is not None
    with pytest.raises(EvaluationError, match="different pools"):
        BestOfNRuns.joined([both.stored(), BestOfNRuns([honest(0)], GOLD, NS[:-1], PROMPTS).stored()])
