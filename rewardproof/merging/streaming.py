"""Merging a mixture from its file, layer by layer: no more than one layer's experts are in memory, and no model is built.

The arithmetic and its order are those of `merge_experts`, so the result is the same to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.errors import ModelError
from rewardproof.merging.divergence import Divergence, block_divergence
from rewardproof.merging.experts import folded_weights, require_all_layers
from rewardproof.models.checkpoints import (
    apply_contract_to_config,
    check_tensors,
    experts_file,
    forget_reward_scale,
    load_tokenizer,
    reward_model_config,
    structure,
)
from rewardproof.models.experts import UpcycledSparseMoeBlock
from rewardproof.models.families import family_of
from rewardproof.models.saving import save_streamed
from rewardproof.models.tensor_files import TensorFile
from rewardproof.models.upcycling import CONFIG_KEY, moe_blocks


@dataclass(frozen=True, slots=True)
class StoredMixture:
    """A mixture whose weights stay in their file.

    Attributes:
        mixture: Its structure; parameters have shapes and no data.
        merged: The structure of the dense model that it merges into.
        tokenizer: Its tokenizer.
        path: The file of its weights.
    """

    mixture: PreTrainedModel
    merged: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path

    @property
    def blocks(self) -> dict[int, UpcycledSparseMoeBlock]:
        """The upcycled blocks by layer index, without data."""
        return moe_blocks(self.mixture)


def open_mixture(spec: str) -> StoredMixture:
    """Find a stored mixture and check that its file is whole and of its configuration; no weight is read.

    Raises:
        ModelError: The checkpoint is dense, or no reward model.
        CheckpointError: It is missing, cut short, or its weights are not those that its configuration describes.
    """
    resolved, config = reward_model_config(spec)
    if not hasattr(config, CONFIG_KEY):
        raise ModelError(
            f"{spec} is dense, expected a mixture of experts: it has nothing to merge. Give OUT/moe of a umm run, or method=average."
        )
    path = experts_file(resolved)
    mixture = structure(config, torch.float32)
    plain = copy.deepcopy(config)
    delattr(plain, CONFIG_KEY)
    tokenizer = load_tokenizer(spec)
    merged = structure(plain, torch.float32)
    apply_contract_to_config(merged, tokenizer)
    forget_reward_scale(merged)
    with TensorFile(path) as file:
        check_tensors(file, mixture)
    return StoredMixture(mixture, merged, tokenizer, path)


def merge_stored(
    stored: StoredMixture, coefficients_by_layer: Mapping[int, Tensor], path: Path | str, *, dtype: torch.dtype
) -> list[Divergence]:
    """Fold a stored mixture into a stock dense checkpoint at `path`.

    Args:
        stored: The mixture.
        coefficients_by_layer: Coefficients of each upcycled layer's experts, shape `(E,)` each.
        path: Directory to write; replaced if it exists.
        dtype: Precision of the saved weights; they are folded in float32.

    Returns:
        How far each layer's experts had moved apart.

    Raises:
        ModelError: A layer has no coefficients.
    """
    require_all_layers(stored.blocks, coefficients_by_layer)
    divergence: list[Divergence] = []
    with TensorFile(stored.path) as file:
        tensors = _merged_tensors(stored, file, coefficients_by_layer, divergence)
        save_streamed(stored.merged, stored.tokenizer, path, tensors, dtype=dtype)
    return divergence


def _merged_tensors(
    stored: StoredMixture, file: TensorFile, coefficients_by_layer: Mapping[int, Tensor], divergence: list[Divergence]
) -> Iterator[tuple[str, Tensor]]:
    for name in stored.merged.state_dict():
        if name in file.places:
            yield name, file.read(name)
    for index in stored.blocks:
        folded, apart = _folded_layer(stored, file, index, coefficients_by_layer[index])
        divergence.append(apart)
        yield from folded.items()


def _folded_layer(stored: StoredMixture, file: TensorFile, index: int, coefficients_E: Tensor) -> tuple[dict[str, Tensor], Divergence]:
    family = family_of(stored.merged)
    prefix = f"{family.layers}.{index}.mlp"
    experts, dense = copy.deepcopy(stored.blocks[index].experts), copy.deepcopy(stored.merged.get_submodule(prefix))
    for name in list(experts.state_dict()):  # not load_state_dict, which leaves cycles: a layer's memory must be free before the next
        experts.register_parameter(name, nn.Parameter(file.read(f"{prefix}.experts.{name}", torch.float32), requires_grad=False))
    family.write(dense.to_empty(device="cpu"), folded_weights(experts, coefficients_E))
    return {f"{prefix}.{name}": tensor for name, tensor in dense.state_dict().items()}, block_divergence(index, experts)
