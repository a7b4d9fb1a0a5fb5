"""What attention heads put out at a conversation's last token: read, and replaced, where it enters the output projection.

The projection itself is the model's own, with its bias, and a stream may hold any number of conversations: only its input changes. Nobody
attends to a conversation's last token but itself, so what is replaced there reaches nothing else.
"""

# T tokens of the stream, C conversations, L layers, H query heads, D head width, V vocabulary.
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.data.packing import PackedBatch
from rewardproof.errors import ModelError
from rewardproof.models.families import family_of
from rewardproof.models.packed import hidden_states, next_token_log_probs

OUTPUT_PROJECTION = {"gpt_neox": "attention.dense", "gpt2": "attn.c_proj"}
"""Where a decoder layer projects its heads, by `config.model_type`, for families other than Llama and its kin."""
LLAMA_LIKE = "self_attn.o_proj"


class HeadShape(NamedTuple):
    """How many heads a model has, and how wide each is: query heads, whatever number of them share keys and values."""

    layers: int
    heads: int
    width: int


class Replacement(NamedTuple):
    """What to put in the place of heads.

    Attributes:
        masks_CLH: Which heads of each conversation are replaced, true or false, shape `(C, L, H)`.
        values_CLHD: What they put out instead, shape `(C, L, H, D)`; a first dimension of 1 is for all conversations alike.
    """

    masks_CLH: Tensor
    values_CLHD: Tensor


def head_shape(model: PreTrainedModel) -> HeadShape:
    """The heads as the output projections see them; their width times their number may differ from the hidden size.

    Raises:
        ModelError: The architecture is unknown, or its layers differ in their heads.
    """
    heads = int(model.config.num_attention_heads)
    inputs = {_inputs_of(module) for module in _projections(model)}
    if len(inputs) > 1 or next(iter(inputs)) % heads:
        raise ModelError(
            f"Got output projections of {', '.join(map(str, sorted(inputs)))} inputs for {heads} heads, expected one multiple of {heads} "
            "in all layers: a head's place is found by its number. Take a model whose layers are alike."
        )
    return HeadShape(len(_projections(model)), heads, inputs.pop() // heads)


def by_head(inputs: Tensor, shape: HeadShape) -> Tensor:
    """The input of an output projection as heads: `(…, H * D)` becomes `(…, H, D)`, a view."""
    return inputs.unflatten(-1, (shape.heads, shape.width))


def head_activations(model: PreTrainedModel, batch: PackedBatch, *, backend: str = "") -> Tensor:
    """What every head puts out at each conversation's last token, shape `(C, L, H, D)`."""
    shape = head_shape(model)
    found: list[Tensor] = []

    def keep(_layer: int, inputs_TD: Tensor) -> Tensor:
        found.append(by_head(inputs_TD[batch.end_index_C], shape))
        return inputs_TD

    with _entering(model, keep):
        hidden_states(model, batch, backend=backend)
    return torch.stack(found, dim=1)


@contextlib.contextmanager
def replacing(model: PreTrainedModel, batch: PackedBatch, what: Replacement) -> Iterator[None]:
    """While the context is open, heads at the last tokens of this batch's conversations put out what they are told to."""
    shape, ends = head_shape(model), batch.end_index_C

    def replace(layer: int, inputs_TD: Tensor) -> Tensor:
        heads_CHD = by_head(inputs_TD[ends], shape)
        values_CHD = what.values_CLHD[:, layer].to(heads_CHD.dtype)
        changed = inputs_TD.clone()
        changed[ends] = torch.where(what.masks_CLH[:, layer, :, None], values_CHD, heads_CHD).flatten(-2)
        return changed

    with _entering(model, replace):
        yield


def option_log_probs(
    model: PreTrainedModel,
    batch: PackedBatch,
    options: Sequence[Sequence[int]],
    replacement: Replacement | None = None,
    *,
    backend: str = "",
) -> Tensor:
    """Log-probability that each option comes next after every conversation, out of the whole vocabulary, shape `(C, len(options))`.

    Args:
        model: A causal model.
        batch: The stream, on the model's device.
        options: For each option the tokens that begin it; their probabilities are added.
        replacement: What heads put out instead of their own, or nothing.
        backend: Attention backend; empty chooses by device.
    """
    with replacing(model, batch, replacement) if replacement is not None else contextlib.nullcontext():
        states_CD = hidden_states(model, batch, backend=backend)[batch.end_index_C]
    chunks = [
        torch.stack([chunk_CV[:, list(tokens)].logsumexp(dim=-1) for tokens in options], dim=-1)
        for chunk_CV in next_token_log_probs(model, states_CD)
    ]
    return torch.cat(chunks)


@contextlib.contextmanager
def _entering(model: PreTrainedModel, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Hand what enters each layer's output projection, `(T, H * D)`, to a function, and the projection what that returns."""

    def hook(layer: int) -> Callable[..., Any]:
        return lambda _module, inputs: (change(layer, inputs[0][0])[None], *inputs[1:])

    hooks = [module.register_forward_pre_hook(hook(layer)) for layer, module in enumerate(_projections(model))]
    try:
        yield
    finally:
        for entry in hooks:
            entry.remove()


def _projections(model: PreTrainedModel) -> list[nn.Module]:
    """The output projections, lowest layer first."""
    path = OUTPUT_PROJECTION.get(model.config.model_type, LLAMA_LIKE)
    return [layer.get_submodule(path) for layer in family_of(model).layer_list(model)]


def _inputs_of(projection: nn.Module) -> int:
    """Width of a projection's input; GPT-2's transposed convolutions store it first."""
    linear = cast("Any", projection)
    return int(linear.in_features if isinstance(projection, nn.Linear) else linear.weight.shape[0])
