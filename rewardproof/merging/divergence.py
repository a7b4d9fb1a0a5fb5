"""How far the experts have moved apart: if they have not, merging has nothing to merge."""

# E experts, index 0 is the shared one; X one matrix or bias, flattened.
from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rewardproof.models.experts import DeltaExperts, FullExperts
from rewardproof.models.upcycling import moe_blocks


@dataclass(frozen=True, slots=True)
class Divergence:
    """Distance of each routed expert from the shared one in one layer, all matrices of the block taken as one vector.

    Attributes:
        layer: Layer index.
        cosine: cos(W_i, W_0) of each routed expert.
        relative_distance: ‖W_i − W_0‖ / ‖W_0‖ of each routed expert.
    """

    layer: int
    cosine: tuple[float, ...]
    relative_distance: tuple[float, ...]


def expert_divergence(model: PreTrainedModel) -> list[Divergence]:
    """Divergence of every upcycled layer."""
    return [block_divergence(layer, block.experts) for layer, block in moe_blocks(model).items()]


def block_divergence(layer: int, experts: FullExperts | DeltaExperts) -> Divergence:
    """Divergence of one layer's experts, summed over matrices in float64: no more than one expert's matrix is copied at a time."""
    inner, squared, apart = ([0.0] * experts.n_experts for _ in range(3))
    with torch.no_grad():
        for name in experts.names:
            shared_X = experts.matrix(name, 0).double().flatten()
            for number in range(experts.n_experts):
                expert_X = experts.matrix(name, number).double().flatten()
                inner[number] += float(expert_X @ shared_X)
                squared[number] += float(expert_X @ expert_X)
                apart[number] += float((expert_X - shared_X).square_().sum())
    return Divergence(
        layer,
        tuple(product / (own * squared[0]) ** 0.5 for product, own in zip(inner[1:], squared[1:], strict=True)),
        tuple((gap / squared[0]) ** 0.5 for gap in apart[1:]),
    )
