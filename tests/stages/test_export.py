"""Exported models: loaded by stock transformers they give the rewards of what was exported, and their card says what is known."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import parse
from rewardproof.errors import CheckpointError, ModelError
from rewardproof.merging.experts import merge_experts
from rewardproof.merging.stock_mixture import as_qwen2_moe
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.stages import export as stage
from rewardproof.stages.export import Export, run
from rewardproof.stages.model_card import model_card

IDS = torch.tensor([[5, 9, 33, 7, 61, 1], [8, 4, 4, 90, 2, 1]])


def mixture(tiny: ModuleType, family: str = "llama", **settings: Any) -> PreTrainedModel:
    """A mixture whose experts and routers differ."""
    model = tiny.classifier(family)
    upcycle(model, Upcycle(**{"n_experts": 4, "n_active": 3, "mixing": "fixed", "shared_weight": 0.3, **settings}))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in moe_blocks(model).values():
            block.router.weight.add_(torch.randn(block.router.weight.shape, generator=draw))
            for parameter in block.experts.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def saved(model: PreTrainedModel, tiny: ModuleType, folder: Path) -> Path:
    return save_reward_model(model, tiny.word_tokenizer(), folder)


@torch.inference_mode()
def rewards(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits[:, 0]


def stock(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def test_dense_from_the_command_line(reward_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(reward_dir), str(out), "format=dense", "licence=mit"])
    assert done.exit_code == 0, done.output
    assert "1 model as dense in fp32, loaded again with equal rewards" in done.output
    torch.testing.assert_close(rewards(stock(out / "model")), rewards(stock(reward_dir)))
    assert AutoTokenizer.from_pretrained(out / "model").chat_template
    card = (out / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert "was not audited" in card


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("settings", [{}, {"n_active": 2}, {"layers": "top:2"}, {"experts": "lora:4"}, {"shared_weight": 0.0}], ids=str)
def test_qwen2_moe_computes_what_the_mixture_computes(tiny: ModuleType, family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = mixture(tiny, family, **settings)
    report = run(parse(Export, {"model": str(saved(model, tiny, tmp_path / "moe")), "format": "qwen2_moe"}), tmp_path / "out")
    found = stock(tmp_path / "out" / "model")
    assert type(found).__name__ == "Qwen2MoeForSequenceClassification"
    assert found.config.problem_type == "regression"
    torch.testing.assert_close(rewards(found), rewards(model), atol=2e-5, rtol=1e-4)
    assert report.results["largest_difference_of_rewards"]["model"] < 1e-4


def test_experts_average_to_the_merge(tiny: ModuleType, tmp_path: Path) -> None:
    model = mixture(tiny, mixing="s_max")
    folder = saved(model, tiny, tmp_path / "moe")
    report = run(parse(Export, {"model": str(folder), "format": "experts"}), tmp_path / "out")
    assert report.results["models"] == [f"expert_{number}" for number in range(4)]
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    states = [stock(tmp_path / "out" / f"expert_{number}").state_dict() for number in range(4)]
    average = {name: sum(float(weight) * state[name] for weight, state in zip(weights, states, strict=True)) for name in states[0]}
    merged = RewardModel.load(folder)
    merge_experts(merged.model, dict.fromkeys(moe_blocks(merged.model), weights))
    for name, tensor in merged.model.state_dict().items():
        torch.testing.assert_close(average[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"mixing": "s_max"}, r"llama mixture with mixing=s_max, route_by=token.*expected llama or qwen2.*export format=experts"),
        ("llama", {"route_by": "prompt"}, r"route_by=prompt"),
        ("qwen3", {}, r"Got a qwen3 mixture"),
        ("gemma2", {}, r"Got a gemma2 mixture"),
        ("llama_biased", {}, r"tensors are not Qwen2Moe's \(.*bias.*\), expected a Llama or Qwen2 without further parts"),
    ],
)
def test_what_qwen2_moe_cannot_say(tiny: ModuleType, family: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = saved(mixture(tiny, family, **settings), tiny, tmp_path / "moe")
    with pytest.raises(ModelError, match=message):
        run(parse(Export, {"model": str(folder), "format": "qwen2_moe"}), tmp_path / "out")


def test_a_dense_model_is_no_qwen2_moe(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match="Got a dense model, expected a mixture: Qwen2Moe holds experts"):
        as_qwen2_moe(tiny.classifier("llama"))


def test_the_format_fits_the_model(tiny: ModuleType, reward_dir: Path, tmp_path: Path) -> None:
    folder = saved(mixture(tiny), tiny, tmp_path / "moe")
    with pytest.raises(ModelError, match=r"Got a mixture for format=dense, expected a dense model; merge it first"):
        run(parse(Export, {"model": str(folder)}), tmp_path / "out")
    for form in ("qwen2_moe", "experts"):
        with pytest.raises(ModelError, match=rf"Got a dense model for format={form}, expected a mixture, which has experts; take"):
            run(parse(Export, {"model": str(reward_dir), "format": form}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_loads_otherwise_is_refused(reward_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage.TOLERANCE, "bf16", 1e-9)
    with pytest.raises(CheckpointError, match=r"rewards that differ by .* expected at most 1e-09: others would get another model"):
        run(parse(Export, {"model": str(reward_dir), "dtype": "bf16"}), tmp_path / "out")


def test_the_card_tells_of_the_run_around_the_model(reward_dir: Path, tmp_path: Path) -> None:
    base, made, audit = tmp_path / "base", tmp_path / "run", tmp_path / "audit"
    for folder in (base, made, audit):
        folder.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3\n---\n# Base\n")
    (made / "config.yaml").write_text(yaml.safe_dump({"model": str(base), "data": ["prefs.jsonl"], "seed": 3}))
    (made / "report.json").write_text('{"headline": "accuracy 71.0 % [68.0, 74.0]"}')
    (audit / "report.json").write_text('{"headline": "3 of 9 perturbations raise the reward"}')
    model = shutil.copytree(reward_dir, made / "model")
    run(parse(Export, {"model": str(model), "audit": str(audit)}), tmp_path / "out")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    for said in ("seed: 3", "prefs.jsonl", "accuracy 71.0 % [68.0, 74.0]", "3 of 9 perturbations raise the reward", "llama3"):
        assert said in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "llama3"


def test_no_run_lies_around_a_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("config.yaml", "model: secret"), ("provenance.json", "{}"), ("report.json", '{"headline": "another model"}')):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    card = model_card("some-org/some-rm", "dense", "it")
    assert "another model" not in card
    assert "secret" not in card
