"""A key-value cache of rows that stand at different positions, written in place, and the attention that reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewardproof.models.packed import position_table

# R rows, W tokens a row in one pass, T text positions. Keys and values are (rows, key-value heads, positions, head width).
ATTENTION = "rewardproof_rows"


@dataclass
class Step:
    """Where the tokens of a pass are written, and how many positions attention looks at. One object, shared by all layers.

    Attributes:
        rows: The rows that take part, side by side.
        place_RW: Of each of a row's tokens in the row.
        span: Positions that attention looks at.
    """

    rows: slice = field(default_factory=lambda: slice(0, 0))
    place_RW: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.long))
    span: int = 0


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer for all rows."""

    def __init__(self, step: Step, rows: int, length: int) -> None:
        super().__init__()
        self.step, self.rows, self.length = step, rows, length
        self.stored: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the whole cache, shaped after one row of keys and values."""
        shape = (self.rows, key_states.shape[1], self.length)
        self.stored = (key_states.new_zeros((*shape, key_states.shape[3])), value_states.new_zeros((*shape, value_states.shape[3])))
        self.is_initialized = True

    def place(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Copies the text so far of new rows, from row `first` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        for mine, theirs in zip(self.stored, (keys, values), strict=True):
            mine[first : first + len(theirs), :, : theirs.shape[2]] = theirs

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies whole rows."""
        for mine in self.stored:
            mine[target] = mine[source]

    def keep(self, rows_R: Tensor, source_R: Tensor, target_R: Tensor) -> None:
        """Copies one position of each of these rows to another."""
        for mine in self.stored:
            mine[rows_R, :, target_R] = mine[rows_R, :, source_R]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the tokens of a pass and returns views of all that has been written."""
        step = self.step
        rows_R1 = torch.arange(step.rows.start, step.rows.stop, device=key_states.device)[:, None]
        for mine, new in zip(self.stored, (key_states, value_states), strict=True):
            mine[rows_R1, :, step.place_RW] = new.transpose(1, 2)
        keys, values = (mine[step.rows, :, : step.span] for mine in self.stored)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask."""
        return self.step.span, 0

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.step.span

    def get_max_length(self) -> int:
        """Positions there are."""
        return self.length


def row_cache(step: Step, *, layers: int, rows: int, length: int) -> tuple[Cache, list[RowLayer]]:
    """An empty cache, and its layers."""
    made = [RowLayer(step, rows, length) for _ in range(layers)]
    return Cache(layers=list(made)), made


def rows_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """New tokens of a row attend to the row's cache. The query heads that share a key-value head become one block of queries.

    Prompts, which have nothing in the cache before them, go to the library's own attention.
    """
    rows, heads, tokens, width = query.shape
    if tokens == key.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = query.reshape(rows, key.shape[1], -1, width)
    if attention_mask is not None and tokens > 1:
        attention_mask = attention_mask.repeat(1, 1, grouped.shape[2] // tokens, 1)
    out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(rows, heads, tokens, width).transpose(1, 2), None


@contextlib.contextmanager
def in_rows(model: PreTrainedModel) -> Iterator[None]:
    """The model computes on rows of a cache, in evaluation mode; it is left as it was found."""
    before, was_training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before or "sdpa")
        model.train(was_training)


def longest_row(model: PreTrainedModel) -> tuple[int, str] | None:
    """Tokens that a row may have at most and what limits them; nothing where a model computes at any length."""
    window = getattr(model.config, "sliding_window", None) if getattr(model.config, "use_sliding_window", True) else None
    limits = ((position_table(model), "positions"), (window, "tokens in its sliding window, which the sampler does not slide"))
    return min(((limit, what) for limit, what in limits if limit is not None), default=None)


AttentionInterface.register(ATTENTION, rows_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
