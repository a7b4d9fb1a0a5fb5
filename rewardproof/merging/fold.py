"""Folding: experts times coefficients into one feed-forward block.

Reference:
    UMM-RM, arXiv:2512.00724; Ding et al., XFT, arXiv:2404.15247.
"""

# E experts (index 0 is the shared one), n = E - 1 routed experts, X any shape of a matrix or bias, F × D a matrix, R rank of a difference,
# S = n · R.
from __future__ import annotations

import torch
from torch import Tensor


def fold(stack_EX: Tensor, coefficients_E: Tensor) -> Tensor:
    r"""Weighted sum of experts, :math:`\bar W = \sum_i c_i W_i`, computed in float32 or better.

    The gradient with respect to a coefficient is the inner product :math:`\langle \partial L / \partial \bar W, W_i \rangle`;
    autograd forms it in one product with the stack, without a forward pass for every expert.

    Args:
        stack_EX: One matrix (or bias) of every expert, shape `(E, …)`.
        coefficients_E: Coefficients, shape `(E,)`.

    Returns:
        The folded matrix, shape `(…)`, in the stack's precision.

    Example:
        >>> fold(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([0.5, 0.5]))
        tensor([1., 2.])
    """
    precision = torch.promote_types(stack_EX.dtype, torch.float32)
    with torch.autocast(stack_EX.device.type, enabled=False):
        flat = stack_EX.reshape(len(stack_EX), -1).to(precision)
        folded = coefficients_E.to(precision) @ flat
    return folded.reshape(stack_EX.shape[1:]).to(stack_EX.dtype)


def fold_deltas(base_FD: Tensor, b_nFR: Tensor, a_nRD: Tensor, coefficients_E: Tensor) -> Tensor:
    r"""The same sum for experts that are a base and low-rank differences, :math:`(\sum_i c_i) W + \sum_i c_i B_i A_i`, as one product.

    No expert's matrix is formed.

    Args:
        base_FD: The matrix that all experts share, shape `(F, D)`; the shared expert is this alone.
        b_nFR: Left factors of the routed experts, shape `(n, F, R)`.
        a_nRD: Right factors, shape `(n, R, D)`.
        coefficients_E: Coefficients, shape `(E,)`.

    Returns:
        The folded matrix, shape `(F, D)`, in the base's precision.

    Example:
        >>> fold_deltas(torch.zeros(2, 2), torch.ones(1, 2, 1), torch.tensor([[[4.0, 8.0]]]), torch.tensor([0.75, 0.25]))
        tensor([[1., 2.],
                [1., 2.]])
    """
    precision = torch.promote_types(base_FD.dtype, torch.float32)
    with torch.autocast(base_FD.device.type, enabled=False):
        coefficients_E = coefficients_E.to(precision)
        left_FS = (coefficients_E[1:, None, None] * b_nFR.to(precision)).transpose(0, 1).flatten(1)
        folded = torch.addmm(coefficients_E.sum() * base_FD.to(precision), left_FS, a_nRD.to(precision).flatten(0, 1))
    return folded.to(base_FD.dtype)


def coefficients(shared_weight: Tensor | float, logits_n: Tensor) -> Tensor:
    r"""Coefficients of all experts, :math:`c = [\lambda, (1 - \lambda)\,\mathrm{softmax}(a)]`; they sum to one.

    Args:
        shared_weight: :math:`\lambda`, the shared expert's coefficient.
        logits_n: :math:`a`, one logit a routed expert, shape `(n,)`.

    Example:
        >>> coefficients(0.5, torch.zeros(2))
        tensor([0.5000, 0.2500, 0.2500])
    """
    logits_n = logits_n.to(torch.promote_types(logits_n.dtype, torch.float32))
    shared = torch.as_tensor(shared_weight, dtype=logits_n.dtype, device=logits_n.device).reshape(1)
    return torch.cat((shared, (1 - shared) * logits_n.softmax(dim=0)))
