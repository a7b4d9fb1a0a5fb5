"""What every loss shares: the precision it computes in, the shapes it accepts and how it ends."""

from typing import Literal

import torch
from torch import Tensor

from rewardproof.errors import ConfigError, DataError

Reduction = Literal["mean", "sum", "none"]


def full_precision(values: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64.

    Example:
        >>> full_precision(torch.ones(2, dtype=torch.bfloat16)).dtype, full_precision(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return values if values.dtype == torch.float64 else values.float()


def require_same_shape(first: Tensor, second: Tensor, names: str) -> None:
    """Stop where broadcasting would silently pair every row with every other.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> require_same_shape(torch.ones(3), torch.ones(3), "chosen and rejected")
    """
    if first.shape != second.shape:
        raise DataError(
            f"{names} have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be equal. "
            "Broadcasting would compare every row with every other; squeeze or index them first."
        )


def reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """End a loss: its mean, its sum, or every element.

    Raises:
        ConfigError: If the reduction is not one of the three.

    Example:
        >>> reduce(torch.tensor([1.0, 3.0]), "mean"), reduce(torch.tensor([1.0, 3.0]), "sum")
        (tensor(2.), tensor(4.))
    """
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ConfigError(f"reduction={reduction!r} is unknown; expected 'mean', 'sum' or 'none'. Use 'sum' to divide by a global count.")
