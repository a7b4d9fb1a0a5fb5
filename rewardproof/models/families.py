"""Where each architecture keeps its feed-forward block: the one table that upcycling and merging read.

A feed-forward block is read into a plain mapping of matrices in one orientation, whatever the architecture's own layout: `gate` and `up`
are (F, D), `down` is (D, F), biases are (F,) and (D,). Ungated blocks have no `gate`; fused gate-up matrices are split; GPT-2's transposed
convolutions are turned round.
"""

# F feed-forward width, D hidden width.
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.errors import ModelError

Weights = dict[str, Tensor]
"""Matrices of one feed-forward block by name: `gate`, `up`, `down`, `up_bias`, `down_bias`, `gate_bias`; those it has."""


@dataclass(frozen=True, slots=True)
class Family:
    """Where one architecture keeps its feed-forward blocks.

    Attributes:
        layers: Dotted path from the classification model to the list of layers.
        gate: Name of the gate projection inside `layer.mlp`, empty where there is none.
        up: Name of the up projection (the fused gate-up projection where `fused`).
        down: Name of the down projection.
        activation: Name of the activation function inside `layer.mlp`.
        fused: Gate and up lie in one matrix, gate first.
        transposed: Weights are stored (in, out), as GPT-2's `Conv1D` does.
    """

    layers: str
    gate: str
    up: str
    down: str
    activation: str
    fused: bool = False
    transposed: bool = False

    def layer_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """The model's decoder layers."""
        found = model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    def read(self, block: nn.Module) -> Weights:
        """The block's matrices, as views or detached copies in the common orientation."""
        up, down = block.get_submodule(self.up), block.get_submodule(self.down)
        weights: Weights = {}
        if self.fused:
            weights["gate"], weights["up"] = _matrix(up, transposed=False).chunk(2, dim=0)
        else:
            if self.gate:
                weights["gate"] = _matrix(block.get_submodule(self.gate), transposed=self.transposed)
            weights["up"] = _matrix(up, transposed=self.transposed)
        weights["down"] = _matrix(down, transposed=self.transposed)
        for name, source in (("gate_bias", self.gate), ("up_bias", self.up), ("down_bias", self.down)):
            bias = getattr(block.get_submodule(source), "bias", None) if source else None
            if bias is not None:
                weights[name] = bias.detach()
        return weights

    def write(self, block: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copy matrices in the common orientation into a stock block, in place."""
        with torch.no_grad():
            if self.fused:
                _parameter(block, self.up, "weight").copy_(torch.cat((weights["gate"], weights["up"])))
            else:
                for name, target in (("gate", self.gate), ("up", self.up)):
                    if target:
                        _parameter(block, target, "weight").copy_(weights[name].T if self.transposed else weights[name])
            _parameter(block, self.down, "weight").copy_(weights["down"].T if self.transposed else weights["down"])
            for name, target in (("gate_bias", self.gate), ("up_bias", self.up), ("down_bias", self.down)):
                if name in weights:
                    _parameter(block, target, "bias").copy_(weights[name])

    def activation_of(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """The block's activation function."""
        return getattr(block, self.activation)


def _matrix(projection: nn.Module, *, transposed: bool) -> Tensor:
    weight = projection.get_parameter("weight").detach()
    return weight.T if transposed else weight


def _parameter(block: nn.Module, projection: str, name: Literal["weight", "bias"]) -> nn.Parameter:
    return block.get_submodule(projection).get_parameter(name)


_SWIGLU = Family("model.layers", gate="gate_proj", up="up_proj", down="down_proj", activation="act_fn")

FAMILIES: dict[str, Family] = {
    "llama": _SWIGLU,
    "mistral": _SWIGLU,
    "qwen2": _SWIGLU,
    "qwen3": _SWIGLU,
    "gemma2": _SWIGLU,
    "gemma3_text": _SWIGLU,
    "phi3": Family("model.layers", gate="", up="gate_up_proj", down="down_proj", activation="activation_fn", fused=True),
    "gpt_neox": Family("gpt_neox.layers", gate="", up="dense_h_to_4h", down="dense_4h_to_h", activation="act"),
    "gpt2": Family("transformer.h", gate="", up="c_fc", down="c_proj", activation="act", transposed=True),
}
"""By `config.model_type`. SmolLM2 is a Llama, Qwen2.5 a Qwen2, Pythia a GPT-NeoX."""

PADDED_ONLY = ("bloom", "mpt", "falcon")
"""ALiBi adds its bias inside the model's own attention, so these are scored padded instead of packed."""


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model.

    Raises:
        ModelError: The architecture has no entry in `FAMILIES`.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"Cannot find the feed-forward blocks of a {kind!r} model: models/families.py has no entry for it "
            f"(known: {', '.join(FAMILIES)}). Use a known architecture, or add a Family, about six lines."
        )
    return FAMILIES[kind]


def is_padded_only(model: PreTrainedModel) -> bool:
    """Whether the model's positions live inside its attention scores (ALiBi)."""
    config = model.config
    return config.model_type in PADDED_ONLY and (config.model_type != "falcon" or bool(getattr(config, "alibi", False)))
