"""Batch-wise sum-to-zero: its identities, what it is not, and that parts add up to the whole."""

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.losses import ZeroSum, bradley_terry, centering, reward_l2, zero_sum, zero_sum_part

LAMBDA = 1e-3


def rewards(n_pairs: int = 8, *, seed: int = 0) -> torch.Tensor:
    """Rewards of both sides of some pairs, `(2, B)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n_pairs, generator=generator, dtype=torch.float64).add(0.7).requires_grad_()


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_acceptance_1_the_gradient_is_lambda_m_for_every_reward_and_the_three_forms_of_the_penalty_agree() -> None:
    found = rewards()
    n_pairs, mean, total = found.shape[1], float(found.detach().mean()), float(found.detach().sum())
    penalty = LAMBDA * zero_sum(found.sum(), n_pairs)
    assert float(penalty.detach()) == pytest.approx(LAMBDA * n_pairs * mean**2, rel=1e-12)
    assert float(penalty.detach()) == pytest.approx(LAMBDA / (4 * n_pairs) * total**2, rel=1e-12)
    written = LAMBDA * n_pairs * found.mean() ** 2  # as the released code writes it
    slope = gradient(penalty, found)
    torch.testing.assert_close(slope, torch.full_like(found, LAMBDA * mean))
    torch.testing.assert_close(slope, gradient(written, found))


def test_the_squared_sum_is_4b_times_the_squared_mean() -> None:
    found = rewards()
    mean, total = (zero_sum(found.sum(), 8, form=form) for form in ("mean_squared", "sum_squared"))
    torch.testing.assert_close(total, 4 * 8 * mean)
    torch.testing.assert_close(total, found.sum() ** 2)
    torch.testing.assert_close(gradient(total, found), 2 * found.detach().sum() * torch.ones_like(found))


def test_acceptance_3_a_constant_added_to_all_rewards_changes_the_penalty_and_never_bradley_terry() -> None:
    found, shift = rewards().detach(), 3.0
    torch.testing.assert_close(bradley_terry(*(found + shift)), bradley_terry(*found))
    before, after = zero_sum(found.sum(), 8), zero_sum((found + shift).sum(), 8)
    mean = found.mean()
    torch.testing.assert_close(after - before, 8 * ((mean + shift) ** 2 - mean**2))
    assert float(after - before) > 1


def test_acceptance_4_rewards_that_sum_to_zero_cost_and_teach_nothing_however_far_apart() -> None:
    spread = 1e3 * torch.tensor([[4.0, -1.0, 2.0], [-3.0, -1.0, -1.0]], dtype=torch.float64)
    spread.requires_grad_()
    for form in ("mean_squared", "sum_squared"):
        penalty = zero_sum(spread.sum(), 3, form=form)
        assert float(penalty.detach()) == 0
        assert not gradient(penalty, spread).any()


def test_acceptance_5_mean_squared_l2_and_pairwise_centring_have_different_gradients() -> None:
    found = rewards()
    gradients = {
        "batch": gradient(zero_sum(found.sum(), 8), found),
        "l2": gradient(reward_l2(found), found),
        "pairwise": gradient(centering(*found), found),
    }
    assert len(set(gradients["batch"].flatten().tolist())) == 1, "one number for all 2B rewards"
    torch.testing.assert_close(gradients["l2"], found.detach() / 8)
    torch.testing.assert_close(gradients["pairwise"], (2 * found.detach().sum(dim=0) / 8).expand(2, 8))
    directions = {name: tensor / tensor.norm() for name, tensor in gradients.items()}
    for one, other in (("batch", "l2"), ("batch", "pairwise"), ("l2", "pairwise")):
        assert float((directions[one] * directions[other]).sum()) < 0.95, (one, other)


@pytest.mark.parametrize("form", ["mean_squared", "sum_squared"])
def test_parts_add_up_to_the_whole_in_value_and_in_gradient(form: ZeroSum) -> None:
    found = rewards()
    whole = zero_sum(found.sum(), 8, form=form)
    pieces = [found[:, :1], found[:, 1:4], found[:, 4:]]
    parts = sum(zero_sum_part(piece.sum(), found.sum(), 8, form=form) for piece in pieces)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient(parts, found), gradient(whole, found))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"form='mean' is unknown; expected one of mean_squared, sum_squared, which differ 4B-fold"):
        zero_sum(torch.ones(()), 1, form="mean")  # pyright: ignore[reportArgumentType]
