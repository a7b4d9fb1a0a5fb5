"""Fitted laws: what a point weighs against its closed form, what a resample draws, and where a peak counts as measured."""

from __future__ import annotations

import numpy as np
import pytest

from rewardproof.evaluation.law import LawRange, law_with_range

DISTANCES = np.array([0.0, 0.8, 1.4, 2.0, 2.6, 3.2])
PROMPTS = [f"p{place}" for place in range(40)]


def of_law(alpha: float, beta: float) -> np.ndarray:
    safe = np.where(DISTANCES > 0, DISTANCES, 1.0)
    return DISTANCES * (alpha - beta * np.log(safe))


def measured(gold_L: np.ndarray, noise_L: np.ndarray | float, *, seeds: int = 2, prompts: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """KL and gold of some seeds, gold with noise over prompts."""
    draw = np.random.default_rng(0)
    gold_SPL = 0.3 + gold_L + noise_L * draw.normal(size=(seeds, prompts, len(gold_L))) * (DISTANCES > 0)
    return np.broadcast_to(DISTANCES**2, gold_SPL.shape), gold_SPL


def ranges(kl_SPL: np.ndarray, gold_SPL: np.ndarray, prompts: list[str]) -> LawRange:
    found = law_with_range(kl_SPL, gold_SPL, prompts, "rl", seed=0).range
    assert found is not None
    return found


def test_a_point_weighs_by_one_over_its_variance_and_at_most_ten_times_the_usual() -> None:
    """Against weighted least squares by hand: one point is far off and noisy, one hardly varies."""
    noise_L = np.array([0.0, 1e-6, 0.2, 0.2, 2.0, 0.2])
    kl_SPL, gold_SPL = measured(of_law(0.35, 0.15) + np.array([0, 0, 0, 0, 3.0, 0]), noise_L)
    found = law_with_range(kl_SPL, gold_SPL, PROMPTS, "rl", seed=0).law
    assert found is not None
    above_SPL = gold_SPL - gold_SPL[:, :, :1]
    variance = above_SPL.var(axis=1)[:, 1:].ravel()
    usual = np.median(above_SPL.var(axis=1)[above_SPL.var(axis=1) > 0])
    root = np.sqrt(np.minimum(usual / variance, 10.0))
    distance, gold = np.tile(DISTANCES[1:], 2), above_SPL.mean(axis=1)[:, 1:].ravel()
    by_hand = np.linalg.lstsq(root[:, None] * np.stack([distance, -distance * np.log(distance)], axis=1), root * gold, rcond=None)[0]
    np.testing.assert_allclose([found.alpha, found.beta], by_hand, rtol=1e-9)
    equal = np.linalg.lstsq(np.stack([distance, -distance * np.log(distance)], axis=1), gold, rcond=None)[0]
    assert abs(equal[0] - by_hand[0]) > 0.1, "the noisy point would have moved the law"


def test_a_resample_draws_prompts_and_equal_ones_together() -> None:
    """Forty prompts that are ten, four times each, say as little as the ten; that they are one seed leaves nothing else to draw."""
    kl_SPL, gold_SPL = measured(of_law(0.35, 0.15), 0.3, seeds=1, prompts=10)
    ten = ranges(kl_SPL, gold_SPL, PROMPTS[:10])
    assert ten.alpha[1] - ten.alpha[0] > 0.05
    together = ranges(np.tile(kl_SPL, (1, 4, 1)), np.tile(gold_SPL, (1, 4, 1)), PROMPTS[:10] * 4)
    np.testing.assert_allclose([*together.alpha, *together.beta], [*ten.alpha, *ten.beta], rtol=1e-9)
    told_apart = ranges(np.tile(kl_SPL, (1, 4, 1)), np.tile(gold_SPL, (1, 4, 1)), PROMPTS)
    assert told_apart.alpha[1] - told_apart.alpha[0] < 0.7 * (ten.alpha[1] - ten.alpha[0])


@pytest.mark.parametrize(
    ("peak", "bends"),
    [(0.4, 0.0), (1.5, 1.0), (5.0, 0.0)],
    ids=["nearer than any point that is fitted", "inside", "farther than any point"],
)
def test_gold_bends_where_its_peak_is_between_points_that_were_measured(peak: float, bends: float) -> None:
    kl_SPL, gold_SPL = measured(of_law(0.15 * (1 + np.log(peak)), 0.15), 1e-3)
    assert ranges(kl_SPL, gold_SPL, PROMPTS).bends == bends
