"""The implicit reward of a policy and its reference, against log-probabilities taken one conversation at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.data import read_groups
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.scoring import Implicit, ImplicitReward, reads_tokens


@pytest.fixture
def groups(tmp_path: Path, toy_rows: Callable[..., Any], write_jsonl: Callable[..., Path]) -> Any:
    return read_groups(str(write_jsonl(tmp_path / "toy.jsonl", toy_rows(12, seed=4)))).groups


def brute_force(model: Any, tokens: tuple[int, ...], start: int) -> torch.Tensor:
    """Log-probabilities of a conversation's tokens from `start` on."""
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return torch.stack([log_probs[place - 1, tokens[place]] for place in range(max(start, 1), len(tokens))])


@pytest.mark.parametrize("over", ["sum", "mean"])
@pytest.mark.parametrize("with_reference", [True, False])
def test_it_is_beta_times_the_log_ratio_over_the_answers_tokens(
    over: str, with_reference: bool, base_dir: Path, tied_dir: Path, groups: Any
) -> None:
    how = Implicit(reference=str(tied_dir) if with_reference else "", beta=0.3, over=over)  # pyright: ignore[reportArgumentType]
    judge = ImplicitReward.load(str(base_dir), how)
    encoded, _ = judge.encode(groups)
    found = judge.score(groups)
    for entry, row in zip(encoded, found, strict=True):
        for tokens, start, reward in zip(entry.conversations, entry.answer_starts, row, strict=True):
            ratio = brute_force(judge.policy, tokens, start)
            if judge.reference is not None:
                ratio = ratio - brute_force(judge.reference, tokens, start)
            assert reward == pytest.approx(0.3 * float(ratio.sum() if over == "sum" else ratio.mean()), abs=2e-5)


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_every_token_adds_its_own_log_ratio(over: str, base_dir: Path, tied_dir: Path, groups: Any) -> None:
    how = Implicit(reference=str(tied_dir), beta=0.3, over=over)  # pyright: ignore[reportArgumentType]
    judge = ImplicitReward.load(str(base_dir), how)
    assert judge.reference is not None
    assert reads_tokens(judge)
    encoded, _ = judge.encode(groups)
    for group, entry, row, rewards in zip(groups, encoded, judge.score_tokens(groups), judge.score(groups), strict=True):
        for text, tokens, start, found, reward in zip(
            group.answer_texts, entry.conversations, entry.answer_starts, row, rewards, strict=True
        ):
            ratio = brute_force(judge.policy, tokens, start) - brute_force(judge.reference, tokens, start)
            grown = 0.3 * ratio.cumsum(0) / (len(ratio) if over == "mean" else 1)
            own = len(found.reached_A)
            assert own == len(text.split())
            first = len(tokens) - start - own - 1  # the template closes an answer with one token
            assert found.reached_A == pytest.approx(grown[first : first + own].numpy(), abs=2e-5)
            assert found.score == pytest.approx(reward, abs=1e-6)


def test_a_policy_that_is_its_reference_implies_no_reward(base_dir: Path, groups: Any) -> None:
    judge = ImplicitReward.load(str(base_dir), Implicit(reference=str(base_dir)))
    assert [value for row in judge.score(groups) for value in row] == pytest.approx([0.0] * 24, abs=1e-6)


def test_neither_the_size_of_a_batch_nor_the_padding_side_changes_it(base_dir: Path, tied_dir: Path, groups: Any) -> None:
    found = []
    for budget, side in ((1, "left"), (40, "right"), (100000, "left")):
        judge = ImplicitReward.load(str(base_dir), Implicit(reference=str(tied_dir)))
        judge.tokens_per_batch, judge.tokenizer.padding_side = budget, side
        found.append([value for row in judge.score(groups) for value in row])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_the_reference_has_to_read_the_same_tokens(base_dir: Path, tmp_path: Path, tiny: ModuleType) -> None:
    other = tmp_path / "other"
    tiny.causal("llama", vocab_size=120).save_pretrained(other)
    tiny.word_tokenizer().save_pretrained(other)
    with pytest.raises(ConfigError, match=r"Got a policy with 96 tokens and a reference with 120, expected the model"):
        ImplicitReward.load(str(base_dir), Implicit(reference=str(other)))
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match=r"have different vocabularies, expected the model that the policy was trained from"):
        ImplicitReward.load(str(base_dir), Implicit(reference=str(other)))


def test_weights_that_are_no_numbers_are_refused(base_dir: Path, groups: Any) -> None:
    judge = ImplicitReward.load(str(base_dir), Implicit())
    with torch.no_grad():
        judge.policy.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(EvaluationError, match=r"The implicit rewards of .*toy.jsonl:1 are .*expected finite numbers"):
        judge.score(groups)


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path, tiny: ModuleType, groups: Any) -> None:
    tiny.causal("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny.word_tokenizer().save_pretrained(tmp_path / "gpt2")
    judge = ImplicitReward.load(str(tmp_path / "gpt2"), Implicit())
    with pytest.raises(ConfigError, match=r"Got max_length=100000, expected at most \d+ tokens"):
        judge.encode(groups, max_length=100000)
