"""Attention without keys and values is the attention with them, whatever the lengths and the neighbours of a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.models.cross_attention import AttentionShape, CrossAttention

LENGTHS = (5, 1, 9)


def made(seed: int = 0, **changes: Any) -> CrossAttention:
    return CrossAttention(6, 10, AttentionShape(**{"width": 8, **changes}), seed=seed).double()


def texts() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(len(LENGTHS), 6, generator=generator, dtype=torch.float64)
    return own, [torch.randn(length, 10, generator=generator, dtype=torch.float64) for length in LENGTHS]


def written_out(attention: CrossAttention, own_D: torch.Tensor, states_SP: torch.Tensor) -> torch.Tensor:
    """Equation 3, head by head, with every key and value."""
    if attention.shape.norm == "rms":
        own_D, states_SP = (one / one.square().mean(dim=-1, keepdim=True).sqrt() for one in (own_D, states_SP))
    query, key, value = attention.query(own_D), attention.key(states_SP), attention.value(states_SP)
    width = attention.shape.width // attention.shape.heads
    found = []
    for first in range(0, attention.shape.width, width):
        part = slice(first, first + width)
        found.append((key[:, part] @ query[part] / width**0.5).softmax(dim=0) @ value[:, part])
    return attention.output(torch.cat(found))


@pytest.mark.parametrize("changes", [{}, {"heads": 4}, {"norm": "rms"}, {"heads": 2, "norm": "rms", "init": "normal"}])
def test_attention_is_the_written_out_one_and_so_is_its_gradient(changes: dict[str, Any]) -> None:
    attention, (own, states) = made(**changes), texts()
    for parameter in attention.parameters():
        parameter.data *= 3  # away from uniform weights
    found = attention(own, states)
    expected = torch.stack([written_out(attention, one, text) for one, text in zip(own, states, strict=True)])
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(one.square().sum(), list(attention.parameters())) for one in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_texts_one_by_one_are_the_texts_together() -> None:
    attention, (own, states) = made(heads=2), texts()
    together = attention(own, states)
    for place in range(len(LENGTHS)):
        torch.testing.assert_close(attention(own[place : place + 1], states[place : place + 1])[0], together[place], atol=1e-14, rtol=1e-13)


def test_it_has_the_stated_number_of_parameters() -> None:
    assert sum(one.numel() for one in made().parameters()) == 2 * 8 * (6 + 10)


def test_starts_are_those_of_their_names() -> None:
    own, states = texts()
    assert made(init="zero_output")(own, states).abs().max() == 0
    assert made(init="zero_output").key.weight.abs().max() > 0
    assert made(init="normal", width=4096).key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(made(seed=3).query.weight, made(seed=3).query.weight)
    assert not torch.equal(made(seed=3).query.weight, made(seed=4).query.weight)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention.width=8 with attention.heads=3: expected a multiple"):
        made(heads=3)
