"""The reading of a head's factors: which are strongest, what they go with, and what is dead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import FactorReading, read_factors

GENERATOR = np.random.default_rng(0)
LENGTHS = GENERATOR.integers(1, 60, size=40)
QUALITY = GENERATOR.random(40)
# Columns: length, quality, quality with a small Φ, never active, active and without Φ, constant.
ACTIVE = torch.from_numpy(
    np.stack((LENGTHS / 60, QUALITY, QUALITY + 1, 0 * QUALITY, QUALITY, 0 * QUALITY + 2), axis=1)
).float()  # fmt: skip
PHI = torch.tensor([1.0, 2.0, 0.1, 1.0, 0.0, 1.0])


def reading(**changes: int) -> FactorReading:
    answers = [(f"answer {number}", int(length)) for number, length in enumerate(LENGTHS)]
    return read_factors(ACTIVE, PHI, 2 * PHI, rewards=(ACTIVE @ PHI).tolist(), answers=answers, **changes)


def test_the_strongest_factors_are_those_that_spread_the_rewards() -> None:
    found = reading()
    assert [factor.number for factor in found.strongest] == [1, 0, 2], "the constant one spreads nothing, and two are dead"
    strength = {number: float(PHI[number]) * float(np.std(ACTIVE[:, number].double().numpy())) for number in (0, 1, 2)}
    for factor in found.strongest:
        column = ACTIVE[:, factor.number].double().numpy()
        assert factor.share == pytest.approx(strength[factor.number] / sum(strength.values()))
        assert (factor.mean, factor.spread, factor.phi) == pytest.approx((column.mean(), column.std(), float(PHI[factor.number])))
    assert len(reading(strongest=1).strongest) == 1


def test_what_a_factor_goes_with() -> None:
    found = {factor.number: factor for factor in reading().strongest}
    rewards = (ACTIVE @ PHI).double().numpy()
    assert found[0].length_correlation == pytest.approx(1)
    assert found[1].length_correlation == pytest.approx(np.corrcoef(QUALITY, LENGTHS)[0, 1], abs=1e-5)
    assert found[1].reward_correlation == pytest.approx(np.corrcoef(QUALITY, rewards)[0, 1], abs=1e-5)
    assert reading().length_correlation == pytest.approx(np.corrcoef(rewards, LENGTHS)[0, 1], abs=1e-5)
    pairs = [np.corrcoef(ACTIVE[:, one], ACTIVE[:, other])[0, 1] for one, other in ((0, 1), (0, 2), (1, 2))]
    assert reading().alike == pytest.approx(np.mean(pairs), abs=1e-5)


def test_the_answers_quoted_are_the_extremes() -> None:
    factor = reading(examples=2).strongest[0]
    order = np.argsort(QUALITY)
    assert [answer.text for answer in factor.highest] == [f"answer {number}" for number in order[::-1][:2]]
    assert [answer.text for answer in factor.lowest] == [f"answer {number}" for number in order[:2]]
    best = factor.highest[0]
    assert (best.activation, best.tokens) == pytest.approx((QUALITY.max(), LENGTHS[order[-1]]))
    assert best.reward == pytest.approx(float((ACTIVE @ PHI)[order[-1]]), rel=1e-6)


def test_dead_factors_are_told_apart_by_where_they_died() -> None:
    found = reading()
    assert (found.answers, found.n_factors) == (40, 6)
    assert found.dead == pytest.approx(2 / 6)
    assert found.dead_dictionary == found.dead_activation == pytest.approx(1 / 6)
    parts = (ACTIVE.double().mean(dim=0) * PHI).numpy()
    shares = parts[parts > 0] / parts.sum()
    assert found.in_effect == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert found.phi_travelled == pytest.approx(0.5)


def test_a_head_that_is_all_dead_is_read_too() -> None:
    found = read_factors(0 * ACTIVE, PHI, PHI, rewards=[0.0] * 40, answers=[("x", 1)] * 40)
    assert (found.dead, found.in_effect, found.strongest, found.alike, found.length_correlation) == (1, 0, (), None, None)


def test_no_answers() -> None:
    with pytest.raises(EvaluationError, match="Got no answers to read factors on, expected at least one"):
        read_factors(ACTIVE[:0], PHI, PHI, rewards=[], answers=[])
