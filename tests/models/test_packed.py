"""The packed forward against the stock one: rewards, gradients, log-probabilities, and wrong plans that the comparison must catch."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
    BloomConfig,
    Phi3Config,
    PreTrainedModel,
)

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, pack
from rewardproof.errors import ModelError
from rewardproof.models.attention import FLEX, SEGMENTS, segment_attention
from rewardproof.models.families import family_of
from rewardproof.models.packed import answer_log_probs, by_conversation, hidden_states, packed_rewards, position_boundary
from rewardproof.models.reward_model import RewardModel
from tests.models import tiny

BACKENDS = (SEGMENTS, FLEX)
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on the CPU that is what we want


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_packed_rewards_equal_stock_rewards_one_by_one(family: str, backend: str) -> None:
    model = tiny.classifier(family)
    for seed in range(3):
        groups = tiny.random_groups(seed)
        with torch.no_grad():
            packed = packed_rewards(model, pack(groups), backend=backend).rewards_C
            alone = tiny.stock_rewards(model, groups)
        torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)
        assert alone.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_many_random_packings_equal_stock_rewards(family: str, backend: str) -> None:
    model = tiny.classifier(family, seed=1)
    for seed in range(100, 125):
        dice = random.Random(seed)
        groups = tiny.random_groups(
            seed, sizes=tuple(dice.choice([1, 2, 5]) for _ in range(dice.randint(1, 8))), longest=dice.choice([1, 6, 30])
        )
        with torch.no_grad():
            packed = packed_rewards(model, pack(groups), backend=backend).rewards_C
            torch.testing.assert_close(packed, tiny.stock_rewards(model, groups), atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_rewards_do_not_depend_on_the_order_of_groups(family: str, backend: str) -> None:
    model = tiny.classifier(family)
    groups = tiny.random_groups(7)
    with torch.no_grad():
        there = packed_rewards(model, pack(groups), backend=backend).rewards_C.split([len(group.conversations) for group in groups])
        back = packed_rewards(model, pack(groups[::-1]), backend=backend).rewards_C.split(
            [len(group.conversations) for group in groups[::-1]]
        )
    torch.testing.assert_close(list(there), list(back)[::-1], atol=2e-5, rtol=0)


def test_a_prefix_said_shorter_than_it_is_changes_no_reward() -> None:
    model = tiny.classifier("gemma3")
    whole = EncodedGroup(((9, 8, 7, 6, 5), (9, 8, 7, 6, 4, 10)), 4, (4, 4), 0)
    with torch.no_grad():
        rewards = [packed_rewards(model, pack([replace(whole, shared=shared)])).rewards_C for shared in range(5)]
    for other in rewards[1:]:
        torch.testing.assert_close(other, rewards[0], atol=2e-5, rtol=0)


def _gradients(model: PreTrainedModel, rewards: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (torch.sin(3 * rewards) * torch.linspace(-1, 1, len(rewards), device=rewards.device)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        (SEGMENTS, "cpu"),
        pytest.param(FLEX, "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
    ],
)  # FlexAttention has no gradient on the CPU
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_packed_gradients_equal_stock_gradients(family: str, backend: str, device: str) -> None:
    model = tiny.classifier(family)
    groups = tiny.random_groups(3)
    alone = _gradients(model, tiny.stock_rewards(model, groups))
    model.to(device)  # pyright: ignore[reportArgumentType]
    packed = _gradients(model, packed_rewards(model, pack(groups).to(device), backend=backend).rewards_C)
    assert packed.keys() == alone.keys() == dict(model.named_parameters()).keys()
    for name, gradient in alone.items():
        assert (packed[name].cpu() - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def _late_rests(batch: PackedBatch) -> PackedBatch:
    positions = batch.position_ids_T.clone()
    for segment in batch.segments:
        if segment.prefix_end > segment.prefix_start:
            positions[segment.start : segment.end] += 1
    return replace(batch, position_ids_T=positions)


def _rests_that_see_each_other(batch: PackedBatch) -> PackedBatch:
    before = [batch.segments[0], *batch.segments[:-1]]
    wrong = [
        segment._replace(prefix_start=previous.start, prefix_end=previous.end) if segment.prefix_end > segment.prefix_start else segment
        for segment, previous in zip(batch.segments, before, strict=True)
    ]
    return replace(batch, segments=tuple(wrong))


def test_a_plan_whose_prefix_is_no_segment_is_refused() -> None:
    batch = pack([EncodedGroup(((5, 6, 7), (5, 6, 8)), 2, (2, 2), 0)])
    torn = replace(batch, segments=(*batch.segments[:-1], batch.segments[-1]._replace(prefix_end=1)))
    with torch.no_grad(), pytest.raises(KeyError):
        packed_rewards(tiny.classifier("llama"), torn, backend=SEGMENTS)


@pytest.mark.parametrize("spoil", [_late_rests, _rests_that_see_each_other])
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_a_wrong_plan_changes_rewards(family: str, spoil: Callable[[PackedBatch], PackedBatch]) -> None:
    model = tiny.classifier(family)
    dice = random.Random(0)
    prompt = tuple(dice.randrange(4, 96) for _ in range(5))
    rests = [tuple(dice.randrange(4, 96) for _ in range(6)) for _ in range(3)]
    batch = pack([EncodedGroup(tuple(prompt + rest for rest in rests), 5, (5, 5, 5), 0)])
    with torch.no_grad():
        right, wrong = (packed_rewards(model, plan, backend=SEGMENTS).rewards_C for plan in (batch, spoil(batch)))
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "ignored"),
    [
        *[(family, "sliding_window") for family in ("mistral", "gemma2", "gemma3", "phi3")],
        ("gemma2", "softcap"),
        *[(family, "scaling") for family in ("gpt2", "gemma2", "gemma3")],
    ],
)
def test_ignoring_what_a_family_asks_of_its_attention_changes_rewards(family: str, ignored: str) -> None:
    def careless(*arguments: object, **options: object) -> object:
        return segment_attention(*arguments, **{**options, ignored: None})  # type: ignore[arg-type]

    AttentionInterface.register(f"ignores_{ignored}", careless)
    AttentionMaskInterface.register(f"ignores_{ignored}", lambda *_, **__: None)
    model = tiny.classifier(family)
    batch = pack(tiny.random_groups(1))
    with torch.no_grad():
        right, wrong = (packed_rewards(model, batch, backend=backend).rewards_C for backend in (SEGMENTS, f"ignores_{ignored}"))
    assert (right - wrong).abs().max() > 1e-3


def test_the_stock_attention_is_put_back() -> None:
    model = tiny.classifier("llama")
    batch = pack(tiny.random_groups(0))
    with torch.no_grad():
        packed_rewards(model, batch)
    assert model.config._attn_implementation == "eager"
    family_of(model).layer_list(model)[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        packed_rewards(model, batch)
    assert model.config._attn_implementation == "eager"


def test_alibi_goes_padded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0, attn_implementation="eager")
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tiny._sharpen(model, 0)
    groups = tiny.random_groups(4)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        packed = packed_rewards(model, pack(groups)).rewards_C
        torch.testing.assert_close(packed, tiny.stock_rewards(model, groups), atol=2e-5, rtol=0)
    with torch.no_grad():
        packed_rewards(model, pack(groups))
    assert caplog.text.count("bloom adds position biases inside its attention (ALiBi); scoring it padded instead of packed") == 1
    with pytest.raises(ModelError, match=r"Got bloom, expected a model whose streams are packed: .*Use another base model"):
        packed_rewards(model, pack(groups), answers=True)


def test_the_states_of_all_tokens_are_those_that_end_states_are_taken_from() -> None:
    model, batch = tiny.classifier("llama"), pack(tiny.random_groups(4))
    with torch.no_grad():
        output = packed_rewards(model, batch, tokens=True)
        assert packed_rewards(model, batch).states_TD is None
    assert output.states_TD is not None
    assert torch.equal(output.states_TD[batch.end_index_C], output.states_CD)


def _long_rope() -> PreTrainedModel:
    config = Phi3Config(
        **{**tiny.COMMON, "max_position_embeddings": 128}, original_max_position_embeddings=12, sliding_window=None,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 12,
        },
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    tiny._sharpen(model, 0)
    return model


def test_conversations_on_both_sides_of_a_rotary_threshold_equal_stock() -> None:
    model = _long_rope()
    assert position_boundary(model) == 12
    groups = tiny.random_groups(5, sizes=(1, 2, 5, 5, 2))
    lengths = [len(tokens) for tokens in tiny.conversations(groups)]
    assert min(lengths) <= 12 < max(lengths)
    with torch.no_grad():
        alone = tiny.stock_rewards(model, groups)
        mixed = packed_rewards(model, pack(groups)).rewards_C
    scored = RewardModel(model, tiny.word_tokenizer()).score_encoded(groups)
    torch.testing.assert_close(torch.tensor([reward for rewards in scored for reward in rewards]), alone, atol=2e-5, rtol=0)
    assert (mixed - alone).abs().max() > 1e-3, "one stream for both sides would do as well, so this test would prove nothing"


def test_a_rotary_threshold_is_kept_under_a_shared_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    model = _long_rope()
    groups = tiny.random_groups(5, sizes=(1, 2, 5, 5, 2))
    plain = RewardModel(model, tiny.word_tokenizer()).score_encoded(groups)
    shared = RewardModel(model, tiny.word_tokenizer()).share_trunk(2, limit_gb=1).score_encoded(groups)
    torch.testing.assert_close(shared, plain, atol=2e-5, rtol=0)


def test_only_rotary_types_that_change_with_length_have_a_threshold() -> None:
    assert all(position_boundary(tiny.classifier(family)) is None for family in ("llama", "gemma3", "gpt2", "phi3"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_answer_log_probs_equal_the_stock_log_softmax(family: str, backend: str) -> None:
    model = tiny.causal(family)
    groups = tiny.random_groups(6)
    batch = pack(groups)
    expected, owners = [], []
    with torch.no_grad():
        for number, (tokens, start) in enumerate(
            (tokens, start) for group in groups for tokens, start in zip(group.conversations, group.answer_starts, strict=True)
        ):
            log_probs = model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)
            expected += [log_probs[place - 1, tokens[place]] for place in range(max(start, 1), len(tokens))]
            owners += [number] * (len(tokens) - max(start, 1))
        got = answer_log_probs(model, batch, backend=backend, chunk=5)
    assert batch.target_conversation_L.tolist() == owners
    torch.testing.assert_close(got, torch.stack(expected), atol=2e-5, rtol=0)


def test_gemma2_log_probs_need_the_final_soft_cap() -> None:
    model = tiny.causal("gemma2")
    batch = pack(tiny.random_groups(6))
    with torch.no_grad():
        capped = answer_log_probs(model, batch)
        model.config.final_logit_softcapping = None
        assert (answer_log_probs(model, batch) - capped).abs().max() > 1e-3


def test_log_probs_of_a_model_without_a_language_head() -> None:
    with pytest.raises(ModelError, match="has no language-model head, expected a causal model"):
        answer_log_probs(tiny.classifier("llama"), pack(tiny.random_groups(0)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("last", [tiny.COMMON["pad_token_id"], tiny.COMMON["eos_token_id"], 9])
def test_rewards_are_read_at_the_true_end_by_position(last: int, backend: str) -> None:
    model = tiny.classifier("qwen3")
    tokens = ((5, 0, 6, 1, 7, 0, 0, last), (5, 0, 6, 1, 8, 1, last))
    with torch.no_grad():
        packed = packed_rewards(model, pack([EncodedGroup(tokens, 4, (4, 4), 0)]), backend=backend).rewards_C
        by_hand = [model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])[0] for ids in tokens]
    torch.testing.assert_close(packed, torch.stack(by_hand), atol=2e-5, rtol=0)


def test_conversations_are_recovered_from_a_stream() -> None:
    groups = tiny.random_groups(8)
    batch = pack(groups)
    assert [tuple(row.tolist()) for row in by_conversation(batch, batch.token_ids_T)] == tiny.conversations(groups)


def test_hidden_states_of_the_prefix_are_those_of_a_conversation_alone() -> None:
    model = tiny.classifier("mistral")
    group = EncodedGroup(((9, 8, 7, 6, 5), (9, 8, 7, 6, 4, 10)), 4, (4, 4), 0)
    with torch.no_grad():
        stream_TD = hidden_states(model, pack([group]))
        alone_TD = model.model(input_ids=torch.tensor([group.conversations[1]])).last_hidden_state[0]
    torch.testing.assert_close(stream_TD[[0, 1, 2, 3, 5, 6]], alone_TD, atol=2e-5, rtol=0)
