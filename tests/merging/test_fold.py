"""The fold: a weighted sum of experts, exact whatever surrounds it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.merging import coefficients, fold

EIGHT = {
    "uniform": torch.full((8,), 1 / 8),
    "one_hot": torch.eye(8)[3],
    "random": torch.randn(8, generator=torch.Generator().manual_seed(1)).softmax(dim=0),
    "shared_only": coefficients(1.0, torch.randn(7, generator=torch.Generator().manual_seed(2))),
    "half_shared": coefficients(0.5, torch.randn(7, generator=torch.Generator().manual_seed(3))),
}


def stack(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
def test_identical_experts_fold_to_themselves(name: str, shape: tuple[int, ...]) -> None:
    dense = stack(*shape)
    torch.testing.assert_close(fold(dense.expand(8, *shape), EIGHT[name]), dense, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("expert", range(8))
def test_one_hot_coefficients_are_exactly_that_expert(expert: int) -> None:
    experts = stack(8, 6, 5)
    assert torch.equal(fold(experts, torch.eye(8)[expert]), experts[expert])


def test_shared_weight_of_one_is_exactly_expert_zero() -> None:
    experts = stack(8, 6, 5)
    assert torch.equal(fold(experts, coefficients(1.0, stack(7, seed=4) * 3)), experts[0])


def test_shared_weight_of_zero_leaves_expert_zero_out() -> None:
    experts = stack(8, 6, 5)
    experts[0] = 1e6
    assert fold(experts, coefficients(0.0, torch.zeros(7))).abs().max() < 10


@settings(max_examples=60, deadline=None)
@given(shared=st.floats(0, 1), logits=st.lists(st.floats(-30, 30), min_size=1, max_size=15))
def test_coefficients_are_a_mixture_that_sums_to_one(shared: float, logits: list[float]) -> None:
    found = coefficients(shared, torch.tensor(logits))
    assert found.shape == (len(logits) + 1,)
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    assert bool((found >= 0).all())
    assert float(found[0]) == pytest.approx(shared, abs=1e-7)
    assert torch.allclose(found[1:], (1 - shared) * torch.tensor(logits).softmax(dim=0), atol=1e-7)


def test_fold_is_linear_in_coefficients_and_in_experts() -> None:
    experts, others = stack(5, 4, 3, dtype=torch.float64), stack(5, 4, 3, seed=1, dtype=torch.float64)
    left, right = stack(5, seed=2, dtype=torch.float64), stack(5, seed=3, dtype=torch.float64)
    torch.testing.assert_close(fold(experts, 2 * left - 3 * right), 2 * fold(experts, left) - 3 * fold(experts, right))
    torch.testing.assert_close(fold(2 * experts - 3 * others, left), 2 * fold(experts, left) - 3 * fold(others, left))


def test_fold_is_the_sum_written_out() -> None:
    experts, weights = stack(5, 4, 3, dtype=torch.float64), stack(5, seed=2, dtype=torch.float64)
    written_out = sum(weights[number] * experts[number] for number in range(5))
    torch.testing.assert_close(fold(experts, weights), written_out, rtol=1e-12, atol=1e-12)


def test_bf16_autocast_does_not_reach_the_fold() -> None:
    experts, weights = stack(8, 64, 32), EIGHT["random"]
    exact = fold(experts, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = fold(experts, weights)
        naive = (weights @ experts.reshape(8, -1)).reshape(64, 32)
    assert under.dtype == torch.float32
    assert torch.equal(under, exact)
    assert float((naive.float() - exact).norm() / exact.norm()) > 1e-3, "autocast changes nothing here: the test shows nothing"


def test_bf16_experts_are_summed_in_float32_and_rounded_once() -> None:
    experts, weights = stack(8, 64, 32, dtype=torch.bfloat16), EIGHT["random"]
    assert torch.equal(fold(experts, weights), fold(experts.float(), weights).bfloat16())


def test_gradient_of_a_coefficient_is_an_inner_product() -> None:
    experts, upstream = stack(6, 4, 3, dtype=torch.float64), stack(4, 3, seed=5, dtype=torch.float64)
    weights = stack(6, seed=6, dtype=torch.float64).requires_grad_()
    (fold(experts, weights) * upstream).sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([(upstream * expert).sum() for expert in experts]))


@settings(max_examples=80, deadline=None)
@given(
    n_experts=st.integers(2, 9),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    shared=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_fold_is_the_sum_by_hand_and_lies_between_its_experts(
    n_experts: int, shape: list[int], shared: float, seed: int, dtype: torch.dtype
) -> None:
    experts = stack(n_experts, *shape, seed=seed, dtype=dtype)
    weights = coefficients(shared, stack(n_experts - 1, seed=seed + 1))
    found = fold(experts, weights)
    by_hand = sum(float(weights[number]) * experts[number].double() for number in range(n_experts))
    assert found.shape == experts.shape[1:]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), by_hand, rtol=1e-5, atol=1e-6)
    assert bool((found <= experts.amax(dim=0) + 1e-5).all()), "weights that sum to one cannot leave the experts' range"
    assert bool((found >= experts.amin(dim=0) - 1e-5).all())
    order = torch.randperm(n_experts, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fold(experts[order], weights[order]), found, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fold(experts[:1].expand_as(experts), weights), experts[0], rtol=1e-5, atol=1e-6)
