"""Direct-alignment losses against the formulas written out in float64, their closed gradients, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rewardproof.errors import ConfigError, DataError
from rewardproof.losses import dpo, ipo, log_ratio_gap, policy_hinge, without_length

BETA = 0.3
GAPS = torch.tensor([-700.0, -4.0, -0.5, 0.0, 0.2, 3.0, 10.0, 700.0], dtype=torch.float64)

WRITTEN_OUT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float], Callable[[float], float]]] = {
    # the loss, the formula, and its derivative in the gap
    "dpo": (
        lambda gap: dpo(gap, beta=BETA, reduction="none"),
        lambda gap: math.log1p(math.exp(-abs(BETA * gap))) + max(-BETA * gap, 0.0),
        lambda gap: -BETA * (1 / (1 + math.exp(BETA * gap)) if gap < 0 else math.exp(-BETA * gap) / (1 + math.exp(-BETA * gap))),
    ),
    "policy_hinge": (
        lambda gap: policy_hinge(gap, beta=BETA, reduction="none"),
        lambda gap: max(0.0, 1 - BETA * gap),
        lambda gap: -BETA if BETA * gap < 1 else 0.0,
    ),
    "ipo": (
        lambda gap: ipo(gap, tau=BETA, reduction="none"),
        lambda gap: (gap - 1 / (2 * BETA)) ** 2,
        lambda gap: 2 * (gap - 1 / (2 * BETA)),
    ),
    "ipo of beta": (
        lambda gap: ipo(gap, tau=BETA / 2, scale=BETA**2, reduction="none"),
        lambda gap: (BETA * gap - 1) ** 2,
        lambda gap: 2 * BETA * (BETA * gap - 1),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_losses_and_their_gradients_are_the_formulas(name: str) -> None:
    loss, formula, slope = WRITTEN_OUT[name]
    gap = GAPS.clone().requires_grad_()
    found = loss(gap)
    torch.testing.assert_close(found.detach(), torch.tensor([formula(value) for value in GAPS.tolist()], dtype=torch.float64))
    found.sum().backward()
    torch.testing.assert_close(gap.grad, torch.tensor([slope(value) for value in GAPS.tolist()], dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, (torch.randn(6, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_values_and_slopes_where_model_and_reference_agree(beta: float) -> None:
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    expected = {"dpo": (math.log(2), -beta / 2), "ipo": (1.0, -2 * beta), "hinge": (1.0, -beta)}
    losses = {"dpo": dpo(gap, beta=beta), "ipo": ipo(gap, tau=beta / 2, scale=beta**2), "hinge": policy_hinge(gap, beta=beta)}
    for name, loss in losses.items():
        (slope,) = torch.autograd.grad(loss, gap)
        assert (loss.item(), slope.item()) == pytest.approx(expected[name])


def test_ipo_stops_at_its_target_and_dpo_never() -> None:
    for tau in (0.1, 0.5):
        target = torch.tensor([1 / (2 * tau)], requires_grad=True)
        (slope,) = torch.autograd.grad(ipo(target, tau=tau), target)
        assert slope.item() == 0
        (slope,) = torch.autograd.grad(dpo(target, beta=tau), target)
        assert slope.item() < 0


def test_the_gap_is_of_log_ratios_and_moves_no_reference() -> None:
    values = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    chosen, rejected, reference_chosen, reference_rejected = values
    gap = log_ratio_gap(*values)
    torch.testing.assert_close(gap, (chosen - rejected) - (reference_chosen - reference_rejected))
    gap.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert torch.equal(chosen.grad, torch.ones(5, dtype=torch.float64))
    assert torch.equal(rejected.grad, -torch.ones(5, dtype=torch.float64))
    assert reference_chosen.grad is None
    assert reference_rejected.grad is None
    torch.testing.assert_close(log_ratio_gap(rejected, chosen, reference_rejected, reference_chosen), -gap)


def test_long_answers_keep_a_small_gap_in_float32() -> None:
    reference = torch.tensor([-1234.5678])
    assert log_ratio_gap(reference, 2 * reference, reference, 2 * reference).item() == 0.0
    assert dpo(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.float32


def test_a_preference_that_length_alone_explains_needs_no_gap() -> None:
    """Where the data's reward is α a token, the loss of its expected preferences is least at a gap of 0: nothing is learnt from length."""
    alpha, longer = 0.02, torch.tensor([30.0, -7.0, 0.0], dtype=torch.float64)
    likely = torch.sigmoid(alpha * longer)
    gap = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    kept = [without_length(sign * gap, sign * longer, alpha=alpha, beta=BETA) for sign in (1, -1)]
    (likely * dpo(kept[0], beta=BETA, reduction="none") + (1 - likely) * dpo(kept[1], beta=BETA, reduction="none")).sum().backward()
    torch.testing.assert_close(gap.grad, torch.zeros(3, dtype=torch.float64))
    margin = torch.sigmoid(BETA * GAPS + alpha * 30)
    found = dpo(without_length(GAPS, torch.full_like(GAPS, 30), alpha=alpha, beta=BETA), beta=BETA, reduction="none")
    torch.testing.assert_close(found[1:-1], -margin.log()[1:-1])


def test_ipo_of_beta_is_the_original_up_to_its_scale_on_sums_and_not_on_means() -> None:
    torch.testing.assert_close(ipo(GAPS, tau=BETA / 2, scale=BETA**2), BETA**2 * (GAPS - 1 / BETA).square().mean())
    assert not torch.allclose(ipo(GAPS / 20, tau=BETA / 2, scale=BETA**2), ipo(GAPS, tau=BETA / 2, scale=BETA**2))


def test_contradicting_preferences_do_not_say_where_the_other_mass_goes() -> None:
    """With y1 > y2 and y2 > y1 a policy that gives both next to nothing is as good as its reference: the loss sees the gap alone."""
    reference, elsewhere = torch.full((3,), 1 / 3).double().log(), torch.tensor([1e-9, 1e-9, 1 - 2e-9]).double().log()
    for policy in (reference, elsewhere):
        gap = log_ratio_gap(policy[:1], policy[1:2], reference[:1], reference[1:2])
        assert (dpo(gap) + dpo(-gap)).item() == pytest.approx(2 * math.log(2))
    tilted = torch.tensor([0.5, 0.25, 0.25]).double().log()
    gap = log_ratio_gap(tilted[:1], tilted[1:2], reference[:1], reference[1:2])
    assert (dpo(gap) + dpo(-gap)).item() > 2 * math.log(2)


def test_reductions_agree() -> None:
    for loss in (dpo, ipo, policy_hinge):
        each = loss(GAPS, reduction="none")
        torch.testing.assert_close(loss(GAPS), each.mean())
        torch.testing.assert_close(loss(GAPS, reduction="sum"), each.sum())


def test_what_is_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(DataError, match="chosen and rejected have shapes"):
        log_ratio_gap(two, three, two, three)
    with pytest.raises(DataError, match="under the reference have shapes"):
        log_ratio_gap(two, two, two, three)
    with pytest.raises(DataError, match="gaps and differences of length have shapes"):
        without_length(two, three, alpha=0.1, beta=0.1)
    with pytest.raises(ConfigError, match="Got beta=0"):
        without_length(two, two, alpha=0.1, beta=0)
    with pytest.raises(DataError, match="log-probabilities and those under the reference have shapes"):
        log_ratio_gap(two, two, three, three)
    for value in (0.0, -0.1):
        with pytest.raises(ConfigError, match=f"Got beta={value}, expected a positive number"):
            dpo(two, beta=value)
        with pytest.raises(ConfigError, match="Got beta="):
            policy_hinge(two, beta=value)
        with pytest.raises(ConfigError, match="Got tau="):
            ipo(two, tau=value)
