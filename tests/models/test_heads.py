"""The reward head and the scoring wrapper: the probe minimises what it says, budgets and a shared trunk change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rewardproof.data.encoding import encode_group
from rewardproof.data.group import Group, Message
from rewardproof.errors import EvaluationError, ModelError
from rewardproof.models import reward_model as reward_model_module
from rewardproof.models.heads import fit_probe, head_weight, set_head, set_normal_head
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, upcycle
from tests.models import tiny


@pytest.fixture
def differences_PD() -> np.ndarray:
    dice = np.random.default_rng(0)
    direction = np.array([1.0, -0.5, 0.0, 2.0])
    features = dice.normal(size=(200, 4)) * np.array([1.0, 10.0, 0.1, 0.5])
    return features * np.sign(features @ direction + dice.normal(size=200))[:, None]


def probe_loss(weights: np.ndarray, standard: np.ndarray, penalty: float) -> float:
    """The objective in the docstring, term by term."""
    losses = [np.log(1 + np.exp(-sum(w * x for w, x in zip(weights, row, strict=True)))) for row in standard]
    return sum(losses) / len(losses) + penalty * sum(w**2 for w in weights)


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1.0])
def test_the_probe_is_a_minimum_of_its_objective(differences_PD: np.ndarray, penalty: float) -> None:
    rms = np.sqrt((differences_PD**2).mean(axis=0))
    standard = differences_PD / rms
    solution = fit_probe(differences_PD, penalty=penalty) * rms
    least = probe_loss(solution, standard, penalty)
    for place in range(4):
        step = np.eye(4)[place] * 1e-4
        up, down = probe_loss(solution + step, standard, penalty), probe_loss(solution - step, standard, penalty)
        assert abs(up - down) / 2e-4 < 1e-4, "the gradient is zero at the solution"
        assert min(probe_loss(solution + 100 * step, standard, penalty), probe_loss(solution - 100 * step, standard, penalty)) > least
    assert np.abs(solution).max() > 0.05


def test_the_probe_is_scale_equivariant(differences_PD: np.ndarray) -> None:
    scale = np.array([1e3, 1e-3, 7.0, 1.0])
    direction, other = fit_probe(differences_PD, penalty=0.01), fit_probe(differences_PD * scale, penalty=0.01)
    np.testing.assert_allclose(other * scale, direction, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(differences_PD * scale @ other, differences_PD @ direction, rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_differs_gets_no_weight(differences_PD: np.ndarray) -> None:
    constant = np.concatenate((differences_PD, np.zeros((200, 1))), axis=1)
    assert abs(fit_probe(constant, penalty=0.01)[-1]) < 1e-9


def test_the_normal_head_is_seeded_and_scaled() -> None:
    model = tiny.classifier("llama")
    model.score = nn.Linear(4096, 1, bias=False)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    set_normal_head(model, seed=3)
    assert torch.equal(torch.rand(1), expected), "the global generator is untouched"
    first = head_weight(model).detach().clone()
    set_normal_head(model, seed=3)
    assert torch.equal(head_weight(model), first)
    set_normal_head(model, seed=4)
    assert not torch.equal(head_weight(model), first)
    assert float(first.std()) == pytest.approx(4096**-0.5, rel=0.05)


def test_a_head_can_be_set() -> None:
    model = tiny.classifier("gpt2")
    set_head(model, np.arange(32.0))
    assert head_weight(model)[0].tolist() == list(range(32))


def test_a_causal_model_has_no_head() -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no reward head, expected a \*ForSequenceClassification"):
        head_weight(tiny.causal("llama"))


def text_groups(sizes: tuple[int, ...] = (3, 1, 7, 2)) -> list[Group]:
    """Groups of text whose answers differ in length; the last answer of a group repeats its first."""
    groups = []
    for number, size in enumerate(sizes):
        answers = [" ".join(f"w{(number * 7 + place * 3 + k) % 90}" for k in range(1 + place)) for place in range(size)]
        answers[-1] = answers[0]
        prompt = (Message("user", f"w{number} w5 w6"),)
        groups.append(Group(prompt, tuple((Message("assistant", answer),) for answer in answers)))
    return groups


def stock_scores(model: nn.Module, groups: list[Group]) -> list[tuple[float, ...]]:
    encoded = [encode_group(group, tiny.word_tokenizer()) for group in groups]
    with torch.no_grad():
        return [
            tuple(model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]).item() for ids in e.conversations)
            for e in encoded
        ]


@pytest.mark.parametrize("tokens_per_batch", [1, 12, 30, 4096])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_scores_do_not_depend_on_the_token_budget(family: str, tokens_per_batch: int) -> None:
    model, groups = tiny.classifier(family), text_groups()
    scores = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=tokens_per_batch).score(groups)
    assert [len(entry) for entry in scores] == [3, 1, 7, 2]
    torch.testing.assert_close(scores, stock_scores(model, groups), atol=2e-5, rtol=0)


def test_no_groups_give_no_scores() -> None:
    assert RewardModel(tiny.classifier("llama"), tiny.word_tokenizer()).score([]) == []


@pytest.mark.parametrize("tokens_per_batch", [12, 4096])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_sharing_a_trunk_changes_no_score(family: str, tokens_per_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    groups = text_groups()
    for seed in range(2):
        model = tiny.classifier(family)
        with torch.no_grad():
            model.score.weight.add_(0.1 * seed)
        plain = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=tokens_per_batch)
        expected = plain.score(groups)
        torch.testing.assert_close(plain.share_trunk(2, limit_gb=1).score(groups), expected, atol=2e-6, rtol=0)
        assert len(list((tmp_path / "trunk").iterdir())) == 1, "both heads read one store"
        torch.testing.assert_close(plain.share_trunk(0, limit_gb=1).score(groups), expected, atol=0, rtol=0)


def test_a_mixture_shares_the_trunk_of_its_dense_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    model, groups = tiny.classifier("llama"), text_groups()
    expected = RewardModel(model, tiny.word_tokenizer()).share_trunk(2, limit_gb=1).score(groups)
    upcycle(model, Upcycle(n_experts=3, n_active=2, layers="top:1"))
    monkeypatch.setattr("rewardproof.models.trunk.trunk_states", None)  # nothing is left to compute
    torch.testing.assert_close(
        RewardModel(model, tiny.word_tokenizer()).share_trunk(2, limit_gb=1).score(groups), expected, atol=1e-5, rtol=0
    )


def test_a_trunk_that_does_not_fit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    model, groups = tiny.classifier("llama"), text_groups()
    scores = RewardModel(model, tiny.word_tokenizer()).share_trunk(2, limit_gb=1e-9).score(groups)
    assert scores == RewardModel(model, tiny.word_tokenizer()).score(groups)
    assert not list(tmp_path.rglob("rows.bin"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_an_error(value: float) -> None:
    model = tiny.classifier("llama")
    with torch.no_grad():
        model.score.weight[0, 0] = value
    with pytest.raises(EvaluationError, match=r"The reward of answer group 0 is (nan|inf|-inf), expected a finite number"):
        RewardModel(model, tiny.word_tokenizer()).score(text_groups())


def test_scoring_splits_large_groups_into_streams_under_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = reward_model_module.pack
    monkeypatch.setattr(reward_model_module, "pack", lambda run: sizes.append(sum(part.n_tokens for part in run)) or real(run))
    groups = text_groups((7, 7))
    RewardModel(tiny.classifier("llama"), tiny.word_tokenizer(), tokens_per_batch=30).score(groups)
    assert len(sizes) > 2
    assert max(sizes) <= 30
