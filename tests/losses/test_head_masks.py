"""REINFORCE over masks: its gradient in closed form, and the direction in which it moves."""

from __future__ import annotations

import itertools

import pytest
import torch

from rewardproof.losses import mask_objective, mask_probabilities


def test_the_gradient_is_the_standardised_loss_times_mask_less_probability() -> None:
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=dice, dtype=torch.float64).requires_grad_()
    masks = torch.rand(6, 3, 4, generator=dice) < 0.5
    losses = torch.rand(6, generator=dice, dtype=torch.float64)
    mask_objective(logits, masks, losses).backward()
    weights = (losses - losses.mean()) / (losses.std() + 1e-3)
    wanted = (weights[:, None, None] * (masks.double() - logits.detach().sigmoid())).sum(dim=0)
    torch.testing.assert_close(logits.grad, wanted)


def test_over_all_masks_it_points_where_the_expected_loss_falls() -> None:
    """Every mask of three heads, equally likely: the sum is the exact gradient of the expected loss, up to the scale of losses."""
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)[:, None]
    losses = 2.0 - masks[:, 0, 1] + 0.5 * masks[:, 0, 2]
    mask_objective(logits, masks, losses, epsilon=0.0).backward()
    probabilities = mask_probabilities(logits)
    weights = (masks * probabilities + (1 - masks) * (1 - probabilities)).flatten(1).prod(dim=1)
    (exact,) = torch.autograd.grad((weights * losses).sum(), logits)
    torch.testing.assert_close(logits.grad, exact * len(masks) / losses.std())
    assert logits.grad is not None
    assert logits.grad[0, 1] < 0 < logits.grad[0, 2], "descent raises the head that lowers the loss"


def test_no_mask_is_better_no_head_moves() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    mask_objective(logits, torch.tensor([[[1, 0], [0, 0]], [[0, 1], [1, 1]]]), torch.tensor([0.7, 0.7])).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("logit", [-9.0, 9.0])
def test_a_probability_never_reaches_0_or_1(logit: float) -> None:
    logits = torch.tensor([[logit, 0.0]], requires_grad=True)
    assert mask_probabilities(logits)[0, 0].item() == pytest.approx(1e-3 if logit < 0 else 1 - 1e-3, rel=1e-4)
    mask_objective(logits, torch.tensor([[[1, 0]], [[0, 1]]]), torch.tensor([0.0, 1.0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] != 0
