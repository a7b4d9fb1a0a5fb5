"""What a pass costs: the multiplications of the matrix products that one token takes part in. Attention's own scores are left out."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rewardproof.models.experts import DeltaExperts, FullExperts, UpcycledSparseMoeBlock

HEADS = ("score", "lm_head")


def products_per_token(model: nn.Module) -> int:
    """Multiplications of a forward pass for one token, heads left out: twice as many floating-point operations.

    A token of a mixture takes part in the shared expert's products and in those of the routed experts that it chooses.
    """
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] not in HEADS:
            total += module.weight.numel()
        elif isinstance(module, UpcycledSparseMoeBlock):
            total += _of_experts(module.experts, module.router.n_routed)
    return total


def _of_experts(experts: FullExperts | DeltaExperts, routed: int) -> int:
    """Products of one token with the shared expert and so many routed ones."""
    if isinstance(experts, FullExperts):
        return sum(_size(experts.expert(0)[name]) for name in experts.names) * (routed + 1)
    low_rank = [experts.get_parameter(f"{name}_{side}") for name in experts.names if experts.get_parameter(name).ndim == 2 for side in "ab"]
    return sum(_size(experts.get_parameter(name)) for name in experts.names) + routed * sum(map(Tensor.numel, low_rank))


def _size(matrix: Tensor) -> int:
    return matrix.numel() if matrix.ndim == 2 else 0
