"""Segments as sequences of queries and keys: what FlashAttention is told must be what the masks say."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from rewardproof.data.packing import pack
from rewardproof.models.attention import AttentionPlan, varlen_attention
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on the CPU that is what we want


@pytest.mark.parametrize("seed", range(5))
def test_each_segment_has_its_prefix_and_itself_as_keys(seed: int) -> None:
    batch = pack(tiny.random_groups(seed))
    plan = AttentionPlan(batch, torch.device("cpu"))
    spans = plan.spans
    keys = [[*range(one.prefix_start, one.prefix_end), *range(one.start, one.end)] for one in batch.segments]
    assert spans.key_K.tolist() == [place for row in keys for place in row]
    assert spans.query_ends.tolist() == [0, *(one.end for one in batch.segments)]
    assert spans.key_ends.diff().tolist() == [len(row) for row in keys]
    assert spans.longest == (max(one.end - one.start for one in batch.segments), max(map(len, keys)))
    assert spans.query_ends.dtype == spans.key_ends.dtype == torch.int32


def _written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, window: int | None) -> torch.Tensor:
    """What the kernel computes from the spans: causal from the last key backwards."""
    spans, made = plan.spans, []
    for (start, end), (first, last) in zip(_pairs(spans.query_ends), _pairs(spans.key_ends), strict=True):
        place = spans.key_K[first:last]
        rows, columns = (
            torch.arange(end - start, device=query.device)[:, None] + (last - first) - (end - start),
            torch.arange(last - first, device=query.device)[None],
        )
        seen = columns <= rows if window is None else (columns <= rows) & (columns > rows - window)
        made.append(F.scaled_dot_product_attention(query[:, :, start:end], key[:, :, place], value[:, :, place], attn_mask=seen))
    return torch.cat(made, dim=2).transpose(1, 2)


def _pairs(ends: torch.Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ends.tolist()))


@pytest.mark.parametrize("window", [None, 3])
def test_spans_say_what_the_masks_say(window: int | None) -> None:
    """In fp32 the backend falls back to FlexAttention, which reads masks; both must see the same."""
    torch.manual_seed(0)
    batch = pack(tiny.random_groups(1))
    plan = AttentionPlan(batch, torch.device("cpu"))
    query, key, value = (torch.randn(1, 2, batch.n_tokens, 8) for _ in range(3))
    expected, _ = varlen_attention(torch.nn.Module(), query, key, value, None, plan=plan, sliding_window=window)
    torch.testing.assert_close(_written_out(query, key, value, plan, window), expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shared_heads", [1, 3])
def test_the_kernel_computes_what_the_spans_say_gradient_and_all(window: int | None, shared_heads: int) -> None:
    torch.manual_seed(0)
    batch = pack(tiny.random_groups(1)).to("cuda")
    plan = AttentionPlan(batch, torch.device("cuda"))
    tensors = [torch.randn(1, heads, batch.n_tokens, 64, device="cuda") for heads in (6, 6 // shared_heads, 6 // shared_heads)]
    weights = torch.randn(1, batch.n_tokens, 6, 64, device="cuda")
    found = []
    for exact in (True, False):
        query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
        if exact:
            repeated = (one.repeat_interleave(shared_heads, dim=1) for one in (key, value))
            made = _written_out(query, *repeated, plan, window)
        else:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                made, _ = varlen_attention(torch.nn.Module(), query, key, value, None, plan=plan, sliding_window=window)
        (made.float() * weights).sum().backward()
        found.append([made.float(), *(one.grad for one in (query, key, value))])
    for exact, fast in zip(*found, strict=True):
        assert (fast - exact).norm() <= 0.01 * exact.norm()
