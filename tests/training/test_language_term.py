"""The language model's loss on preferred answers: the base model's own log-probabilities, of those answers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.errors import ModelError
from rewardproof.models import language_head, packed
from rewardproof.models.checkpoints import load_base, load_tokenizer
from rewardproof.models.packed import Auxiliary, answer_log_probs
from rewardproof.training.batches import Stream, TrainingSet
from rewardproof.training.language_term import ChosenLanguage
from rewardproof.training.trainer import PackedRewardModule


def saved_base(tiny: ModuleType, family: str, folder: Path, *, tied: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A language model, and the start of a reward model that is made of it."""
    causal = tiny.causal(family)
    causal.config.tie_word_embeddings = tied
    if tied:
        causal.tie_weights()
    causal.save_pretrained(folder)
    tiny.word_tokenizer().save_pretrained(folder)
    return causal, load_base(str(folder), load_tokenizer(str(folder)))


def term_on(model: PreTrainedModel, term: ChosenLanguage, data: TrainingSet) -> Auxiliary:
    groups = tuple(entry.group for entry in data.groups)
    stream = Stream(pack(groups, [entry.pairs for entry in data.groups]), None, groups)
    return PackedRewardModule(model, trunk=None, auxiliaries=[term])(stream).auxiliary[0]


@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("beta", [0.1, 0.0])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("gemma2", True), ("gpt2", True)])
def test_it_is_the_base_models_likelihood_of_the_preferred_answers(
    family: str, tied: bool, beta: float, chunk: int, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(language_head, "CHUNK", chunk)
    causal, model = saved_base(tiny, family, tmp_path, tied=tied)
    data = random_set(5)
    found = term_on(model, ChosenLanguage(model, str(tmp_path), weight=0.01, beta=beta), data)
    total, per_token = torch.zeros(()), 0.0
    with torch.no_grad():
        for entry in data.groups:
            for pair in entry.pairs:
                log_probs = answer_log_probs(causal, pack([entry.group.select([pair.winner])]))
                value = -F.logsigmoid(beta * log_probs.sum()) if beta else -log_probs.sum()
                total = total + value / len(entry.pairs)
                per_token += float(log_probs.mean()) / len(entry.pairs)
    torch.testing.assert_close(found.loss.detach(), 0.01 * total, rtol=1e-4, atol=1e-6)
    assert found.metrics["language/loss"] == pytest.approx(float(total), rel=1e-4)
    assert found.metrics["language/log_prob_per_token"] == pytest.approx(per_token, rel=1e-4)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_rejected_answer_takes_no_part(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    _, model = saved_base(tiny, "llama", tmp_path, tied=True)
    term = ChosenLanguage(model, str(tmp_path), weight=1.0, beta=0.1)
    data = random_set(4, sizes=(2,))
    changed = copy.deepcopy(data)
    for place, entry in enumerate(changed.groups):
        winner, loser = entry.group.conversations
        other = (*loser[: entry.group.shared], 7, 7, 7, 7, 7)
        changed.groups[place] = entry._replace(group=replace(entry.group, conversations=(winner, other)))
    torch.testing.assert_close(term_on(model, term, changed).loss, term_on(model, term, data).loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_whole_logits_and_an_own_head_stays(
    tied: bool, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal, model = saved_base(tiny, "llama", tmp_path, tied=tied)
    data = random_set(4, sizes=(2,))
    monkeypatch.setattr(language_head, "CHUNK", 3)
    term = ChosenLanguage(model, str(tmp_path), weight=1.0, beta=0.1)
    term_on(model, term, data).loss.backward()
    total = torch.zeros(())
    for entry in data.groups:
        batch = pack([entry.group.select([entry.pairs[0].winner])])
        states = packed.hidden_states(causal, batch)[batch.logit_index_L]
        logits = causal.get_output_embeddings()(states)
        total = total - F.logsigmoid(0.1 * logits.log_softmax(-1).gather(1, batch.target_L[:, None]).sum())
    total.backward()
    expected = gradients(causal)
    if not tied:
        expected.pop("lm_head.weight")
        assert [parameter.requires_grad for parameter in term.parameters()] == [False]
    else:
        assert list(term.parameters()) == []
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_reward_model_has_no_head_that_writes(tiny: ModuleType, reward_dir: Path) -> None:
    model = load_base(str(reward_dir), tiny.word_tokenizer())
    assert not model.config.tie_word_embeddings
    with pytest.raises(ModelError, match=r"is a reward model, expected a language model.*Name the one it was trained from"):
        ChosenLanguage(model, str(reward_dir), weight=0.01, beta=0.1)
