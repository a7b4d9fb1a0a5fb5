"""What a pass costs: the multiplications of the matrix products that one token takes part in. Attention's own scores are left out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn
from transformers.pytorch_utils import Conv1D

HEADS = frozenset(("score", "lm_head"))


@runtime_checkable
class Counted(Protocol):
    """A block whose products are not those of linear layers inside it."""

    def products(self) -> int:
        """Multiplications of a forward pass for one token."""
        ...


def products_per_token(model: nn.Module) -> int:
    """Multiplications of a forward pass for one token, heads left out: twice as many floating-point operations.

    A token of a mixture takes part in the shared expert's products and in those of the routed experts that it chooses; of low-rank experts,
    in the differences of all of them, as they are computed.
    """
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not HEADS.intersection(name.split(".")):
            total += module.weight.numel()
        elif isinstance(module, Counted):
            total += module.products()
    return total
