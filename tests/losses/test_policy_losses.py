"""Advantages, divergences and the surrogate against loops, closed forms and finite differences, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.losses import (
    clipped_surrogate,
    clipped_value_loss,
    exact_kl,
    gae,
    group_relative,
    leave_one_out,
    sampled_kl,
    token_weights,
    whitened,
)

torch.manual_seed(0)
LENGTHS = (5, 3, 1)
MASK = torch.tensor([[float(place < length) for place in range(5)] for length in LENGTHS], dtype=torch.float64)
REWARDS, VALUES, SAMPLED = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.0), (0.97, 1.0)])
def test_gae_is_its_sum(discount: float, trace: float) -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, discount=discount, trace=trace)
    for row, length in enumerate(LENGTHS):
        values = [*VALUES[row, :length].tolist(), 0.0]
        errors = [REWARDS[row, t].item() + discount * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            expected = sum((discount * trace) ** (later - t) * errors[later] for later in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected)
            assert returns[row, t].item() == pytest.approx(expected + values[t])
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_full_traces_return_what_was_received() -> None:
    _, returns = gae(REWARDS, VALUES, MASK, trace=1.0)
    torch.testing.assert_close(returns[0], REWARDS[0].flip(0).cumsum(0).flip(0))


def test_leave_one_out_compares_with_the_others() -> None:
    rewards = torch.randn(4, 6, dtype=torch.float64)
    found = leave_one_out(rewards)
    for prompt, answer in itertools.product(range(4), range(6)):
        others = [rewards[prompt, other] for other in range(6) if other != answer]
        torch.testing.assert_close(found[prompt, answer], rewards[prompt, answer] - torch.stack(others).mean())
    torch.testing.assert_close(leave_one_out(rewards + 40), found)


def test_group_relative_is_standard_and_zero_where_answers_are_equal() -> None:
    rewards = torch.randn(4, 6, dtype=torch.float64)
    found = group_relative(rewards, epsilon=0.0)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.std(dim=1), torch.ones(4, dtype=torch.float64))
    assert not group_relative(torch.full((2, 3), 0.7)).any()
    torch.testing.assert_close(group_relative(rewards, scaled=False), rewards - rewards.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("estimator", [leave_one_out, group_relative])
def test_one_answer_has_nothing_to_be_compared_with(estimator) -> None:
    with pytest.raises(ConfigError, match="got 1 answer a prompt, expected 2 or more"):
        estimator(torch.zeros(3, 1))


def test_whitened_ignores_what_is_masked() -> None:
    found = whitened(VALUES, MASK)
    kept = found[MASK.bool()]
    assert kept.mean().item() == pytest.approx(0, abs=1e-12)
    assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert not found[~MASK.bool()].any()


def test_estimates_agree_with_the_exact_divergence_in_expectation() -> None:
    policy, reference = torch.randn(2, 7, dtype=torch.float64).log_softmax(dim=-1)
    exact = exact_kl(policy, reference)
    torch.testing.assert_close(exact, (policy.exp() * (policy - reference)).sum())
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * sampled_kl(policy, reference, kind)).sum(), exact)
    assert (sampled_kl(policy, reference, "k3") >= 0).all()
    near = (policy + 1e-3 * torch.randn(7, dtype=torch.float64)).log_softmax(dim=-1)
    torch.testing.assert_close((policy.exp() * sampled_kl(policy, near, "k2")).sum(), exact_kl(policy, near), rtol=1e-2, atol=0)
    assert exact_kl(policy, policy).item() == 0


@pytest.mark.parametrize("whole", [False, True])
def test_at_the_sampled_policy_the_gradient_is_the_plain_policy_gradient(whole: bool) -> None:
    log_probs = SAMPLED.clone().requires_grad_()
    advantages = REWARDS[:, :1].expand(3, 5)
    weights = token_weights(MASK, "answer" if whole else "sum")
    loss, clipped = clipped_surrogate(log_probs, SAMPLED, advantages, weights, whole_answers=whole)
    loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -advantages * MASK / 3)
    assert clipped.item() == 0


@pytest.mark.parametrize("aggregate", ["token", "answer", "sum"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_gradient_is_that_of_finite_differences(aggregate, whole: bool) -> None:
    start = SAMPLED + 0.3 * torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(point):
        return clipped_surrogate(point, SAMPLED, REWARDS, token_weights(MASK, aggregate), whole_answers=whole)[0]

    assert torch.autograd.gradcheck(loss, (start.clone().requires_grad_(),), eps=1e-7, atol=1e-5)


def test_clipping_stops_what_has_gone_far_enough_and_lets_back_what_went_wrong() -> None:
    weights, sampled = torch.full((1, 4), 0.25, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    moved = torch.tensor([[0.5, 0.5, -0.5, -0.5]], dtype=torch.float64).requires_grad_()
    loss, clipped = clipped_surrogate(moved, sampled, torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64), weights)
    loss.backward()
    assert moved.grad is not None
    assert (moved.grad[0] != 0).tolist() == [False, True, True, False]
    assert clipped.item() == 2


def test_values_may_not_profit_from_moving_far() -> None:
    weights = token_weights(MASK, "token")
    sampled, returns = torch.zeros(3, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    near, far = (torch.full((3, 5), value, dtype=torch.float64) for value in (0.1, 0.9))
    assert clipped_value_loss(near, sampled, returns, weights).item() == pytest.approx(0.5 * 0.81)
    assert clipped_value_loss(far, sampled, returns, weights).item() == pytest.approx(0.5 * 0.64)
    assert torch.autograd.gradcheck(lambda one: clipped_value_loss(one, VALUES, REWARDS, weights), (VALUES + 0.1).requires_grad_())


@pytest.mark.parametrize("aggregate", ["token", "answer", "sum"])
def test_what_is_masked_says_nothing_and_parts_add_up(aggregate) -> None:
    weights = token_weights(MASK, aggregate)
    garbage = SAMPLED + 9 * (1 - MASK)
    whole, other = (clipped_surrogate(point, VALUES, REWARDS, weights)[0] for point in (SAMPLED, garbage))
    torch.testing.assert_close(whole, other)
    parts = [
        clipped_surrogate(SAMPLED[rows], VALUES[rows], REWARDS[rows], token_weights(MASK[rows], aggregate, n_tokens=9, n_answers=3))[0]
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
