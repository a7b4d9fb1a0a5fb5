"""`merge` as a stage: the parts of the data that training used, the rewards' scale, the report, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rewardproof.artifacts import Report
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.errors import CheckpointError, ConfigError
from rewardproof.merging.experts import merge_experts
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.stages import merge as stage
from rewardproof.stages.merge import MergeModels, run
from rewardproof.stages.train import Train
from rewardproof.stages.train import run as train
from rewardproof.stages.upcycle import UpcycleModel
from rewardproof.stages.upcycle import run as run_upcycle
from rewardproof.training.preparation import Prepared, prepare

FP32 = {"precision": "fp32"}


@pytest.fixture(scope="module")
def moe(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose experts differ, its configuration with the scale of rewards that it does not have."""
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.config.mean, model.config.std = 123.0, 456.0
    return save_reward_model(model, tiny.word_tokenizer(), tmp_path_factory.mktemp("merge") / "moe")


def merged(moe: Path, toy_file: Path, out: Path, **settings: Any) -> Report:
    config = {"models": (str(moe),), "data": (str(toy_file),), "steps": 2, "held_out": 0.2, "compute": FP32}
    return run(MergeModels(**(config | settings)), out)


def saved_config(report: Report) -> dict[str, Any]:
    return json.loads((report.path / "model" / "config.json").read_text())


def prompts(prepared: Prepared) -> list[set[tuple[tuple[int, ...], ...]]]:
    parts = (prepared.train, prepared.merge_fit, prepared.merge_stop, prepared.held_out_set)
    return [{entry.group.conversations for entry in part.groups} for part in parts]


def test_the_same_data_gives_the_parts_that_training_used(
    base_dir: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Prepared] = []

    def kept(*arguments: Any) -> Prepared:
        made.append(prepare(*arguments))
        return made[-1]

    monkeypatch.setattr("rewardproof.stages.train.prepare", kept)
    monkeypatch.setattr(stage, "prepare", kept)
    sections = {"upcycle": {"n_experts": 4, "n_active": 3}, "merge": {"steps": 1}, "trainer": {"max_steps": 1}}
    train(Train(model=str(base_dir), data=(str(toy_file),), compute=FP32, **sections), tmp_path / "umm")
    run(MergeModels(models=(str(tmp_path / "umm" / "moe"),), data=(str(toy_file),), steps=1, compute=FP32), tmp_path / "out")
    assert prompts(made[0]) == prompts(made[1])
    assert all(prompts(made[0])), "every part holds something"


def test_only_learning_keeps_prompts_back(moe: Path, toy_file: Path, tmp_path: Path) -> None:
    learned, uniform = (merged(moe, toy_file, tmp_path / method, method=method).results["rows"] for method in ("learned", "uniform"))
    assert learned["merge_fit"] > 0
    assert uniform["merge_fit"] == uniform["merge_stop"] == 0
    assert uniform["train"] == learned["train"] + learned["merge_fit"] + learned["merge_stop"]


def test_the_scale_of_rewards_is_that_of_the_merged_model(moe: Path, toy_file: Path, tmp_path: Path) -> None:
    report = merged(moe, toy_file, tmp_path / "out", method="uniform")
    groups = split_by_prompt(read_groups(str(toy_file)).groups, fraction=0.2)[1]
    rewards = np.concatenate(RewardModel.load(report.path / "model").score(groups))
    config = saved_config(report)
    assert config["mean"] == pytest.approx(rewards.mean(), abs=1e-5)
    assert config["std"] == pytest.approx(rewards.std(), rel=1e-4)
    assert report.results["accuracy"]["overall"] == report.results["merge"]["held_out"]["merged_accuracy"]


def test_a_stale_scale_of_rewards_is_dropped(moe: Path, toy_file: Path, tiny: ModuleType, tmp_path: Path) -> None:
    dense = tiny.classifier("llama", seed=3)
    dense.config.mean, dense.config.std = 123.0, 456.0
    path = str(save_reward_model(dense, tiny.word_tokenizer(), tmp_path / "dense"))
    for report in (
        merged(moe, toy_file, tmp_path / "merged", method="routing_mass", split=0.0),
        run(MergeModels(models=(path, path), method="average"), tmp_path / "averaged"),
        run_upcycle(UpcycleModel(model=path), tmp_path / "upcycled"),
    ):
        assert {"mean", "std"} & saved_config(report).keys() == set()


def test_weights_are_saved_as_asked(moe: Path, toy_file: Path, reward_dir: Path, tmp_path: Path) -> None:
    halved = {"compute": {"precision": "fp32", "save_dtype": "bf16"}}
    models = (str(reward_dir), str(reward_dir))
    for report in (
        merged(moe, toy_file, tmp_path / "merged", method="uniform", **halved),
        run(MergeModels(models=models, method="average", **halved), tmp_path / "averaged"),
    ):
        assert {tensor.dtype for tensor in load_file(report.path / "model" / "model.safetensors").values()} == {torch.bfloat16}
        assert saved_config(report)["dtype"] == "bfloat16"


def test_the_page_shows_the_coefficients(moe: Path, toy_file: Path, tmp_path: Path) -> None:
    report = merged(moe, toy_file, tmp_path / "out")
    page = (report.path / "report.html").read_text()
    assert report.headline.split(",")[0].replace("experts", "Experts") in page
    assert page.count("<figure") == 2
    assert any(path.stem.startswith("coefficients") for path in (report.path / "figures").glob("*.svg"))


@pytest.mark.parametrize("method", ["learned", "average"])
def test_an_occupied_directory_is_refused_before_anything_is_loaded(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(stage, "load_reward_model", lambda *_: pytest.fail("a model was loaded"))
    models = ("a/b",) if method == "learned" else ("a/b", "c/d")
    with pytest.raises(CheckpointError, match="out is not empty"):
        run(MergeModels(models=models, data=("a.jsonl",), method=method), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="out is not empty"):
        run_upcycle(UpcycleModel(model="a/b"), tmp_path / "out")


def test_overwriting_the_input_is_refused(moe: Path, toy_file: Path) -> None:
    with pytest.raises(CheckpointError, match="lies in the output directory"):
        run(MergeModels(models=(str(moe),), data=(str(toy_file),)), moe.parent, overwrite=True)
    assert moe.is_dir()


@pytest.mark.parametrize("method", ["learned", "routing_mass"])
def test_a_mixture_without_data_is_refused(method: str, moe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Missing data=: .*name the training data, or write method=uniform"):
        run(MergeModels(models=(str(moe),), method=method), tmp_path / "out")  # type: ignore[arg-type]


def test_uniform_merging_needs_no_data_and_builds_no_model(
    moe: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = merged(moe, toy_file, tmp_path / "measured", method="uniform", shared_weight=0.4)
    monkeypatch.setattr(stage, "load_reward_model", lambda *_: pytest.fail("a model was loaded"))
    report = merged(moe, toy_file, tmp_path / "out", method="uniform", shared_weight=0.4, data=())
    left, right = (load_file(entry.path / "model" / "model.safetensors") for entry in (report, measured))
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert report.results["merge"]["coefficients"] == measured.results["merge"]["coefficients"]
    assert report.results["merge"]["coefficients"]["0"] == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert report.results["merge"]["divergence"] == measured.results["merge"]["divergence"]
    assert report.results["accuracy"] is report.results["merge"]["held_out"] is None
    assert {"mean", "std"} & saved_config(report).keys() == set()
    page = (report.path / "report.html").read_text()
    assert page.count("<figure") == 1
    assert "Coefficients by uniform; nothing was learned." in page


@pytest.mark.parametrize("experts", ["full", "lora:2"])
@pytest.mark.parametrize("method", ["uniform", "routing_mass", "learned"])
def test_the_delivered_weights_are_those_of_merging_in_memory(
    method: str, experts: str, tiny: ModuleType, toy_file: Path, tmp_path: Path
) -> None:
    model = tiny.classifier("gpt2")
    upcycle(model, Upcycle(n_experts=4, n_active=3, experts=experts))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    source = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "moe")
    report = merged(source, toy_file, tmp_path / "out", method=method)
    found = {int(layer): torch.tensor(values) for layer, values in report.results["merge"]["coefficients"].items()}
    merge_experts(model, found)
    delivered = load_file(report.path / "model" / "model.safetensors")
    assert delivered.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(delivered[name], tensor), name


def test_the_report_sets_peak_memory_beside_the_mixture(moe: Path, toy_file: Path, tmp_path: Path) -> None:
    report = merged(moe, toy_file, tmp_path / "out", method="uniform", data=())
    assert report.results["peak_memory_gb"] > report.results["mixture_gb"] >= 0
    assert "peak of this merge" in (report.path / "report.html").read_text()
