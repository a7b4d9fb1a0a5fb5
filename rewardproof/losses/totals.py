"""Statistics of a batch that several processes hold parts of: each sums its own part, then all sum what the processes found.

A loss that is not linear in its batch (a variation, a correlation) takes its sums through such a function; one that is linear has no need.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

Total = Callable[[Tensor], Tensor]
"""Turns this process's part of a sum into the whole sum, of the same shape and with a gradient."""


def own_part(statistic: Tensor) -> Tensor:
    """The statistic itself: this process holds the whole batch.

    Example:
        >>> own_part(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return statistic


def over_processes(statistic: Tensor) -> Tensor:
    r"""Sum over all processes, with a gradient; the statistic itself where there is one process.

    Every process must call it, as often as the others and in the same order. Backward sums too: with :math:`s = \sum_q s_q` and one loss
    a process,

    .. math:: \frac{\partial \sum_p L_p}{\partial s_q} = \sum_p \frac{\partial L_p}{\partial s}

    so that each process is left with its share of the gradient of the sum of all losses.

    Example:
        >>> over_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return statistic
    return _SumOverProcesses.apply(statistic)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportReturnType]


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, statistic: Tensor) -> Tensor:
        return _summed(statistic)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _summed(gradient)


def _summed(statistic: Tensor) -> Tensor:
    total = statistic.detach().clone().contiguous()
    dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
    return total
