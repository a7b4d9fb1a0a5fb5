"""A head of factors on disk: it comes back to the last bit, stock transformers stops at it, and what is missing is explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.errors import CheckpointError, ModelError
from rewardproof.models.checkpoints import load_base, load_reward_model
from rewardproof.models.factor_head import FACTORS_FILE, FACTORS_KEY, FactorHead, Factors, has_factors, install_factors
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model, save_reward_scale
from rewardproof.scoring import Combine, ModelEnsemble, Scale, load_scorer
from tests.models import tiny

GROUPS = tiny.random_groups(2)
SETTINGS = Factors(n_factors=12, dropout=0.25, theta_prior=(2.0, 0.5), kl_over="valid")


def with_factors(family: str = "llama", *, seed: int = 0, settings: Factors = SETTINGS) -> PreTrainedModel:
    model = tiny.classifier(family)
    install_factors(model, settings, seed=seed)
    return model.eval()


def rewards_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return packed_rewards(model, pack(GROUPS)).rewards_C


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_reward_model(with_factors(), tiny.word_tokenizer(), tmp_path / "model")


@pytest.mark.parametrize("settings", [SETTINGS, Factors(n_factors=5, layer="linear", dictionary_activation="softplus")])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "phi3"])
def test_save_and_load_keep_every_weight_and_reward(family: str, settings: Factors, tmp_path: Path) -> None:
    model = with_factors(family, settings=settings)
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
    loaded, _ = load_reward_model(str(path))
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(rewards_of(loaded), rewards_of(model))
    assert rewards_of(loaded).std() > 1e-3
    assert has_factors(loaded)
    assert not loaded.training
    assert Factors(**getattr(loaded.config, FACTORS_KEY)) == settings
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    again = save_reward_model(loaded, tiny.word_tokenizer(), tmp_path / "again")
    assert (again / FACTORS_FILE).read_bytes() == (path / FACTORS_FILE).read_bytes()


def test_a_model_saved_in_bf16_keeps_its_head_in_float32(tmp_path: Path) -> None:
    model = with_factors()
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model", dtype=torch.bfloat16)
    kept = load_file(path / FACTORS_FILE)
    assert {name.startswith("score."): tensor.dtype for name, tensor in kept.items()} == {True: torch.float32, False: torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):
        loaded, _ = load_reward_model(str(path), dtype=dtype)
        assert {parameter.dtype for parameter in loaded.score.parameters()} == {torch.float32}
        assert next(loaded.base_model.parameters()).dtype == dtype
        for name, tensor in model.score.state_dict().items():
            assert torch.equal(loaded.score.state_dict()[name], tensor)


def test_there_are_safetensors_alone_and_a_note(saved: Path) -> None:
    names = {file.name for file in saved.iterdir()}
    assert {name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pkl"))} == {FACTORS_FILE}
    assert "finds no `model.safetensors`" in (saved / "README.md").read_text()
    assert 'RewardModel.load("' in (saved / "README.md").read_text()


def test_stock_transformers_stops_instead_of_drawing_a_head(saved: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(saved)


def test_a_checkpoint_without_its_file_is_incomplete(saved: Path) -> None:
    (saved / FACTORS_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"says that it holds a head of factors but has no {FACTORS_FILE}; .*Train it again"):
        load_reward_model(str(saved))


def test_a_file_of_another_head_is_refused(saved: Path) -> None:
    weights = load_file(saved / FACTORS_FILE)
    save_file({**weights, "score.dictionary.weight": torch.ones(13)}, saved / FACTORS_FILE)
    with pytest.raises(CheckpointError, match=r"has score\.dictionary\.weight as \(13,\), expected \(12,\).*Restore the pair"):
        load_reward_model(str(saved))


def test_it_is_no_start_of_another_training(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"has a head of factors, expected a language model or a linear .*Name the model"):
        load_base(str(saved), tiny.word_tokenizer())


def test_saving_replaces_a_dense_checkpoint_and_is_replaced_by_one(tmp_path: Path) -> None:
    for model, name in ((tiny.classifier("llama"), "model"), (with_factors(), "factors"), (tiny.classifier("llama"), "model")):
        path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
        assert [file.name for file in path.glob("*.safetensors")] == [f"{name}.safetensors"]
        assert isinstance(load_reward_model(str(path))[0].score, FactorHead) == (name == "factors")


def test_loading_draws_nothing(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_reward_model(str(saved))
    assert torch.equal(torch.rand(3), expected)


def test_the_reward_scale_is_kept_beside_it(saved: Path) -> None:
    model = RewardModel.load(saved)
    rewards = model.score_encoded(GROUPS)
    save_reward_scale(saved, rewards)
    config = json.loads((saved / "config.json").read_text())
    flat = torch.tensor([value for row in rewards for value in row], dtype=torch.float64)
    assert config["mean"] == pytest.approx(float(flat.mean())) != 0
    assert config["std"] == pytest.approx(float(flat.std(correction=0)))
    assert RewardModel.load(saved).score_encoded(GROUPS) == rewards


def test_an_ensemble_of_both_kinds_of_heads_comes_back(tmp_path: Path) -> None:
    members = {"0": with_factors(), "1": with_factors(seed=1), "2": tiny.classifier("llama")}
    models = {name: RewardModel(model, tiny.word_tokenizer()) for name, model in members.items()}
    for name, model in models.items():
        model.save(tmp_path / name)
    how = Combine(combination="worst_case")
    ensemble = ModelEnsemble(models, {name: Scale(0.1, 2.0) for name in models}, how)
    ensemble.save(tmp_path / "ensemble", {name: f"../{name}" for name in models})
    assert ensemble._in_common == 2, "the layers that all members have in common run once, whatever the heads"
    loaded = load_scorer(str(tmp_path / "ensemble"), precision="fp32")
    assert isinstance(loaded, ModelEnsemble)
    assert loaded.score_encoded(GROUPS) == ensemble.score_encoded(GROUPS)
