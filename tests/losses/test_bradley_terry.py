"""The preference losses against float64 arithmetic and their own symmetries."""

import math

import pytest
import torch

from rewardproof.errors import ConfigError, DataError
from rewardproof.losses import bradley_terry, centering, reward_l2


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, generator=generator, dtype=torch.float64), torch.randn(7, generator=generator, dtype=torch.float64)


def test_equals_the_logarithm_written_out(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    expected = [-math.log(1 / (1 + math.exp(-(c - r - 0.3)))) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    loss = bradley_terry(chosen, rejected, margin_B=0.3, reduction="none")
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin_B=0.3), loss.mean())
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin_B=0.3, reduction="sum"), loss.sum())


def test_certain_smoothing_is_the_flipped_label(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    flipped = bradley_terry(rejected, chosen, margin_B=0.5)
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin_B=0.5, label_smoothing=1.0), flipped)
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin_B=0.5, label_smoothing=torch.ones(7)), flipped)


def test_smoothing_equals_equation_five(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    p = torch.sigmoid(chosen - rejected)
    expected = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean()
    torch.testing.assert_close(bradley_terry(chosen, rejected, label_smoothing=0.1), expected)


def test_a_tensor_of_margins_is_one_margin_a_pair(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    margins = torch.linspace(-1, 1, 7, dtype=torch.float64)
    together = bradley_terry(chosen, rejected, margin_B=margins, reduction="none")
    alone = [bradley_terry(c[None], r[None], margin_B=m.item()) for c, r, m in zip(chosen, rejected, margins, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_shifting_all_rewards_changes_nothing_and_large_gaps_stay_finite(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    torch.testing.assert_close(bradley_terry(chosen + 5, rejected + 5), bradley_terry(chosen, rejected))
    assert bradley_terry(torch.tensor([-1e4]), torch.tensor([1e4]), label_smoothing=0.1).isfinite()


def test_the_logarithm_does_not_saturate() -> None:
    """Of `-log(sigmoid(d) + 1e-5)` the loss of a gap of -100 would be 11.5, and its gradient 0."""
    chosen = torch.tensor([-100.0], requires_grad=True)
    loss = bradley_terry(chosen, torch.tensor([0.0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(100.0)
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(-1.0)


def test_half_precision_is_computed_in_float32() -> None:
    loss = bradley_terry(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.5], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(math.log1p(math.exp(-0.5))))


def test_gradient_flows_to_both_sides_with_opposite_sign() -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    bradley_terry(chosen, rejected).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full((2,), -0.25))
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(DataError, match="Broadcasting would compare every row"):
        bradley_terry(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(DataError, match="margin_B and chosen have shapes"):
        bradley_terry(torch.zeros(3), torch.zeros(3), margin_B=torch.zeros(2))
    with pytest.raises(ConfigError, match="not a probability"):
        bradley_terry(torch.zeros(3), torch.zeros(3), label_smoothing=1.5)
    with pytest.raises(ConfigError, match="reduction='median' is unknown"):
        bradley_terry(torch.zeros(3), torch.zeros(3), reduction="median")  # pyright: ignore[reportArgumentType]


def test_reward_l2_is_half_the_mean_over_pairs_of_both_squares(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    expected = (chosen**2 + rejected**2).mean() / 2
    torch.testing.assert_close(reward_l2(torch.cat([chosen, rejected])), expected)
    torch.testing.assert_close(reward_l2(torch.stack([chosen, rejected], dim=1)), expected)


def test_centering_leaves_the_gap_free(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen, rejected = pairs
    torch.testing.assert_close(centering(chosen + 3, rejected - 3), centering(chosen, rejected))
    torch.testing.assert_close(centering(chosen, rejected), ((chosen + rejected) ** 2).mean())
