"""The group's entropy against its written-out sum, finite differences, and what it cannot do."""

from __future__ import annotations

import math

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.losses import group_entropy

torch.manual_seed(0)
REWARDS = torch.randn(5, 6, dtype=torch.float64)


def gradient(rewards: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    leaf = rewards.clone().requires_grad_(True)
    return torch.autograd.grad(group_entropy(leaf, epsilon=epsilon).sum(), leaf)[0]


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_entropy_is_its_sum_with_the_population_deviation(epsilon: float) -> None:
    for row, found in zip(REWARDS.tolist(), group_entropy(REWARDS, epsilon=epsilon).tolist(), strict=True):
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row) + epsilon**2)
        weights = [math.exp((value - mean) / spread) for value in row]
        shares = [weight / sum(weights) for weight in weights]
        assert found == pytest.approx(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1.0])
def test_gradient_is_that_of_finite_differences(epsilon: float) -> None:
    found, step = gradient(REWARDS, epsilon=epsilon), 1e-6
    for row in range(5):
        for place in range(6):
            moved = torch.zeros_like(REWARDS)
            moved[row, place] = step
            up, down = (group_entropy(REWARDS + sign * moved, epsilon=epsilon).sum() for sign in (1, -1))
            assert found[row, place].item() == pytest.approx((up - down).item() / (2 * step), abs=1e-8)


def test_published_values_of_its_shapes() -> None:
    for answers, expected in ((4, (0.791, 1.013, 1.205, 1.386)), (8, (1.061, 1.696, 1.974, 2.079))):
        one_winner, linear, one_loser = torch.eye(answers)[0], torch.arange(answers).float(), -torch.eye(answers)[0]
        found = group_entropy(torch.stack((one_winner, linear, one_loser, torch.zeros(answers))).double(), epsilon=1e-9)
        assert found.tolist() == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_without_epsilon_shift_and_scale_do_not_enter(scale: float) -> None:
    torch.testing.assert_close(group_entropy(scale * REWARDS + 7), group_entropy(REWARDS))
    slope = gradient(REWARDS)
    centred = REWARDS - REWARDS.mean(dim=1, keepdim=True)
    torch.testing.assert_close(slope.sum(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close((slope * centred).sum(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradient_grows_as_one_over_the_spread_until_epsilon_bounds_it() -> None:
    torch.testing.assert_close(gradient(REWARDS / 100), 100 * gradient(REWARDS))
    lengths = [gradient(REWARDS * scale, epsilon=1e-2).norm().item() for scale in (1e-2, 1e-4, 1e-6)]
    assert lengths[0] < 100 * gradient(REWARDS).norm().item()
    assert lengths[0] > lengths[1] > lengths[2]
    assert lengths[2] < 1


def test_equal_rewards_are_finite_with_epsilon_and_not_without() -> None:
    equal = torch.full((2, 4), 0.7, dtype=torch.float64)
    assert group_entropy(equal, epsilon=1e-3).tolist() == pytest.approx([math.log(4)] * 2)
    assert gradient(equal, epsilon=1e-3).abs().max() == 0
    assert not gradient(equal).isfinite().any()


def test_two_answers_carry_no_signal() -> None:
    pairs = torch.randn(20, 2, dtype=torch.float64)
    found = group_entropy(pairs)
    torch.testing.assert_close(found, torch.full((20,), 0.365, dtype=torch.float64), atol=5e-4, rtol=0)
    assert (found - found[0]).abs().max() < 1e-12
    assert gradient(pairs).abs().max() < 1e-12


def test_order_of_the_answers_does_not_matter() -> None:
    order = torch.randperm(6)
    torch.testing.assert_close(group_entropy(REWARDS[:, order], epsilon=0.1), group_entropy(REWARDS, epsilon=0.1))


def test_one_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 1 answer a prompt, expected 3 or more"):
        group_entropy(torch.zeros(3, 1))
