"""MetaRM's J: what is published, and what its options take away from that."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.losses import pairwise_spread


def published(rewards: list[float]) -> float:
    k = len(rewards)
    return 2 / k**2 * sum(1 / (1 + math.exp(-abs(one - other))) for one, other in itertools.combinations(rewards, 2))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_sigmoid_without_epsilon_is_what_is_published(k: int) -> None:
    table = torch.randn(4, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    expected = sum(published(row) for row in table.tolist()) / 4
    assert pairwise_spread(table, form="sigmoid", epsilon=0.0).item() == pytest.approx(expected, rel=1e-12)


def test_published_form_has_a_constant_at_equal_rewards_and_tanh_has_none() -> None:
    equal = torch.zeros(1, 4, dtype=torch.float64)
    pairs = 2 / 16 * 6
    assert pairwise_spread(equal, form="sigmoid", epsilon=0.0).item() == pytest.approx(0.5 * pairs)
    assert pairwise_spread(equal, form="tanh").item() == 0
    table = torch.randn(3, 4, dtype=torch.float64)
    doubled = 2 * pairwise_spread(table, form="sigmoid", epsilon=0.0) - pairs
    torch.testing.assert_close(pairwise_spread(table, form="tanh", epsilon=0.0), doubled)


def test_epsilon_rounds_off_the_kink() -> None:
    def slope(gap: float, epsilon: float) -> float:
        rewards = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(pairwise_spread(rewards, epsilon=epsilon), rewards)[0][0, 0].item()

    assert slope(1e-9, 0.0) - slope(-1e-9, 0.0) == pytest.approx(0.5, abs=1e-6)  # 2/k² times tanh's slope, twice
    assert abs(slope(1e-9, 1e-3) - slope(-1e-9, 1e-3)) < 1e-5
    assert slope(0.0, 1e-3) == slope(0.0, 0.0) == 0
    assert slope(1.0, 1e-3) == pytest.approx(slope(1.0, 0.0), rel=1e-2)


@pytest.mark.parametrize("form", ["tanh", "sigmoid"])
def test_order_and_level_do_not_matter_and_gradcheck_holds(form: str) -> None:
    table = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    value = pairwise_spread(table, form=form)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(pairwise_spread(table[:, [2, 0, 3, 1]] + 7, form=form), value)  # pyright: ignore[reportArgumentType]
    assert torch.autograd.gradcheck(lambda rewards: pairwise_spread(rewards, form=form), table)  # pyright: ignore[reportArgumentType]


def test_one_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="MetaRM got 1 answer a prompt, expected 2 or more"):
        pairwise_spread(torch.zeros(3, 1))
