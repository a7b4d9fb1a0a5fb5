from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rewardproof.models.grouped import groupable, grouped_linear, one_grouped_product


def brute(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    return torch.stack([weight[owner] @ row for row, owner in zip(rows, owners, strict=True)])


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [9, 0, 0, 0], [0, 2, 2, 5]])
def test_rows_meet_their_own_matrix_and_gradients_are_those_of_the_loop(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(4, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    ours = grouped_linear(rows, weight, torch.tensor(counts))
    theirs = brute(rows, weight, counts)
    torch.testing.assert_close(ours, theirs)
    outside = torch.randn(9, 5, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad((ours * outside).sum(), (rows, weight))
    wanted = torch.autograd.grad((theirs * outside).sum(), (rows, weight))
    torch.testing.assert_close(found, wanted)


def test_a_frozen_side_gets_no_gradient() -> None:
    rows, weight = torch.randn(4, 3), torch.randn(2, 5, 3, requires_grad=True)
    grouped_linear(rows, weight, torch.tensor([1, 3])).sum().backward()
    assert rows.grad is None
    assert weight.grad is not None
    rows.requires_grad_(True)
    grouped_linear(rows, weight.detach(), torch.tensor([1, 3])).sum().backward()
    assert rows.grad is not None


def test_the_result_has_the_dtype_of_the_rows() -> None:
    assert grouped_linear(torch.randn(2, 8).bfloat16(), torch.randn(1, 8, 8), torch.tensor([2])).dtype == torch.bfloat16


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize("counts", [[7, 2, 5], [0, 14, 0]])
def test_one_grouped_product_equals_a_product_a_group(counts: list[int]) -> None:
    rows, weight = torch.randn(14, 16), torch.randn(3, 8, 16)
    torch.testing.assert_close(
        one_grouped_product(rows, weight, torch.tensor(counts)), grouped_linear(rows, weight, torch.tensor(counts)), atol=2e-5, rtol=1e-4
    )


def test_grouped_products_only_where_torch_has_them_and_takes_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", object(), raising=False)
    assert groupable(torch.zeros(1, 8, 8, dtype=torch.bfloat16))
    assert groupable(torch.zeros(1, 12, 8))
    assert not groupable(torch.zeros(1, 12, 8, dtype=torch.bfloat16))
    assert not groupable(torch.zeros(1, 8, 9))
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert not groupable(torch.zeros(1, 8, 8))
