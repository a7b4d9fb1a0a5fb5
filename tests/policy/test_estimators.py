"""Advantages of tokens beside those of answers, and the penalty that is steered."""

from __future__ import annotations

import pytest
import torch

from rewardproof.policy.estimators import by_comparison
from rewardproof.policy.kl_penalty import Coefficient, KLPenalty


def test_token_rewards_move_tokens_and_leave_the_answer() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    rewards = torch.tensor([[[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]])
    plain, told = (by_comparison(rewards, mask, torch.ones(1), answers=2, scaled=None, token_weight=weight) for weight in (0.0, 0.5))
    torch.testing.assert_close(plain.advantages_BT.sum(dim=1), told.advantages_BT.sum(dim=1))
    torch.testing.assert_close(told.advantages_BT - plain.advantages_BT, torch.tensor([[-0.5, 1.0, -0.5], [0.0, 0.0, 0.0]]))


def test_the_penalty_of_a_token_is_centred_with_its_reward() -> None:
    """A token earns by the sum of all streams, the divergence's among them, less that sum's mean over its answer (RED, eq. 8)."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    reward, penalty = (torch.randn(2, 4, generator=draw) * mask for _ in range(2))
    streams = torch.stack((reward, penalty))
    plain, told = (by_comparison(streams, mask, torch.ones(2), answers=2, scaled=None, token_weight=weight) for weight in (0.0, 1.0))
    for row, length in enumerate((4, 2)):
        whole = (reward + penalty)[row, :length]
        expected = torch.zeros(4)
        expected[:length] = whole - whole.mean()
        torch.testing.assert_close((told.advantages_BT - plain.advantages_BT)[row], expected)


def test_a_penalty_is_steered_to_its_target() -> None:
    near, far = (Coefficient(KLPenalty(coefficient=0.1, target=4.0)) for _ in range(2))
    near.steer(3.9)
    far.steer(400.0)
    still = Coefficient(KLPenalty(coefficient=0.1, target=4.0))
    still.steer(0.0)
    assert still.value == pytest.approx(0.1 * 0.98), "cut on the other side too"
    assert near.value == pytest.approx(0.1 * (1 - 0.1 * 0.025))
    assert far.value == pytest.approx(0.1 * 1.02)
    fixed = Coefficient(KLPenalty(coefficient=0.1))
    fixed.steer(400.0)
    assert fixed.value == 0.1
