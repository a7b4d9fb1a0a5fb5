"""Intervals over seeds and prompts: equal to brute force, to the one-way interval where that applies, and covering."""

import math

import numpy as np
import pytest
from scipy import stats

from rewardproof.errors import EvaluationError
from rewardproof.statistics import cluster_bootstrap, crossed_interval


def brute_force(values: list[float], seeds: list[int], prompts: list[str]) -> tuple[float, float, float]:
    """Estimate and ends by sums over all pairs of rows that share a seed, a prompt, or both."""
    names, rows = sorted(set(seeds)), range(len(values))
    weight = [1 / (len(names) * seeds.count(seed)) for seed in seeds]
    estimate = sum(weight[i] * values[i] for i in rows)
    rest = [weight[i] * (values[i] - estimate) for i in rows]
    s, p = len(names), len(set(prompts))
    same_seed = sum(rest[i] * rest[j] for i in rows for j in rows if seeds[i] == seeds[j]) * s / (s - 1)
    same_prompt = sum(rest[i] * rest[j] for i in rows for j in rows if prompts[i] == prompts[j]) * p / (p - 1)
    same_both = sum(rest[i] * rest[j] for i in rows for j in rows if (seeds[i], prompts[i]) == (seeds[j], prompts[j]))
    extra = max(same_seed - same_both, 0)
    variance = extra + same_prompt
    freedom = variance**2 / (same_seed**2 / (s - 1) + same_both**2 / (len(values) - s) + same_prompt**2 / (p - 1))
    freedom = min(max(freedom, s - 1), len(values) - 1)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return estimate, estimate - half, estimate + half


@pytest.mark.parametrize("draw", range(5))
def test_equals_brute_force(draw: int) -> None:
    generator = np.random.default_rng(draw)
    seeds = [0] * 7 + [1] * 9 + [2] * 8
    prompts = [f"p{generator.integers(10)}" for _ in seeds]
    values = [float(v) + 0.5 * draw * seed for v, seed in zip(generator.normal(size=24), seeds, strict=True)]
    found = crossed_interval(values, seeds, prompts)
    assert (found.estimate, found.low, found.high) == pytest.approx(brute_force(values, seeds, prompts))


def test_one_seed_is_the_interval_over_prompts() -> None:
    values = np.random.default_rng(1).normal(size=300)
    prompts = np.arange(300) // 2
    found, resampled = crossed_interval(values, [0] * 300, prompts), cluster_bootstrap(values, prompts)
    assert found.estimate == pytest.approx(resampled.estimate)
    assert (found.low, found.high) == (pytest.approx(resampled.low, abs=0.015), pytest.approx(resampled.high, abs=0.015))


def test_every_seed_counts_once() -> None:
    assert crossed_interval([1.0, 1.0, 1.0, 0.0], [0, 0, 0, 1], ["a", "b", "c", "d"]).estimate == 0.5


def test_repeating_a_seed_word_for_word_adds_no_certainty() -> None:
    values = np.random.default_rng(2).normal(size=100)
    once = crossed_interval(values, [0] * 100, range(100))  # pyright: ignore[reportArgumentType]
    thrice = crossed_interval(np.tile(values, 3), np.repeat([0, 1, 2], 100), np.tile(np.arange(100), 3))
    assert thrice.low <= once.low + 1e-9
    assert thrice.high >= once.high - 1e-9
    assert (thrice.n, thrice.n_clusters) == (300, 100)


def coverage(n_seeds: int, *, spread_of_seeds: float, trials: int = 200) -> float:
    """How often the interval holds the truth where seeds draw halves of one pool of prompts."""
    generator, covered = np.random.default_rng(3), 0
    for _ in range(trials):
        prompt_P = 0.3 * generator.normal(size=400)
        held = [np.flatnonzero(generator.random(400) < 0.5) for _ in range(n_seeds)]
        values = [prompt_P[h] + spread_of_seeds * generator.normal() + 0.5 * generator.normal(size=len(h)) for h in held]
        seeds = np.concatenate([np.full(len(h), number) for number, h in enumerate(held)])
        found = crossed_interval(np.concatenate(values), seeds, np.concatenate(held))
        covered += found.low <= 0 <= found.high
    return covered / trials


@pytest.mark.parametrize(("n_seeds", "spread", "least"), [(1, 0.0, 0.91), (3, 0.0, 0.93), (3, 0.02, 0.93), (3, 0.1, 0.91), (5, 0.3, 0.91)])
def test_covers_about_as_often_as_it_says(n_seeds: int, spread: float, least: float) -> None:
    assert least <= coverage(n_seeds, spread_of_seeds=spread) <= 1.0


def test_certainty_and_ignorance_are_shown_as_they_are() -> None:
    same = crossed_interval([1.0, 1.0], [0, 1], ["a", "b"])
    assert (same.low, same.high) == (1.0, 1.0)
    assert not crossed_interval([1.0, 0.0], [0, 1], ["a", "a"]).known


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="level=95 is no coverage"):
        crossed_interval([1.0, 0.0], [0, 0], ["a", "b"], level=95)
    with pytest.raises(EvaluationError, match="values and seeds have 2 and 1 rows"):
        crossed_interval([1.0, 0.0], [0], ["a", "b"])
    with pytest.raises(EvaluationError, match="values and prompts have 2 and 3 rows"):
        crossed_interval([1.0, 0.0], [0, 1], ["a", "b", "c"])
