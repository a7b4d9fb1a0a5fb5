"""A key-value cache of rows that stand at different positions, written in place, and the attention that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# R rows, T text positions. Keys and values are (rows, key-value heads, positions, head width).
ATTENTION = "rewardproof_rows"


@dataclass
class Step:
    """Where each row's next token is written, and how many positions attention looks at. One object, shared by all layers."""

    row: Tensor = field(default_factory=lambda: torch.arange(0))
    position: Tensor = field(default_factory=lambda: torch.arange(0))
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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token a row and returns views of all that has been written."""
        step, (keys, values) = self.step, self.stored
        keys[step.row, :, step.position] = key_states[:, :, 0]
        values[step.row, :, step.position] = value_states[:, :, 0]
        return keys[: len(step.row), :, : step.span], values[: len(step.row), :, : step.span]

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
    """One new token a row attends to the row's cache. The query heads that share a key-value head become one block of queries.

    Longer queries (the prompts) go to the library's own attention.
    """
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(rows, 1, heads, width), None


AttentionInterface.register(ATTENTION, rows_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
