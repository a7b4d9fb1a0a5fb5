"""Which of a model's parameters train: its upper layers, all of them, or adapters on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rewardproof.errors import ConfigError, MissingExtraError
from rewardproof.models.families import family_of


def freeze_all_but(model: PreTrainedModel, layers: range, *, head: nn.Module | None = None) -> None:
    """Let layers, the norm above them and a head train; everything, embeddings too, where they are all the layers there are."""
    blocks = family_of(model).layer_list(model)
    everything = len(layers) == len(blocks)
    model.requires_grad_(everything)
    for index in layers:
        blocks[index].requires_grad_(True)
    if head is not None:
        head.requires_grad_(True)
    if not everything and len(layers):
        for name, child in model.base_model.named_children():
            if "norm" in name or name == "ln_f":
                child.requires_grad_(True)


def add_adapters(model: PreTrainedModel, layers: range, settings: Mapping[str, Any], *, head: nn.Module | None = None) -> Any:
    """Put low-rank adapters on layers and freeze all else but a head; returns peft's model around the given one, which now has them.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: It refuses the settings.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("lora= needs peft, which is not installed; install it with: pip install 'rewardproof[lora]'") from error
    try:
        adapted = get_peft_model(model, LoraConfig(**{"layers_to_transform": list(layers), "modules_to_save": None, **settings}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Bad `lora:` settings: {error}. They are handed to peft.LoraConfig; correct the key or value named.") from error
    if head is not None:
        head.requires_grad_(True)
    return adapted
