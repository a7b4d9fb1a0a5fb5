"""Whether experts became specialists: how far they parted for how far all moved, which prompts go where, and what each would say alone."""

# G groups, E routed experts.
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.models.families import Weights, family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import moe_blocks
from rewardproof.statistics import entropy, mutual_information, pearson


def dense_blocks(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, Weights]:
    """Copies of the feed-forward weights of a dense model's layers: the start that experts are measured from."""
    family = family_of(model)
    blocks = family.layer_list(model)
    return {
        layer: {name: matrix.detach().clone() for name, matrix in family.read(blocks[layer].get_submodule("mlp")).items()}
        for layer in layers
    }


class Parting(NamedTuple):
    """How the routed experts of a layer stand to the shared one, in units of that one's own way ‖W_0 − W_start‖.

    Attributes:
        apart: ‖W_i − W_0‖ of each routed expert.
        moved: ‖W_i − W_start‖ of each: 0 where it stayed behind, so that being apart would say nothing of it.
    """

    apart: tuple[float, ...]
    moved: tuple[float, ...]


def parting(model: PreTrainedModel, start: Mapping[int, Weights]) -> dict[int, Parting]:
    """How far every routed expert parted for how far training went, by layer, all matrices of the block taken as one vector.

    Where the shared expert takes no part and has not moved, the routed experts' mean stands for it.
    """
    found: dict[int, Parting] = {}
    with torch.no_grad():
        for layer, block in moe_blocks(model).items():
            experts = block.experts
            centre = experts.expert(0)
            if not _distance(centre, start[layer]):
                centre = {name: experts.stack(name)[1:].mean(dim=0, dtype=torch.float64) for name in experts.names}
            way = _distance(centre, start[layer])
            norm = sum(float(matrix.double().square().sum()) for matrix in start[layer].values()) ** 0.5
            unit = way if way > 1e-12 * norm else float("inf")
            apart, moved = (
                tuple(_distance(experts.expert(number), origin) / unit for number in range(1, experts.n_experts))
                for origin in (centre, start[layer])
            )
            found[layer] = Parting(apart, moved)
    return found


def _distance(left: Weights, right: Weights) -> float:
    return sum(float((left[name].double() - right[name].double().to(left[name].device)).square().sum()) for name in left) ** 0.5


def weights_by_group(mixture: RewardModel, groups: Sequence[EncodedGroup]) -> dict[int, Tensor]:
    """Mean weights of the routed experts over each group's tokens, by layer, shape `(G, E)`."""
    layers = list(moe_blocks(mixture.model))
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch, routings in mixture.routings(groups):
        for layer, routing in zip(layers, routings, strict=True):
            sums_GE = torch.zeros(batch.n_groups, routing.probabilities_TE.shape[1], device=batch.group_T.device)
            sums_GE = sums_GE.index_add(0, batch.group_T, routing.weights_TE.float())
            found[layer].append((sums_GE / torch.bincount(batch.group_T)[:, None]).cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def regime_information(weights: Mapping[int, Tensor], regimes: Sequence[str]) -> dict[int, float]:
    """Mutual information of each group's most used expert and its regime as a share of the regimes' entropy, by layer.

    1 where the route tells the regime, 0 where it tells nothing; empty where there are not two regimes.
    """
    names, regime_G = np.unique(np.array(regimes, dtype=str), return_inverse=True)
    if len(names) < 2:
        return {}
    possible = float(entropy(np.bincount(regime_G)))
    return {layer: mutual_information(weights_GE.argmax(dim=1).numpy(), regime_G) / possible for layer, weights_GE in weights.items()}


@contextmanager
def alone(model: PreTrainedModel, expert: int) -> Iterator[None]:
    """Let one routed expert of every layer compute all tokens while the context is open."""
    routers = [block.router for block in moe_blocks(model).values()]
    for router in routers:
        router.only = expert
    try:
        yield
    finally:
        for router in routers:
            router.only = None


def smallest_correlation(rewards_EN: NDArray[np.float64]) -> float | None:
    """Smallest correlation between two experts' rewards, shape `(E, N)`; `None` where one of them is constant or there is one alone."""
    pairs = [(first, second) for second in range(len(rewards_EN)) for first in range(second)]
    if not pairs or rewards_EN.std(axis=1).min() == 0:
        return None
    return min(float(pearson(rewards_EN[first], rewards_EN[second])) for first, second in pairs)
