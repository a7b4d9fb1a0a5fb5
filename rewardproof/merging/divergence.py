"""How far the experts have moved apart: if they have not, merging has nothing to merge."""

# E experts, index 0 is the shared one.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
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
    found: list[Divergence] = []
    with torch.no_grad():
        for layer, block in moe_blocks(model).items():
            vectors = [_vector(block.experts, number) for number in range(block.experts.n_experts)]
            shared, routed = vectors[0], vectors[1:]
            cosines = tuple(float(vector @ shared / (vector.norm() * shared.norm())) for vector in routed)
            distances = tuple(float((vector - shared).norm() / shared.norm()) for vector in routed)
            found.append(Divergence(layer, cosines, distances))
    return found


def _vector(experts: FullExperts | DeltaExperts, number: int) -> Tensor:
    return torch.cat([matrix.double().flatten() for matrix in experts.expert(number).values()])
