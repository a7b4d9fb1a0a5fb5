"""WARM: the uniform average of reward models fine-tuned from one start.

Reference:
    Ramé et al., WARM: On the Benefits of Weight Averaged Reward Models, arXiv:2401.12187.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rewardproof.errors import ModelError


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of state dicts, entry by entry, accumulated in float64.

    Args:
        states: State dicts of models of one architecture.

    Raises:
        ModelError: Fewer than two, or their entries differ in name or shape.

    Example:
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}])
        {'w': tensor([2.])}
    """
    if len(states) < 2:
        raise ModelError(f"Got {len(states)} model to average, expected at least two; name more models.")
    first = states[0]
    for other in states[1:]:
        different = [name for name in first if name not in other or other[name].shape != first[name].shape]
        different += [name for name in other if name not in first]
        if different:
            raise ModelError(
                f"Cannot average models that differ: {different[0]!r} is missing or has another shape in one of them; "
                "expected fine-tunings of one base model. Name models that share their architecture."
            )
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
