"""Scores as an answer is read: against scoring every prefix on its own, whatever shares the stream, the trunk or the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BloomConfig, PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.group import Group, Message
from rewardproof.errors import EvaluationError
from rewardproof.models.families import family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.token_scores import TokenScores
from rewardproof.models.upcycling import Upcycle, upcycle
from tests.models import tiny

CLOSE = 2e-5


def bloom() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0, attn_implementation="eager")
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tiny._sharpen(model, 0)
    return model


def prefix_by_prefix(model: PreTrainedModel, tokens: tuple[int, ...], start: int) -> np.ndarray:
    """The reward of every prefix, each in a forward of its own, from one token before `start`."""
    with torch.no_grad():
        return np.array(
            [float(model(input_ids=torch.tensor([tokens[:end]])).logits[0, 0]) for end in range(max(start, 1), len(tokens) + 1)]
        )


def assert_every_prefix(scorer: RewardModel, model: PreTrainedModel, groups: list[EncodedGroup]) -> None:
    found = scorer.readings_encoded(groups)
    for group, rows, whole in zip(groups, found, scorer.score_encoded(groups), strict=True):
        for tokens, start, row, score in zip(group.conversations, group.answer_starts, rows, whole, strict=True):
            np.testing.assert_allclose(row, prefix_by_prefix(model, tokens, start), atol=CLOSE)
            assert row[-1] == pytest.approx(score, abs=1e-7), "the last reading is the score"
    assert np.concatenate([row for rows in found for row in rows]).std() > 0.1


@pytest.mark.parametrize("family", [*tiny.FAMILY_NAMES, "bloom"])
@pytest.mark.parametrize("budget", [4096, 24])
def test_each_reading_is_the_score_of_that_prefix(family: str, budget: int) -> None:
    """Shared prefixes, several groups a stream, and, with the small budget, groups that are cut into parts."""
    model = bloom() if family == "bloom" else tiny.classifier(family)
    scorer = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=budget)
    for seed in range(2):
        assert_every_prefix(scorer, model, tiny.random_groups(seed))


def test_a_mixture_of_experts_is_read_as_a_dense_model_is() -> None:
    model = tiny.classifier("qwen2")
    upcycle(model, Upcycle(n_experts=4, n_active=2), seed=0)
    with torch.no_grad():
        for layer in family_of(model).layer_list(model):
            for parameter in layer.mlp.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert_every_prefix(RewardModel(model, tiny.word_tokenizer()), model, tiny.random_groups(1))


def test_a_shared_trunk_changes_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    model = tiny.classifier("gemma2")
    scorer = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=40).share_trunk(2, limit_gb=1)
    runs = [0]
    family_of(model).layer_list(model)[0].register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    groups = tiny.random_groups(3)
    scorer.score_encoded(groups)
    before = runs[0]
    found = scorer.readings_encoded(groups)
    assert runs[0] == before > 0, "the activations that scoring has stored serve the readings"
    for rows, plain in zip(found, RewardModel(model, tiny.word_tokenizer()).readings_encoded(groups), strict=True):
        for row, expected in zip(rows, plain, strict=True):
            np.testing.assert_allclose(row, expected, atol=CLOSE)


def chat(*answers: tuple[str, ...]) -> Group:
    roles = ("assistant", "user")
    return Group(
        prompt=(Message("user", "w1 w2"),),
        answers=tuple(tuple(Message(roles[place % 2], turn) for place, turn in enumerate(turns)) for turns in answers),
    )


def test_the_prompts_score_the_tokens_and_the_suffix() -> None:
    """The template writes `<bar> … <eos>` around a turn: the prompt is scored at the answer's `<bar>`, the suffix is the last token's."""
    model, tokenizer = tiny.classifier("llama"), tiny.word_tokenizer()
    scorer = RewardModel(model, tokenizer)
    groups = [
        chat(("w3 w4 w5",), ("w3 w9",)),
        chat(
            ("w6 w7", "w8", "w10"),
        ),
    ]
    found = scorer.score_tokens(groups)
    alone = prefix_by_prefix(model, tuple(tokenizer("<bar> w1 w2 <eos> <bar> w3 w4 w5 <eos>")["input_ids"]), 1)
    one = found[0][0]
    assert one.before == pytest.approx(alone[4], abs=CLOSE)
    np.testing.assert_allclose(one.reached_A, alone[5:8], atol=CLOSE)
    np.testing.assert_allclose(one.scores_A, [*alone[5:7], alone[8]], atol=CLOSE)
    assert one.ends_A.tolist() == [2, 5, 8]
    turns = found[1][0]
    assert len(turns.reached_A) == 8, "five words, and between them twice what the template writes around a turn"
    assert turns.ends_A.tolist() == [2, 5, 5, 5, 8, 8, 8, 12]
    for group, rows in zip(groups, scorer.score(groups), strict=True):
        for token_scores, score in zip(found[groups.index(group)], rows, strict=True):
            assert token_scores.score == pytest.approx(score, abs=1e-7)
            assert token_scores.scores_A[-1] == token_scores.score
            assert token_scores.located


@pytest.mark.parametrize("text", ["a b🙂", "🙂 at", "é", "the 🙂 cat"])
def test_a_character_of_several_tokens_is_the_answers_to_its_last_byte(text: str) -> None:
    """What the template writes after it begins after that byte, what stands before the answer ends before its first."""
    tokenizer = tiny.byte_tokenizer()
    model = tiny.classifier("llama", vocab_size=len(tokenizer))
    group = Group(prompt=(Message("user", "say"),), answers=((Message("assistant", text),),))
    ((one,),) = RewardModel(model, tokenizer).score_tokens([group])
    around = "<|im_start|>user\nsay<|im_end|>\n<|im_start|>assistant\n"
    ids = tuple(tokenizer(f"{around}{text}<|im_end|>\n", add_special_tokens=False)["input_ids"])
    before = len(tokenizer(around, add_special_tokens=False)["input_ids"])
    own = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    alone = prefix_by_prefix(model, ids, before)
    assert one.before == pytest.approx(alone[0], abs=CLOSE)
    np.testing.assert_allclose(one.reached_A, alone[1 : own + 1], atol=CLOSE)
    assert one.score == pytest.approx(alone[-1], abs=CLOSE)
    assert len(set(alone.round(4).tolist())) == len(alone), "no two readings are alike"


def test_the_gains_telescope_to_the_score_less_the_prompts() -> None:
    for row in RewardModel(tiny.classifier("qwen3"), tiny.word_tokenizer()).score_tokens([chat(("w3 w4 w5",), ("w7",))])[0]:
        assert np.diff([row.before, *row.scores_A]).sum() == pytest.approx(row.score - row.before, abs=1e-5)


def test_answers_without_characters_of_their_own() -> None:
    model = tiny.classifier("llama")
    scorer = RewardModel(model, tiny.word_tokenizer())
    ((empty,),) = scorer.score_tokens([chat(("",))])
    assert (len(empty.reached_A), len(empty.ends_A), empty.located) == (0, 0, True)
    assert empty.before == pytest.approx(prefix_by_prefix(model, (3, 5, 6, 1, 3), 5)[0], abs=CLOSE)
    scorer.tokenizer.chat_template = "{% for m in messages %}{{ '<bar> ' + m['content'].replace('w3', 'w9') + ' <eos> ' }}{% endfor %}"
    ((rewritten,),) = scorer.score_tokens([chat(("w3 w4",))])
    assert (len(rewritten.reached_A), rewritten.located) == (0, False)
    assert rewritten.score == pytest.approx(scorer.score([chat(("w3 w4",))])[0][0], abs=1e-7)


def test_where_nothing_precedes_an_answer_it_is_read_from_its_first_token_on() -> None:
    model = tiny.classifier("llama")
    group = Group(prompt=(), answers=((Message("assistant", "w3 w4"),),), raw=True)
    ((one,),) = RewardModel(model, tiny.word_tokenizer()).score_tokens([group])
    alone = prefix_by_prefix(model, (7, 8, 1), 1)
    assert one.before == one.reached_A[0]
    np.testing.assert_allclose([*one.reached_A, one.score], alone, atol=CLOSE)


def test_in_bf16_the_head_still_reads_in_full_precision() -> None:
    """Differences of scores that were rounded to three digits would be noise."""
    group = chat(("w3 w4 w5 w6 w7 w8 w9",))
    ((one,),) = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer(), precision="bf16").score_tokens([group])
    values = torch.tensor([one.before, *one.reached_A, one.score], dtype=torch.float32)
    assert (values != values.bfloat16().float()).float().mean() > 0.8


def test_a_reading_that_is_not_finite_is_named() -> None:
    model = tiny.classifier("llama")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match=r"The reward of rows.jsonl:3 is .*nan.*expected a finite number"):
        RewardModel(model, tiny.word_tokenizer()).score_tokens([replace(chat(("w3",)), origin="rows.jsonl:3")])


@pytest.mark.parametrize("order", [lambda groups: groups[::-1], lambda groups: groups[:1]])
def test_readings_do_not_depend_on_what_else_is_scored(order: Callable[[list[EncodedGroup]], list[EncodedGroup]]) -> None:
    scorer, groups = RewardModel(tiny.classifier("mistral"), tiny.word_tokenizer()), tiny.random_groups(7)
    whole = dict(zip([group.index for group in groups], scorer.readings_encoded(groups), strict=True))
    for group, rows in zip(order(groups), scorer.readings_encoded(order(groups)), strict=True):
        for row, expected in zip(rows, whole[group.index], strict=True):
            np.testing.assert_allclose(row, expected, atol=CLOSE)


def test_the_last_of_an_answer_without_tokens_is_nothing_to_replace() -> None:
    assert len(TokenScores(1.0, np.zeros(0), 2.0, np.zeros(0, dtype=np.intp)).scores_A) == 0
