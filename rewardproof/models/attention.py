"""Attention over a packed stream: each segment sees its group's shared prefix and, causally, itself.

Registered with transformers' `AttentionInterface`, so that every family's own attention module calls it; the plan arrives as the keyword
`plan`. Three backends: a loop of scaled-dot-product calls (CPU, MPS); one FlashAttention call over sequences of different lengths (CUDA, in
half precision); and one FlexAttention call (CUDA, whatever FlashAttention does not take). All honour sliding windows, score scaling and
soft-capping exactly.
"""

# H query heads, T tokens of the stream, D head width; batch dimension is always 1.
from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rewardproof.data.packing import PackedBatch, Segment
from rewardproof.models.precision import computing_dtype

SEGMENTS = "rewardproof_segments"
FLEX = "rewardproof_flex"
VARLEN = "rewardproof_varlen"
AMPERE = (8, 0)
"""The compute capability from which FlashAttention runs."""
QUERY_BLOCK = {torch.bfloat16: 256, torch.float32: 128}
"""Queries in one block of written-out attention, where it was fastest."""


class Spans(NamedTuple):
    """Each segment as a sequence of queries and one of keys, the shared prefix's and its own.

    Attributes:
        key_K: Places in the stream of all segments' keys, one segment after the other.
        query_ends: Where each segment's queries end, 0 first; 32-bit, as the kernel reads it.
        key_ends: Where its keys end in `key_K`, likewise.
        longest: Queries and keys of the longest segment.
    """

    key_K: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]


class AttentionPlan:
    """Who attends to whom in one stream, with the masks that the layers share."""

    def __init__(self, batch: PackedBatch, device: torch.device) -> None:
        """Take the plan of `batch`; masks are built when the first layer asks for them."""
        self.segments = batch.segments
        self.prefixes = prefix_numbers(batch.segments)
        self.batch = batch
        self.device = device
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._biases: dict[tuple[int, int, int | None, int, torch.dtype], Tensor] = {}
        self._block_masks: dict[int | None, Any] = {}
        self._spans: Spans | None = None

    def visible(self, segment: Segment, window: int | None) -> Tensor | None:
        """Boolean mask (queries, keys) of a segment, or `None` where plain causal attention is the same."""
        prefix, own = segment.prefix_end - segment.prefix_start, segment.end - segment.start
        binding = window if window is not None and window < prefix + own else None
        return None if prefix == 0 and binding is None else self._mask(prefix, own, binding)

    def bias(self, first: int, count: int, window: int | None, kind: tuple[int, torch.dtype]) -> Tensor:
        """What is added to the scores of queries at positions `[first, first + count)` for keys up to the last of them: 0 where visible.

        Args:
            first: Position of the first query.
            count: Number of queries.
            window: Sliding window, or `None`.
            kind: How often the rows are repeated, one below the other, and the dtype.

        Returns:
            Shape `(repeats * count, first + count)`.
        """
        binding = window if window is not None and window < first + count else None
        key = (first, count, binding, *kind)
        if key not in self._biases:
            hidden = ~self._mask(first, count, binding)
            bias = torch.zeros(hidden.shape, dtype=kind[1], device=self.device).masked_fill_(hidden, float("-inf"))
            self._biases[key] = bias.repeat(kind[0], 1)
        return self._biases[key]

    def _mask(self, prefix: int, own: int, binding: int | None) -> Tensor:
        key = (prefix, own, binding)
        if key not in self._masks:
            query_positions = torch.arange(prefix, prefix + own, device=self.device)[:, None]
            key_positions = torch.arange(prefix + own, device=self.device)[None, :]
            mask = key_positions <= query_positions
            if binding is not None:
                mask = mask & (key_positions > query_positions - binding)
            self._masks[key] = mask
        return self._masks[key]

    @property
    def spans(self) -> Spans:
        """The segments as sequences of queries and of keys."""
        if self._spans is None:
            prefix = torch.tensor([(segment.prefix_start, segment.prefix_end) for segment in self.segments])
            own = torch.tensor([(segment.start, segment.end) for segment in self.segments])
            pieces = torch.stack((prefix, own), dim=1).reshape(-1, 2)
            lengths = pieces[:, 1] - pieces[:, 0]
            ends = lengths.cumsum(0)
            key_K = torch.arange(int(ends[-1])) + torch.repeat_interleave(pieces[:, 0] - ends + lengths, lengths)
            query_ends, key_ends = (F.pad(found, (1, 0)).to(self.device, torch.int32) for found in (own[:, 1], ends[1::2]))
            longest = int(lengths[1::2].max()), int(lengths.view(-1, 2).sum(dim=1).max())
            self._spans = Spans(key_K.to(self.device), query_ends, key_ends, longest)
        return self._spans

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention block mask of the whole stream."""
        if window not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            total = self.batch.n_tokens
            self._block_masks[window] = create_block_mask(
                _stream_rule(self.batch, self.device, window), None, None, total, total, device=str(self.device)
            )
        return self._block_masks[window]


def prefix_numbers(segments: Sequence[Segment]) -> tuple[int | None, ...]:
    """For each segment the number of the segment that is its shared prefix, or `None` where it has none."""
    by_span = {(segment.start, segment.end): number for number, segment in enumerate(segments)}
    return tuple(
        by_span[segment.prefix_start, segment.prefix_end] if segment.prefix_end > segment.prefix_start else None for segment in segments
    )


def _stream_rule(batch: PackedBatch, device: torch.device, window: int | None) -> Callable[..., Tensor]:
    segment_T = torch.empty(batch.n_tokens, dtype=torch.long, device=device)
    prefix_T = torch.empty(batch.n_tokens, dtype=torch.long, device=device)
    for number, (segment, prefix) in enumerate(zip(batch.segments, prefix_numbers(batch.segments), strict=True)):
        segment_T[segment.start : segment.end] = number
        prefix_T[segment.start : segment.end] = -1 if prefix is None else prefix
    position_T = batch.position_ids_T.to(device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (segment_T[key] == segment_T[query]) | (segment_T[key] == prefix_T[query])
        distance = position_T[query] - position_T[key]
        seen = same & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    return visible


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """One scaled-dot-product call a segment; shapes `(1, H, T, D)` in, `(1, T, H, D)` out."""
    # Rotary positions leave fp32 under autocast; one cast of the stream is cheaper than the cast of every segment that autocast would do.
    dtype = computing_dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    written_out = softcap is None and dropout == 0 and query.requires_grad and query.device.type == "cpu"
    heads = query.shape[1]
    if key.shape[1] != heads and not written_out:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
    # Split rather than slice: the gradient of a slice is as large as the stream, that of a split is written once.
    lengths = [segment.end - segment.start for segment in plan.segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    outputs: list[Tensor] = []
    for number, (segment, prefix) in enumerate(zip(plan.segments, plan.prefixes, strict=True)):
        own_keys, own_values = keys[number], values[number]
        if prefix is not None:
            own_keys, own_values = torch.cat((keys[prefix], own_keys), dim=2), torch.cat((values[prefix], own_values), dim=2)
        if written_out:
            outputs += _written_out(queries[number], own_keys, own_values, plan=plan, scaling=scaling, window=sliding_window)
            continue
        mask = plan.visible(segment, sliding_window)
        if softcap is None:
            outputs.append(
                F.scaled_dot_product_attention(
                    queries[number], own_keys, own_values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
                )
            )
        else:
            outputs.append(_soft_capped(queries[number], own_keys, own_values, mask, scaling=scaling, softcap=softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, *, plan: AttentionPlan, scaling: float | None, window: int | None
) -> list[Tensor]:
    """Attention as plain matrix products, block by block of queries; on a CPU, torch's fused attention is slow in its backward pass.

    The query heads that share a head of keys are laid one below the other, so that keys are not repeated.
    """
    n_keys, head_width = key.shape[1], query.shape[3]
    repeats = query.shape[1] // n_keys
    scale = head_width**-0.5 if scaling is None else scaling
    outputs: list[Tensor] = []
    first = key.shape[2] - query.shape[2]
    for block in query.split(QUERY_BLOCK.get(query.dtype, 256), dim=2):
        count = block.shape[2]
        end = first + count
        bias = plan.bias(first, count, window, (repeats, query.dtype))
        folded = block[0].reshape(n_keys, repeats * count, head_width)
        scores = torch.baddbmm(bias, folded, key[0, :, :end].transpose(1, 2), alpha=scale)
        outputs.append((scores.softmax(dim=-1) @ value[0, :, :end]).reshape(1, -1, count, head_width))
        first = end
    return outputs


def _soft_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None, softcap: float) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The whole stream in one FlexAttention call; compiled on CUDA, plain PyTorch elsewhere."""

    def capped(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return score if softcap is None else torch.tanh(score / softcap) * softcap

    attend = _compiled_flex() if query.is_cuda else _plain_flex()
    output = attend(
        query,
        key.to(query.dtype),
        value.to(query.dtype),
        score_mod=None if softcap is None else capped,
        block_mask=plan.block_mask(sliding_window),
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output.transpose(1, 2), None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """One FlashAttention call for all segments, each with its prefix's keys before its own; FlexAttention where it does not suit."""
    dtype, width = computing_dtype(query), query.shape[3]
    if dtype not in (torch.bfloat16, torch.float16) or softcap is not None or dropout or width % 8 or width > 256:
        return flex_attention(
            module, query, key, value, None, plan=plan, scaling=scaling, sliding_window=sliding_window, softcap=softcap, dropout=dropout
        )
    spans = plan.spans
    # Gathered in fp32, so that a prefix that many answers share gets the sum of their gradients in fp32.
    keys, values = (tensor[0].transpose(0, 1).float().index_select(0, spans.key_K).to(dtype) for tensor in (key, value))
    queries = query[0].transpose(0, 1).to(dtype).contiguous()
    window = -1 if sliding_window is None else sliding_window - 1
    return _varlen()(queries, keys, values, spans, scaling, (window, 0))[None], None


@functools.cache
def _varlen() -> Callable[..., Tensor]:
    """Variable-length attention of torch; releases that do not share keys among query heads by themselves get them repeated."""
    from torch.nn.attention.varlen import varlen_attn

    shares_keys = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attend(queries: Tensor, keys: Tensor, values: Tensor, spans: Spans, scale: float | None, window: tuple[int, int]) -> Tensor:
        more: dict[str, Any] = {"scale": scale, "window_size": window}
        if shares_keys:
            more["enable_gqa"] = keys.shape[1] != queries.shape[1]
        else:
            repeats = queries.shape[1] // keys.shape[1]
            keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
        return varlen_attn(queries, keys, values, spans.query_ends, spans.key_ends, *spans.longest, **more)  # pyright: ignore[reportReturnType]

    return attend


@functools.cache
def varlen_is_there() -> bool:
    """Whether this torch has variable-length attention with a scale and a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


@functools.cache
def _plain_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as attend

    return attend


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(_plain_flex(), dynamic=True)


def _no_mask(*_: object, **__: object) -> None:
    return None


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionInterface.register(FLEX, flex_attention)
AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(SEGMENTS, _no_mask)
AttentionMaskInterface.register(FLEX, _no_mask)
AttentionMaskInterface.register(VARLEN, _no_mask)


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel, backend: str) -> Iterator[None]:
    """Let the model's attention modules call a packed backend, and put the stock one back afterwards."""
    before = model.config._attn_implementation
    model.config._attn_implementation = backend
    try:
        yield
    finally:
        model.config._attn_implementation = before


def default_backend(device: torch.device) -> str:
    """On CUDA one call for the whole stream, FlashAttention's where torch has it; the loop over segments elsewhere."""
    if device.type != "cuda":
        return SEGMENTS
    return VARLEN if varlen_is_there() and torch.cuda.get_device_capability(device) >= AMPERE else FLEX
