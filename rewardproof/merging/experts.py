"""Merging a mixture into the dense model it was upcycled from: coefficients from the routing, blocks that learn them, and the fold."""

# E experts (index 0 is the shared one), n routed experts, L upcycled layers.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError, ModelError
from rewardproof.merging.fold import coefficients, fold, fold_deltas
from rewardproof.models.experts import DeltaExperts, FullExperts, UpcycledSparseMoeBlock, feed_forward
from rewardproof.models.families import Weights, family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import moe_blocks, to_dense


class Merge(Section):
    """How experts are folded back into one dense block."""

    method: Literal["uniform", "routing_mass", "learned"] = "learned"
    """Coefficients of the routed experts: equal, the router's mean weights, or learned from there on held-out preferences."""
    shared_weight: Annotated[float, Field(ge=0, le=1)] | Literal["measured"] = 0.5
    """Coefficient λ of the shared expert, or `measured`, its mean weight over tokens, layer by layer; the routed ones share the rest."""
    learn_shared_weight: bool = False
    """Learn λ too, as a sigmoid, starting from `shared_weight`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the training prompts kept away from the experts for learning the coefficients."""
    steps: Annotated[int, Field(ge=1)] = 60
    """Steps on the coefficients at most."""
    groups_per_step: Annotated[int, Field(ge=1)] = 16
    """Groups in one such step."""
    learning_rate: Annotated[float, Field(ge=0)] = 2e-2
    """AdamW's rate on the coefficients' logits."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Evaluations without a lower loss, on the second part of the held-out prompts, before stopping."""
    routing_groups: Annotated[int, Field(ge=1)] = 256
    """Groups on which the router's mean weights are measured."""

    def shared_of(self, mass: RoutingMass) -> float:
        """The shared expert's coefficient λ in a layer."""
        return float(mass.weights_E[0]) if self.shared_weight == "measured" else self.shared_weight


@dataclass(frozen=True, slots=True)
class RoutingMass:
    """Mean mixing weights of one layer over tokens.

    Attributes:
        weights_E: Mean weight of every expert, the shared one first; sums to one.
        load_n: Share of tokens that choose each routed expert; sums to the number of routed experts a token uses.
        entropy: Mean entropy of the router's probabilities, in nats.
    """

    weights_E: Tensor
    load_n: Tensor
    entropy: float


def measure_routing(mixture: RewardModel, groups: Sequence[EncodedGroup]) -> dict[int, RoutingMass]:
    """Mean mixing weights by layer over the tokens of `groups`, in evaluation mode."""
    layers = list(moe_blocks(mixture.model))
    weights: list[Tensor] = []
    loads: list[Tensor] = []
    entropies = torch.zeros(len(layers), dtype=torch.float64)
    n_tokens = 0
    for _, routings in mixture.routings(groups):
        weights.append(torch.stack([_mass(routing.shared_T, routing.weights_TE) for routing in routings]))
        loads.append(torch.stack([routing.selected_TE.double().sum(dim=0).cpu() for routing in routings]))
        for place, routing in enumerate(routings):
            p = routing.probabilities_TE
            entropies[place] += float(-(p * p.clamp_min(1e-12).log()).sum())
        n_tokens += len(routings[0].shared_T)
    weights_LE, loads_Ln = torch.stack(weights).sum(dim=0) / n_tokens, torch.stack(loads).sum(dim=0) / n_tokens
    return {
        layer: RoutingMass(weights_LE[place].float(), loads_Ln[place].float(), float(entropies[place] / n_tokens))
        for place, layer in enumerate(layers)
    }


def _mass(shared_T: Tensor, weights_TE: Tensor) -> Tensor:
    return torch.cat((shared_T.double().sum()[None], weights_TE.double().sum(dim=0))).cpu()


def uniform_logits(mass: RoutingMass) -> Tensor:
    """Equal logits: XFT's start, and its result at its published learning rate."""
    return torch.zeros(len(mass.load_n))


def routing_mass_logits(mass: RoutingMass) -> Tensor:
    """Logarithm of the routed experts' mean weights: the best function-preserving coefficients to first order."""
    return mass.weights_E[1:].clamp_min(1e-6).log()


LOGITS: dict[str, Callable[[RoutingMass], Tensor]] = {
    "uniform": uniform_logits,
    "routing_mass": routing_mass_logits,
    "learned": routing_mass_logits,
}
"""Logits of the routed experts' coefficients by method; `learned` starts from the routing mass and is trained by `FoldedBlock`."""


def starting_coefficients(masses: Mapping[int, RoutingMass], settings: Merge) -> dict[int, Tensor]:
    """Coefficients by layer before any learning, shape `(E,)` each."""
    return {layer: coefficients(settings.shared_of(mass), LOGITS[settings.method](mass)) for layer, mass in masses.items()}


def unmeasured_coefficients(n_experts: Mapping[int, int], settings: Merge) -> dict[int, Tensor]:
    """Coefficients by layer of the `uniform` method, which asks nothing of the router.

    Args:
        n_experts: Experts in all, by layer.
        settings: The shared expert's coefficient.

    Raises:
        ConfigError: That is to be measured.
    """
    if settings.shared_weight == "measured":
        raise ConfigError("Got shared_weight=measured without data, expected a number: nothing is measured. Name data=, or write 0.5.")
    return {layer: coefficients(settings.shared_weight, torch.zeros(count - 1)) for layer, count in n_experts.items()}


class FoldedBlock(nn.Module):
    """A feed-forward block folded from experts on the fly; only its coefficients can train."""

    def __init__(self, block: UpcycledSparseMoeBlock, logits_n: Tensor, *, shared_weight: float, learn_shared: bool) -> None:
        """Fold `block`'s experts, which are used and not copied, with λ = `shared_weight` and the softmax of `logits_n`."""
        super().__init__()
        self.names = block.experts.names
        self.activation = block.activation
        for name, parameter in block.experts.named_parameters():
            self.register_buffer(name, parameter.detach(), persistent=False)
        device = self.get_buffer(self.names[0]).device
        self.logits_n = nn.Parameter(logits_n.detach().clone().float().to(device))
        clipped = min(max(shared_weight, 1e-4), 1 - 1e-4) if learn_shared else shared_weight
        start = torch.logit(torch.tensor(clipped)) if learn_shared else torch.tensor(clipped)
        self.shared = nn.Parameter(start.to(device), requires_grad=learn_shared)
        self.learn_shared = learn_shared
        self._products = block.experts.products_with(0)

    def coefficients_E(self) -> Tensor:
        """The present coefficients, shape `(E,)`."""
        return coefficients(self.shared.sigmoid() if self.learn_shared else self.shared.detach(), self.logits_n)

    def trainable(self) -> list[nn.Parameter]:
        """The coefficients' parameters."""
        return [self.logits_n, self.shared] if self.learn_shared else [self.logits_n]

    def products(self) -> int:
        """Multiplications of one token with the folded matrices; the fold itself, once a pass, is left out."""
        return self._products

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Feed-forward output of the folded block, same shape as the input."""
        folded = _fold_all(dict(self.named_buffers()), self.names, self.coefficients_E())
        return feed_forward(hidden_states, folded, self.activation)


def put_folded_blocks(model: PreTrainedModel, masses: Mapping[int, RoutingMass], settings: Merge) -> dict[int, FoldedBlock]:
    """Replace the mixtures by blocks that fold them, in place; the mixtures can be put back by `restore_blocks`."""
    layers = family_of(model).layer_list(model)
    folded: dict[int, FoldedBlock] = {}
    for index, block in moe_blocks(model).items():
        logits = LOGITS[settings.method](masses[index])
        shared = settings.shared_of(masses[index])
        folded[index] = FoldedBlock(block, logits, shared_weight=shared, learn_shared=settings.learn_shared_weight)
        layers[index].mlp = folded[index]
    return folded


def restore_blocks(model: PreTrainedModel, blocks: Mapping[int, UpcycledSparseMoeBlock]) -> None:
    """Put the mixtures back where `put_folded_blocks` took them from."""
    layers = family_of(model).layer_list(model)
    for index, block in blocks.items():
        layers[index].mlp = block


def require_all_layers(blocks: Mapping[int, UpcycledSparseMoeBlock], coefficients_by_layer: Mapping[int, Tensor]) -> None:
    """Refuse coefficients that leave a layer out.

    Raises:
        ModelError: A layer has no coefficients.
    """
    missing = [layer for layer in blocks if layer not in coefficients_by_layer]
    if missing:
        raise ModelError(
            f"Got coefficients for layers {sorted(coefficients_by_layer)}, expected every upcycled layer ({sorted(blocks)}): "
            f"the experts of layer {missing[0]} could not be folded. Give one vector a layer."
        )


def merge_experts(model: PreTrainedModel, coefficients_by_layer: Mapping[int, Tensor]) -> None:
    """Fold every mixture into a stock dense block, in place: afterwards the model is of its stock class, shapes and size.

    Raises:
        ModelError: The model has no experts, or a layer has no coefficients.
    """
    blocks = moe_blocks(model)
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} is dense: it has no experts to merge. Give a mixture (rewardproof upcycle MODEL OUT, then train)."
        )
    require_all_layers(blocks, coefficients_by_layer)
    family = family_of(model)
    folded = {index: folded_weights(block.experts, coefficients_by_layer[index]) for index, block in blocks.items()}
    to_dense(model)
    layers = family.layer_list(model)
    for index, weights in folded.items():
        family.write(layers[index].get_submodule("mlp").train(model.training), weights)


def folded_weights(experts: FullExperts | DeltaExperts, coefficients_E: Tensor) -> Weights:
    """The matrices of one dense block, folded from one layer's experts."""
    stored = {name: parameter.detach() for name, parameter in experts.named_parameters()}
    return _fold_all(stored, experts.names, coefficients_E.to(stored[experts.names[0]].device))


def _fold_all(stored: Mapping[str, Tensor], names: Sequence[str], coefficients_E: Tensor) -> Weights:
    """Fold every matrix and bias; `stored` holds what `FullExperts` or `DeltaExperts` keep, as the names tell."""
    if not any(f"{name}_b" in stored for name in names):
        return {name: fold(stored[name], coefficients_E) for name in names}
    return {
        name: fold_deltas(stored[name], stored[f"{name}_b"], stored[f"{name}_a"], coefficients_E)
        if f"{name}_b" in stored
        else fold(stored[name].expand(len(coefficients_E), -1), coefficients_E)
        for name in names
    }
