"""Heads read and replaced in a packed stream, against explicit forwards of one conversation at a time with hooks of their own."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from rewardproof.data.packing import pack
from rewardproof.errors import ModelError
from rewardproof.models.head_activations import (
    HeadShape,
    Replacement,
    by_head,
    head_activations,
    head_shape,
    option_log_probs,
    replacing,
)
from rewardproof.models.option_reader import OptionReader

OPTIONS = ((5, 9), (7,))


def double(model: Any) -> Any:
    """In float64, rotary frequencies as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    return model


def expected_options(log_probs_V: Tensor) -> Tensor:
    return torch.stack([log_probs_V[list(option)].logsumexp(dim=0) for option in OPTIONS])


@pytest.fixture
def groups(random_groups: Callable[..., Any]) -> Any:
    return random_groups(4, seed=1)


def drawn(shape: HeadShape, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Masks and values."""
    dice = torch.Generator().manual_seed(seed)
    masks = torch.rand((n, *shape[:2]), generator=dice) < 0.4
    return masks, torch.randn(tuple(shape), generator=dice, dtype=torch.float64)


def test_the_view_by_head_round_trips_with_shared_keys_and_a_width_of_its_own(tiny: ModuleType) -> None:
    model = tiny.causal("qwen3", head_dim=16)
    shape = head_shape(model)
    assert shape == (3, 4, 16), "query heads, not the two that keys and values have"
    assert shape.heads * shape.width != model.config.hidden_size
    flat = torch.randn(5, 64)
    heads = by_head(flat, shape)
    assert heads.shape == (5, 4, 16)
    assert torch.equal(heads.flatten(-2), flat)
    assert torch.equal(heads[:, 2], flat[:, 32:48])
    model.get_submodule("model.layers.1.self_attn.o_proj")(heads.flatten(-2))


def test_heads_are_those_of_a_forward_of_one_conversation(any_family: str, tiny: ModuleType, groups: Any) -> None:
    model = double(tiny.causal(any_family))
    found = head_activations(model, pack(groups))
    for place, tokens in enumerate(tiny.conversations(groups)):
        torch.testing.assert_close(found[place], tiny.replaced_forward(model, tokens)[0], atol=1e-5, rtol=1e-5)


def test_replaced_heads_are_those_of_an_explicit_forward_with_hooks(any_family: str, tiny: ModuleType, groups: Any) -> None:
    model = double(tiny.causal(any_family))
    conversations = tiny.conversations(groups)
    masks, values = drawn(head_shape(model), len(conversations))
    found = option_log_probs(model, pack(groups), OPTIONS, Replacement(masks, values[None]))
    for place, tokens in enumerate(conversations):
        wanted = expected_options(tiny.replaced_forward(model, tokens, masks[place], values)[1])
        torch.testing.assert_close(found[place].double(), wanted, atol=1e-5, rtol=1e-5)


def test_it_agrees_to_float64_where_the_family_computes_in_it(tiny: ModuleType, groups: Any) -> None:
    """GPT-2 rounds nothing to float32 on its way, so the heads that a replacement meets are those of float64."""
    model = double(tiny.causal("gpt2"))
    conversations = tiny.conversations(groups)
    masks, values = drawn(head_shape(model), len(conversations))
    batch = pack(groups)
    with replacing(model, batch, Replacement(masks, values[None])):
        found = head_activations(model, batch)
    for place, tokens in enumerate(conversations):
        seen, _ = tiny.replaced_forward(model, tokens, masks[place], values)
        kept = torch.where(masks[place][..., None], values, seen)
        torch.testing.assert_close(found[place], kept, atol=1e-12, rtol=1e-12)


def test_an_empty_mask_is_the_unmodified_model(any_family: str, tiny: ModuleType, groups: Any) -> None:
    model = tiny.causal(any_family)
    batch, shape = pack(groups), head_shape(model)
    n = len(batch.end_index_C)
    empty = Replacement(torch.zeros(n, *shape[:2], dtype=torch.bool), torch.full((1, *shape), 9.0))
    with torch.no_grad():
        plain, replaced = option_log_probs(model, batch, OPTIONS), option_log_probs(model, batch, OPTIONS, empty)
    assert torch.equal(plain, replaced)
    for place, tokens in enumerate(tiny.conversations(groups)):
        torch.testing.assert_close(plain[place].double(), expected_options(tiny.replaced_forward(model, tokens)[1]), atol=2e-5, rtol=1e-4)


def test_a_head_replaced_by_the_models_own_activation_changes_nothing(any_family: str, tiny: ModuleType, groups: Any) -> None:
    model = tiny.causal(any_family)
    batch = pack(groups)
    with torch.no_grad():
        own = head_activations(model, batch)
        everywhere = Replacement(torch.ones(own.shape[:3], dtype=torch.bool), own)
        assert torch.equal(option_log_probs(model, batch, OPTIONS), option_log_probs(model, batch, OPTIONS, everywhere))


def test_a_head_is_replaced_and_not_added_to(tiny: ModuleType, groups: Any) -> None:
    """Where every head is replaced, what the values of attention are no longer matters."""
    first, second = tiny.causal("llama"), tiny.causal("llama")
    with torch.no_grad():
        for layer in range(3):
            second.get_submodule(f"model.layers.{layer}.self_attn.v_proj").weight.mul_(-3.0)
    batch = pack(groups)
    ends = len(batch.end_index_C)
    shape = head_shape(first)
    what = Replacement(torch.ones(ends, *shape[:2], dtype=torch.bool), drawn(shape, 1)[1][None].float())
    with torch.no_grad():
        found = [option_log_probs(model, batch, OPTIONS, what) for model in (first, second)]
        plain = [option_log_probs(model, batch, OPTIONS) for model in (first, second)]
    torch.testing.assert_close(*found)
    assert not torch.allclose(*plain, atol=1e-3)


def test_the_projections_bias_is_not_lost(tiny: ModuleType, groups: Any) -> None:
    """Published code recomputes the projection by a product alone; with all heads at 0 only its bias is left."""
    model = tiny.causal("llama_biased")
    batch, shape = pack(groups), head_shape(model)
    put_out: list[Tensor] = []
    layer = tiny.output_projection(model, 1)
    hook = layer.register_forward_hook(lambda _m, _i, output: put_out.append(output[0][batch.end_index_C]))
    what = Replacement(torch.ones(len(batch.end_index_C), *shape[:2], dtype=torch.bool), torch.zeros(1, *shape))
    with torch.no_grad():
        option_log_probs(model, batch, OPTIONS, what)
    hook.remove()
    assert layer.bias.abs().min() > 0
    torch.testing.assert_close(put_out[0], layer.bias.detach().expand_as(put_out[0]))


def test_only_last_tokens_are_touched(tiny: ModuleType, groups: Any) -> None:
    model = tiny.causal("llama")
    batch, shape = pack(groups), head_shape(model)
    entered: list[Tensor] = []
    what = Replacement(torch.ones(len(batch.end_index_C), *shape[:2], dtype=torch.bool), torch.zeros(1, *shape))
    hook = tiny.output_projection(model, 2).register_forward_pre_hook(lambda _m, inputs: entered.append(inputs[0][0]))
    with torch.no_grad():
        option_log_probs(model, batch, OPTIONS)
        with replacing(model, batch, what):
            hook.remove()
            hook = tiny.output_projection(model, 2).register_forward_pre_hook(lambda _m, inputs: entered.append(inputs[0][0]))
            option_log_probs(model, batch, OPTIONS)
    hook.remove()
    plain, changed = entered
    others = torch.ones(batch.n_tokens, dtype=torch.bool)
    others[batch.end_index_C] = False
    torch.testing.assert_close(plain[others], changed[others])
    assert not changed[batch.end_index_C].any()


@pytest.mark.parametrize("budget", [1, 30, 100000])
@pytest.mark.parametrize("n_masks", [1, 3, 32])
def test_every_conversation_is_read_under_every_mask_whatever_the_stream(budget: int, n_masks: int, tiny: ModuleType, groups: Any) -> None:
    """Nothing is padded, so no padding side can make the last token one that is not real."""
    model = tiny.causal("qwen3", head_dim=16)
    masks, values = drawn(head_shape(model), n_masks)
    found = OptionReader(model, OPTIONS, tokens_per_batch=budget).log_probs(groups, values.float(), masks)
    conversations = tiny.conversations(groups)
    assert found.shape == (len(conversations), n_masks, 2)
    for place, tokens in enumerate(conversations):
        for number in {0, n_masks - 1}:
            wanted = expected_options(tiny.replaced_forward(model, tokens, masks[number], values)[1])
            torch.testing.assert_close(found[place, number].double(), wanted, atol=2e-5, rtol=1e-4)


def test_activations_come_in_the_order_of_the_conversations(tiny: ModuleType, groups: Any) -> None:
    model = tiny.causal("mistral")
    found = OptionReader(model, OPTIONS, tokens_per_batch=20).activations(groups)
    for place, tokens in enumerate(tiny.conversations(groups)):
        torch.testing.assert_close(found[place], tiny.replaced_forward(model, tokens)[0], atol=2e-5, rtol=1e-4)


def test_texts_on_either_side_of_longropes_threshold_share_no_stream(tiny: ModuleType, random_groups: Callable[..., Any]) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "factor": 4.0,
        "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 12,
    }  # fmt: skip
    model = tiny.causal("phi3", rope_parameters=rope, original_max_position_embeddings=12, max_position_embeddings=512)
    groups = random_groups(6, seed=3)
    conversations = tiny.conversations(groups)
    assert {len(tokens) > 12 for tokens in conversations} == {False, True}
    masks, values = drawn(head_shape(model), 2)
    found = OptionReader(model, OPTIONS).log_probs(groups, values.float(), masks)
    for place, tokens in enumerate(conversations):
        wanted = expected_options(tiny.replaced_forward(model, tokens, masks[1], values)[1])
        torch.testing.assert_close(found[place, 1].double(), wanted, atol=2e-5, rtol=1e-4)


def test_nothing_to_read_gives_nothing(tiny: ModuleType) -> None:
    model = tiny.causal("llama")
    shape = head_shape(model)
    found = OptionReader(model, OPTIONS).log_probs([], torch.zeros(shape), torch.zeros(2, *shape[:2], dtype=torch.bool))
    assert found.shape == (0, 2, 2)


def test_architectures_whose_heads_are_not_known_are_refused(tiny: ModuleType) -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ModelError, match=r"'bloom' model"):
        head_shape(bloom)
    model = tiny.causal("llama")
    model.get_submodule("model.layers.1.self_attn").o_proj = torch.nn.Linear(24, 32)
    with pytest.raises(ModelError, match=r"Got output projections of 24, 32 inputs for 4 heads, expected one multiple of 4"):
        head_shape(model)
