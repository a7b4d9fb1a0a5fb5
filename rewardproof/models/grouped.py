"""Products of consecutive groups of rows with a matrix each: what the experts of a block compute."""

# R rows, E groups and their matrices, I inputs, O outputs.
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(rows_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Each row times the transpose of its group's matrix, shape `(R, O)`, in the dtype of the rows.

    On CUDA one grouped product, where torch has it and the shapes suit it; elsewhere a product a group, whose backward pass writes the
    gradient of the stack in place instead of joining the gradients of its slices.

    Args:
        rows_RI: Rows sorted by group.
        weight_EOI: One matrix a group.
        counts_E: How many rows each group has, in order; they sum to R, and may be 0.
    """
    weight_EOI = weight_EOI.to(rows_RI.dtype)
    if rows_RI.is_cuda and groupable(weight_EOI):
        return one_grouped_product(rows_RI, weight_EOI, counts_E)
    return _SplitLinear.apply(rows_RI, weight_EOI, counts_E.tolist())  # pyright: ignore[reportReturnType]


def one_grouped_product(rows_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """The same as one call, which does not have to know the counts on the host."""
    return F.grouped_mm(rows_RI, weight_EOI.transpose(1, 2), offs=counts_E.cumsum(0).to(torch.int32))


def groupable(weight_EOI: Tensor) -> bool:
    """Whether torch has grouped products and takes these shapes: their rows have to begin at multiples of 16 bytes."""
    return hasattr(F, "grouped_mm") and all(width * weight_EOI.dtype.itemsize % 16 == 0 for width in weight_EOI.shape[1:])


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RI: Tensor, weight_EOI: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows_RI, weight_EOI)
        ctx.sizes = sizes
        output_RO = rows_RI.new_empty(len(rows_RI), weight_EOI.shape[1])
        for part, made, weight_OI in zip(rows_RI.split(sizes), output_RO.split(sizes), weight_EOI, strict=True):
            torch.mm(part, weight_OI.T, out=made)
        return output_RO

    @staticmethod
    def backward(ctx: Any, gradient_RO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows_RI, weight_EOI = ctx.saved_tensors
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        rows_gradient_RI = torch.empty_like(rows_RI) if needs_rows else None
        weight_gradient_EOI = torch.empty_like(weight_EOI) if needs_weight else None
        start = 0
        for number, size in enumerate(ctx.sizes):
            part = slice(start, start + size)
            start += size
            if rows_gradient_RI is not None:
                torch.mm(gradient_RO[part], weight_EOI[number], out=rows_gradient_RI[part])
            if weight_gradient_EOI is not None:
                torch.mm(gradient_RO[part].T, rows_RI[part], out=weight_gradient_EOI[number])
        return rows_gradient_RI, weight_gradient_EOI, None
