"""The other pair losses against float64 arithmetic written out, their symmetries, and the places where naive forms break."""

import math

import pytest
import torch

from rewardproof.errors import ConfigError, DataError
from rewardproof.losses import bradley_terry, decoupled, hinge, normalised
from rewardproof.losses.pairwise import SMALLEST_NORM

LOSSES = {"hinge": hinge, "normalised": normalised, "decoupled": decoupled}


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, generator=generator, dtype=torch.float64), torch.randn(7, generator=generator, dtype=torch.float64)


def test_each_loss_is_its_formula_written_out(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = list(zip(*(side.tolist() for side in pairs), strict=True))
    expected = {
        "hinge": [max(0.0, -(c - r)) for c, r in rows],
        "normalised": [-log_sigmoid((c - r) / math.sqrt(c * c + r * r)) for c, r in rows],
        "decoupled": [-log_sigmoid(c - r) - log_sigmoid(c) - log_sigmoid(-r) for c, r in rows],
    }
    for name, loss in LOSSES.items():
        each = loss(*pairs, reduction="none")
        torch.testing.assert_close(each, torch.tensor(expected[name], dtype=torch.float64))
        torch.testing.assert_close(loss(*pairs), each.mean())
        torch.testing.assert_close(loss(*pairs, reduction="sum"), each.sum())


def test_defect_j_the_decoupled_loss_and_its_gradient_are_finite_where_log_of_sigmoid_underflows() -> None:
    chosen, rejected = torch.full((1,), -100.0, requires_grad=True), torch.full((1,), 100.0, requires_grad=True)
    assert torch.sigmoid(chosen - rejected).log().isinf().all(), "the form that is not used here breaks"
    loss = decoupled(chosen, rejected)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(400.0))
    torch.testing.assert_close(chosen.grad, torch.tensor([-2.0]))
    torch.testing.assert_close(rejected.grad, torch.tensor([2.0]))


def test_the_decoupled_loss_is_bradley_terry_and_two_signs(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    zero = torch.zeros_like(chosen)
    expected = bradley_terry(chosen, rejected) + bradley_terry(chosen, zero) + bradley_terry(zero, rejected)
    torch.testing.assert_close(decoupled(chosen, rejected), expected)


def test_beyond_its_margin_the_hinge_costs_and_teaches_nothing() -> None:
    chosen, rejected = torch.tensor([2.0, 1.0], requires_grad=True), torch.zeros(2)
    loss = hinge(chosen, rejected, margin_B=torch.tensor([1.5, 1.5]), reduction="none")
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.5]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, -1.0]
    torch.testing.assert_close(hinge(chosen, rejected, margin_B=1.5), loss.mean())


def test_the_normalised_loss_knows_no_scale_and_is_bounded(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    torch.testing.assert_close(normalised(chosen * 1e3, rejected * 1e3), normalised(chosen, rejected))
    torch.testing.assert_close(normalised(chosen, rejected, temperature=1e9), torch.tensor(math.log(2), dtype=torch.float64))
    best = normalised(torch.tensor([5.0]), torch.tensor([-5.0]), temperature=0.5)
    torch.testing.assert_close(best, torch.tensor(-log_sigmoid(2 * math.sqrt(2))))


def test_rewards_of_zero_are_finite_under_the_normalised_loss() -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    normalised(chosen, rejected, reduction="sum").backward()
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full((2,), -0.5 / SMALLEST_NORM))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    halves = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.5], dtype=torch.bfloat16)
    loss = LOSSES[name](*halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](*(side.float() for side in halves)))


@pytest.mark.parametrize("name", LOSSES)
def test_mistakes_stop_with_a_sentence(name: str) -> None:
    with pytest.raises(DataError, match="Broadcasting would compare every row"):
        LOSSES[name](torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="reduction='median' is unknown"):
        LOSSES[name](torch.zeros(3), torch.zeros(3), reduction="median")
    with pytest.raises(DataError, match="margin_B and chosen have shapes"):
        hinge(torch.zeros(3), torch.zeros(3), margin_B=torch.zeros(2))
    with pytest.raises(ConfigError, match="temperature=0 divides the normalised gap, expected a number above 0"):
        normalised(torch.zeros(3), torch.zeros(3), temperature=0)
