"""Multipliers as weights: their ranges, the mixed advantage, and in which direction descent moves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewardproof.losses import Sense, mixture, multiplier_loss

FINITE = st.lists(st.floats(-15, 15), min_size=1, max_size=6)


@given(FINITE)
def test_weights_of_inequalities_are_shares_and_the_objective_has_the_rest(multipliers: list[float]) -> None:
    found = mixture(torch.tensor(multipliers, dtype=torch.float64), "at_least")
    assert ((found.constraint_N > 0) & (found.constraint_N < 1)).all()
    assert 0 < found.objective < len(multipliers)
    assert float(found.objective + found.constraint_N.sum()) == pytest.approx(len(multipliers))
    exceeding = mixture(torch.tensor(multipliers, dtype=torch.float64), "at_most")
    assert torch.equal(exceeding.constraint_N, -found.constraint_N)
    assert torch.equal(exceeding.objective, found.objective)


@given(FINITE)
def test_weights_of_equalities_lie_between_minus_one_and_one(multipliers: list[float]) -> None:
    found = mixture(torch.tensor(multipliers, dtype=torch.float64), "equal")
    assert ((found.constraint_N > -1) & (found.constraint_N < 1)).all()
    assert 0 < found.objective < 2 * len(multipliers)


def test_at_multipliers_of_zero_an_equality_leaves_n_times_the_objective() -> None:
    found = mixture(torch.zeros(3, dtype=torch.float64), "equal")
    assert float(found.objective) == 3.0
    assert (found.constraint_N == 0).all()


@pytest.mark.parametrize("sense", ["at_least", "equal", "at_most"])
@pytest.mark.parametrize("squash", [True, False])
def test_what_falls_short_raises_its_multiplier_and_what_is_met_lowers_it(sense: Sense, squash: bool) -> None:
    """`at_most` the other way round; each multiplier by its own stream alone."""
    multipliers_N = torch.tensor([0.3, 0.3, -0.7], dtype=torch.float64, requires_grad=True)
    excess_N = torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)
    multiplier_loss(excess_N, multipliers_N, sense, squash=squash).backward()
    assert multipliers_N.grad is not None
    step_N = -multipliers_N.grad * (-1 if sense == "at_most" else 1)
    assert step_N[0] > 0
    assert step_N[1] < 0
    assert step_N[2] == 0


@pytest.mark.parametrize("sense", ["at_least", "equal", "at_most"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_defect_7_without_squashing_every_stream_keeps_its_own_multiplier(sense: Sense, count: int) -> None:
    """The release's branch drops the first one and has another shape than the advantages."""
    multipliers_N = torch.arange(1.0, count + 1)
    found: Any = mixture(multipliers_N, sense, squash=False)
    assert found.constraint_N.shape == (count,)
    assert torch.equal(found.constraint_N, multipliers_N if sense != "at_most" else -multipliers_N)
    assert float(found.objective) == 1.0


def test_the_gradient_is_the_written_out_derivative() -> None:
    multipliers_N = torch.tensor([-1.2, 0.4], dtype=torch.float64, requires_grad=True)
    excess_N = torch.tensor([0.7, -0.2], dtype=torch.float64)
    for sense, slope in (("at_least", lambda m: m.sigmoid() * (1 - m.sigmoid())), ("equal", lambda m: 1 - m.tanh() ** 2)):
        (found_N,) = torch.autograd.grad(multiplier_loss(excess_N, multipliers_N, sense), multipliers_N)  # pyright: ignore
        torch.testing.assert_close(found_N, excess_N * slope(multipliers_N.detach()))
