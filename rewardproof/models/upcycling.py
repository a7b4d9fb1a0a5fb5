"""Upcycling: replace dense feed-forward blocks by mixtures whose experts are copies of them.

The model computes the same function right after upcycling, because the mixing weights of every token sum to one.

Reference:
    UMM-RM, arXiv:2512.00724; Komatsuzaki et al., Sparse Upcycling, arXiv:2212.05055; Ding et al., XFT, arXiv:2404.15247.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from rewardproof.config import Section
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.experts import DeltaExperts, FullExperts, UpcycledSparseMoeBlock
from rewardproof.models.families import family_of
from rewardproof.models.routing import Mixing, RouteBy, Router

RouterInit = Literal["random", "clusters", "preferences"]
CONFIG_KEY = "rewardproof_upcycle"
"""Entry in the model's configuration that says how a checkpoint was upcycled."""


class Upcycle(Section):
    """How dense feed-forward blocks become mixtures of experts."""

    n_experts: int = 8
    """Experts in all, the shared one included."""
    n_active: int = 6
    """Experts that a token uses, the shared one included."""
    mixing: Mixing = "s_max"
    """How weights are set, which sum to one for every token: the shared expert's by the router's certainty or as a constant; or none for
    it and each token to a routed expert drawn at random (EWA)."""
    shared_weight: float = 0.5
    """Weight of the shared expert under `mixing=fixed`; `s_max` sets it from the router."""
    experts: str = "full"
    """`full` copies, or `lora:R` for one base and differences of rank R."""
    layers: str = "all"
    """`all`, or `top:K` for the K layers nearest the head; never more than the layers that train."""
    router_learning_rate: float = 1e-3
    """The routers' own learning rate: they start at random and see weak gradients. With `mixing=fixed` and one routed expert a token its
    weight is a constant: without a balance loss routers stay as they started."""
    share_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How far every step pulls each routed expert to the mean of the others (EWA); it rises from 0 to this over the training."""
    route_by: RouteBy = "token"
    """`prompt` gives all tokens of a group the routing of its prompt: whole answers are judged by the experts of their prompt."""
    router_init: RouterInit = "random"
    """What the routers' start tells apart, a part of the training prompts for each routed expert: `clusters` of prompts, or, by
    `preferences`, prompts whose preferences follow different rules."""
    hard_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps, from the first, in which the most probable routed expert computes a token alone."""
    expert_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """The experts' own learning rate; 0 is the trainer's."""
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a routed expert's inner units that is dropped while training."""
    branch_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs for which a dense model trains on each expert's part of the prompts before they are joined as the routed experts (branch,
    train, mix); 0 starts from copies. The mixture then trains for `trainer.num_train_epochs`, which may be 0."""


def check(settings: Upcycle) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: Names the key, why, and what to write instead.
    """
    if settings.mixing == "random" and (settings.router_init != "random" or settings.hard_share or settings.route_by == "prompt"):
        raise ConfigError(
            f"Got upcycle.mixing=random with router_init={settings.router_init}, hard_share={settings.hard_share}, "
            f"route_by={settings.route_by}, expected random, 0 and token: tokens that go to experts at random have no router to start, "
            "harden or feed. Write mixing=s_max or fixed, or drop these."
        )
    if settings.share_rate and (settings.experts != "full" or settings.n_experts < 3):
        raise ConfigError(
            f"upcycle.share_rate={settings.share_rate} with experts={settings.experts} and n_experts={settings.n_experts}, expected full "
            "and 3 or more: low-rank experts share their base already, and one routed expert has no other to be pulled to. Write "
            "experts=full n_experts=5, or share_rate=0."
        )
    if settings.n_experts < 2:
        raise ConfigError(
            f"upcycle.n_experts={settings.n_experts}: a mixture needs a shared expert and at least one routed expert; "
            "write n_experts=2 or more (8 is the published setting), or train the recipe `dense`."
        )
    if settings.mixing == "s_max" and settings.n_experts == 2:
        raise ConfigError(
            "upcycle.n_experts=2 with mixing=s_max gives the shared expert a weight of zero for every token "
            "(one routed expert always has probability one); write n_experts=3 or more, or mixing=fixed."
        )
    if not 2 <= settings.n_active <= settings.n_experts:
        raise ConfigError(
            f"upcycle.n_active={settings.n_active}: expected 2 to n_experts={settings.n_experts}, the shared expert included: a token uses "
            "the shared expert and at least one routed one. Write n_active in that range (6 of 8 is the published setting)."
        )
    if not 0 <= settings.shared_weight <= 1:
        raise ConfigError(
            f"upcycle.shared_weight={settings.shared_weight}: expected a weight between 0 and 1: the routed experts get the rest. "
            "Write such a weight (0.5 is the default); it matters under mixing=fixed only."
        )
    if settings.branch_epochs and (settings.router_init == "random" or settings.experts != "full"):
        raise ConfigError(
            f"upcycle.branch_epochs={settings.branch_epochs} with router_init={settings.router_init}, experts={settings.experts}; expected "
            "clusters or preferences, and full: branches train on a part of the prompts each and become whole experts. Write "
            "router_init=clusters experts=full."
        )
    lora_rank(settings.experts)


def lora_rank(experts: str) -> int:
    """Rank of delta experts, or 0 for full copies.

    Example:
        >>> lora_rank("full"), lora_rank("lora:4")
        (0, 4)
    """
    if experts == "full":
        return 0
    match = re.fullmatch(r"lora:([1-9]\d*)", experts)
    if not match:
        raise ConfigError(
            f"upcycle.experts={experts!r}: expected `full` or `lora:R` with a rank R of at least 1: with rank 0 experts would stay equal. "
            "Write full, or for instance lora:4."
        )
    return int(match.group(1))


def select_layers(spec: str, n_layers: int) -> range:
    """Indices of the layers that `all` or `top:K` names.

    Example:
        >>> select_layers("all", 4), select_layers("top:1", 4), select_layers("top:0", 4)
        (range(0, 4), range(3, 4), range(4, 4))
    """
    if spec == "all":
        return range(n_layers)
    match = re.fullmatch(r"top:(\d+)", spec)
    if not match or int(match.group(1)) > n_layers:
        raise ConfigError(
            f"layers={spec!r}: expected `all` or `top:K` with K from 0 to {n_layers}, the model's number of layers. "
            f"Layers are counted from the head down; write layers=all, or for instance layers=top:{min(4, n_layers)}."
        )
    return range(n_layers - int(match.group(1)), n_layers)


def first_differing(spec: str, n_layers: int) -> int:
    """The first layer in which models that trained these layers differ; 0 where no layer below is shared, or none is above.

    Example:
        >>> first_differing("all", 4), first_differing("top:1", 4), first_differing("top:0", 4)
        (0, 3, 0)
    """
    return select_layers(spec, n_layers).start % n_layers


def is_upcycled(model: PreTrainedModel) -> bool:
    """Whether the model's configuration says that it holds experts."""
    return hasattr(model.config, CONFIG_KEY)


def upcycle(model: PreTrainedModel, settings: Upcycle, *, layers: range | None = None, seed: int = 0) -> None:
    """Replace feed-forward blocks by mixtures, in place.

    Args:
        model: A dense classification model of a known family.
        settings: Number of experts, mixing form and layers.
        layers: Layers that may be upcycled, e.g. those that train; `None` means all.
        seed: Seed of the routers and of the low-rank factors.

    Raises:
        ConfigError: The settings cannot work.
        ModelError: The model is upcycled already, or its family is unknown.
    """
    check(settings)
    if is_upcycled(model):
        raise ModelError("Got a model that holds experts already, expected a dense one; merge it first (rewardproof merge MOE OUT).")
    family = family_of(model)
    blocks = family.layer_list(model)
    allowed = range(len(blocks)) if layers is None else layers
    chosen = [index for index in select_layers(settings.layers, len(blocks)) if index in allowed]
    if not chosen:
        raise ConfigError(f"upcycle.layers={settings.layers!r} names no layer that trains; expected at least one. Widen layers=.")
    _swap(model, settings, chosen, seed=seed)
    setattr(model.config, CONFIG_KEY, {**settings.model_dump(), "layer_indices": chosen})


def restore_structure(model: PreTrainedModel, entry: Mapping[str, Any]) -> None:
    """Give a freshly built dense model the expert structure that a checkpoint's configuration describes; weights come after."""
    settings = Upcycle(**{key: value for key, value in entry.items() if key != "layer_indices"})
    _swap(model, settings, list(entry["layer_indices"]), seed=0)
    setattr(model.config, CONFIG_KEY, dict(entry))


def _swap(model: PreTrainedModel, settings: Upcycle, indices: list[int], *, seed: int) -> None:
    family = family_of(model)
    rank = lora_rank(settings.experts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in indices:
            layer = family.layer_list(model)[index]
            dense = family.read(layer.get_submodule("mlp"))
            kind = functools.partial(DeltaExperts, rank=rank) if rank else FullExperts
            experts = kind(dense, settings.n_experts, dropout=settings.expert_dropout)
            router = Router(
                dense["up"].shape[1],
                settings.n_experts - 1,
                settings.n_active - 1,
                mixing=settings.mixing,
                shared_weight=settings.shared_weight,
                route_by=settings.route_by,
            ).to(dense["up"].device)
            layer.mlp = UpcycledSparseMoeBlock(experts, router, family.activation_of(layer.get_submodule("mlp")))


def moe_blocks(model: nn.Module) -> dict[int, UpcycledSparseMoeBlock]:
    """The upcycled blocks by layer index, lowest first."""
    found: dict[int, UpcycledSparseMoeBlock] = {}
    for name, module in model.named_modules():
        if isinstance(module, UpcycledSparseMoeBlock):
            found[next(int(part) for part in reversed(name.split(".")) if part.isdigit())] = module
    return dict(sorted(found.items()))


def to_dense(model: PreTrainedModel) -> None:
    """Put stock blocks of the right shapes back where experts were, in place; their weights are still to be written."""
    from transformers import AutoModelForSequenceClassification

    family = family_of(model)
    with torch.device("meta"):
        stock = AutoModelForSequenceClassification.from_config(model.config)
    for index, block in moe_blocks(model).items():
        sample = block.experts.expert(0)["up"]
        layer = family.layer_list(model)[index]
        layer.mlp = family.layer_list(stock)[index].get_submodule("mlp").to_empty(device=sample.device).to(sample.dtype)
    delattr(model.config, CONFIG_KEY)
