"""The recipe `dogerm`: a dense run whose model is merged with a language model, λ on prompts that are neither trained on nor evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from rewardproof.artifacts import Report
from rewardproof.cli.main import app
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.errors import CheckpointError, ConfigError, ModelError
from rewardproof.stages.domain import Domain, check_domain
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.evaluate import run as evaluate
from rewardproof.stages.merge import MergeModels
from rewardproof.stages.merge import run as merge
from rewardproof.stages.stress import Stress
from rewardproof.stages.stress import run as stress
from rewardproof.stages.train import Train, run

Rows = list[dict[str, Any]]
Write = Callable[[Path, Rows], Path]
SLOW = pytest.mark.slow
KEEPING = ("trainer.save_strategy=steps", "trainer.save_steps=3")


@pytest.fixture(scope="module")
def lm_dir(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of the base model: its weights, moved a little."""
    folder = tmp_path_factory.mktemp("lm")
    model = tiny.causal("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)
    tiny.word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(base_dir: Path, lm_dir: Path, toy_file: Path) -> Callable[..., Train]:
    def make(*overrides: str, recipe: str = "dogerm") -> Train:
        common = [
            f"model={base_dir}", f"data={toy_file}", "split=0.25", "compute.precision=fp32", "trainer.learning_rate=5e-3",
            "head.learning_rate=1e-2", "trainer.max_steps=8", "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
        ]  # fmt: skip
        domain = [f"domain.model={lm_dir}", "domain.held_out=0.3"] if recipe == "dogerm" else []
        return parse(Train, apply_overrides(load_recipe(recipe), [*common, *domain, *overrides]))

    return make


@pytest.fixture(scope="module")
def trained(settings: Callable[..., Train], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run(settings(*KEEPING), tmp_path_factory.mktemp("dogerm") / "out")


@pytest.fixture(scope="module")
def dense(settings: Callable[..., Train], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run(settings(recipe="dense"), tmp_path_factory.mktemp("dense") / "out")


def weights(report: Report) -> dict[str, Tensor]:
    return load_file(report.path / "model" / "model.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_the_sweep_is_reported_and_its_best_delivered(trained: Report) -> None:
    found = trained.results["members"][0]["domain"]
    curve = {entry["weight"]: entry["accuracy"]["estimate"] for entry in found["validation"]["curve"]}
    assert list(curve) == [number / 20 for number in range(21)], "as published"
    assert found["weight"] == min(weight for weight, accuracy in curve.items() if accuracy == max(curve.values()))
    assert found["averaged"] == len(weights(trained)) - 1
    rows = trained.results["rows"]
    assert found["validation"]["groups"] == rows["validation"] > 0
    assert rows["train"] + rows["validation"] + rows["held_out_set"] == 160
    page = (trained.path / "report.html").read_text()
    assert "Merged with a language model" in page
    assert (trained.path / "figures" / "domain-weight.svg").is_file()


def by_hand(dense: Report, lm_dir: Path, out: Path, **how: Any) -> Report:
    models = (str(dense.path / "model"), str(lm_dir))
    return merge(MergeModels(models=models, method="domain", compute={"precision": "fp32"}, **how), out)


def test_a_given_weight_is_that_of_merging_by_hand(settings: Callable[..., Train], dense: Report, lm_dir: Path, tmp_path: Path) -> None:
    report = run(settings("domain.weight=0.35"), tmp_path / "out")
    assert same(weights(report), weights(by_hand(dense, lm_dir, tmp_path / "hand", weight=0.35)))
    assert report.results["rows"]["train"] == dense.results["rows"]["train"], "nothing is kept where nothing is chosen"
    assert report.results["members"][0]["domain"]["validation"] is None


@SLOW
def test_a_weight_of_zero_is_the_dense_run(settings: Callable[..., Train], dense: Report, tmp_path: Path) -> None:
    assert same(weights(run(settings("domain.weight=0"), tmp_path / "out")), weights(dense))


def test_the_verb_chooses_as_the_recipe_does(
    settings: Callable[..., Train], dense: Report, lm_dir: Path, toy_rows: Callable[..., Rows], write_jsonl: Write, tmp_path: Path
) -> None:
    validation = write_jsonl(tmp_path / "validation.jsonl", toy_rows(60, seed=5))
    report = run(settings(f"domain.data={validation}"), tmp_path / "out")
    hand = by_hand(dense, lm_dir, tmp_path / "hand", data=(str(validation),))
    found, expected = report.results["members"][0]["domain"], hand.results["domain"]
    assert found["weight"] == expected["weight"]
    assert found["validation"] == expected["validation"]
    assert same(weights(report), weights(hand))


class Stopped(Exception):
    """Stands for the machine going down."""


@pytest.mark.parametrize(
    ("what", "step"), [("domain weights", 3), pytest.param("training", 7, marks=SLOW), pytest.param("scoring", 1, marks=SLOW)]
)
def test_an_interrupted_run_ends_at_the_same_numbers(
    what: str, step: int, settings: Callable[..., Train], trained: Report, tmp_path: Path
) -> None:
    def stopping(phase: str, done: int, total: int) -> None:
        if phase == what and done >= step:
            raise Stopped

    with pytest.raises(Stopped):
        run(settings(*KEEPING), tmp_path / "broken", progress=stopping)
    resumed = run(settings(*KEEPING), tmp_path / "broken", resume=True)
    assert same(weights(resumed), weights(trained))
    assert resumed.results["members"][0]["domain"] == trained.results["members"][0]["domain"]
    assert resumed.results["accuracy"] == trained.results["accuracy"]
    assert not (resumed.path / "checkpoints").exists()


def test_members_are_merged_each_and_then_averaged(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("members=2", "domain.weights=0.25,0.5"), tmp_path / "out")
    members = [load_file(report.path / "members" / name / "model" / "model.safetensors") for name in "01"]
    for name, tensor in weights(report).items():
        torch.testing.assert_close(tensor, (members[0][name] + members[1][name]) / 2)
    assert all(member["domain"]["weight"] in (0.25, 0.5) for member in report.results["members"])
    assert (report.path / "figures" / "domain-weight-of-member-1.svg").is_file()


@SLOW
def test_merged_experts_can_be_merged_with_a_language_model_too(settings: Callable[..., Train], tmp_path: Path) -> None:
    experts = ("upcycle.n_experts=4", "upcycle.n_active=3", "merge.method=uniform")
    report = run(settings(*experts, "domain.weights=0,0.5", "trainer.max_steps=2"), tmp_path / "out")
    assert {"merge", "domain", "mixture"} <= report.results["members"][0].keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("domain.model=",), "Missing domain.model: a language model fine-tuned on the domain .*give its directory or hub id"),
        (("domain.weights=0,2",), r"Got weights=0\.0,2\.0, expected one or more different numbers"),
        (("reuse=a/b",), "Got `domain` with `reuse` or with experts that stay unmerged.*method=domain"),
        (("upcycle.n_experts=4", "upcycle.n_active=3"), "Got `domain` with `reuse` or with experts that stay unmerged"),
        (("domain.weight=0.5", "domain.weights=0,1"), "Got weight=0.5 and weights=0.0,1.0, expected one of them"),
    ],
)
def test_settings_that_cannot_work(overrides: tuple[str, ...], message: str, settings: Callable[..., Train], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(*overrides), tmp_path / "out")


def test_a_language_model_that_does_not_fit_is_refused_before_any_training(
    settings: Callable[..., Train], tiny: ModuleType, reward_dir: Path, tmp_path: Path
) -> None:
    tiny.causal("qwen2").save_pretrained(tmp_path / "qwen")
    tiny.word_tokenizer().save_pretrained(tmp_path / "qwen")
    for number, (spec, kind, message) in enumerate(
        (
            (tmp_path / "qwen", ModelError, "Got model_type='llama' in the reward model and 'qwen2' in the language model"),
            (reward_dir, ModelError, "is a reward model, expected a language model"),
            (tmp_path / "nowhere", CheckpointError, "No model at"),
        )
    ):
        with pytest.raises(kind, match=message):
            run(settings(f"domain.model={spec}"), tmp_path / str(number), progress=lambda what, *_: pytest.fail(what))
    with pytest.raises(ModelError, match="Got 9 entries that only one of the two models has"):
        run(settings("depth=2"), tmp_path / "shallow", progress=lambda what, *_: pytest.fail(what))


def test_a_weight_that_is_chosen_off_the_domain_is_said(caplog: pytest.LogCaptureFixture) -> None:
    check_domain(Domain(model="lm", weight=0.3))
    check_domain(Domain(model="lm", data=("validation.jsonl",)))
    check_domain(Domain(model="lm", categories=("coding",)))
    assert not caplog.records
    check_domain(Domain(model="lm"))
    assert "the weight is chosen on preferences of all kinds" in caplog.text


def test_a_run_never_deletes_its_language_model(settings: Callable[..., Train], lm_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="lies in the output directory"):
        run(settings(), lm_dir, overwrite=True)


def test_evaluate_and_stress_take_the_model_as_any_other(trained: Report, toy_file: Path, pool_file: Path, tmp_path: Path) -> None:
    spec = str(trained.path / "model")
    judged, _ = evaluate(Evaluate(model=spec, data=(str(toy_file),), split=0.25, precision="fp32"))
    assert judged.results["accuracy"][str(toy_file)]["overall"] == trained.results["accuracy"]["overall"]
    pressed = stress(Stress(models=(spec,), pool=(str(pool_file),), gold="scores"), tmp_path / "stress")
    assert (pressed.path / "report.html").is_file()


def test_a_study_runs_it_beside_the_dense_model(base_dir: Path, lm_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    study = {
        "name": "merged",
        "common": {
            "model": "$BASE",
            "data": ["$TOY"],
            "trainer": {"max_steps": 2, "save_strategy": "no", "eval_strategy": "no"},
            "compute": {"precision": "fp32"},
        },
        "settings": {"toy": {}},
        "methods": {"dense": {"recipe": "dense"}, "dogerm": {"recipe": "dogerm", "domain": {"model": "$LM", "weights": [0, 0.5]}}},
        "paths": {"BASE": str(base_dir), "LM": str(lm_dir), "TOY": str(toy_file)},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    result = CliRunner().invoke(app, ["study", str(tmp_path / "study.yaml"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "out" / "cells" / "toy--dogerm--0.json").read_text())
    assert row["config"]["train"]["domain"]["model"] == row["domain"]["model"] == "$LM"
    assert len(row["domain"]["validation"]["curve"]) == 2


def test_the_command_as_a_user_gives_it(base_dir: Path, lm_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    def command(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    short = ("compute.precision=fp32", "trainer.max_steps=2", "domain.weights=0,0.5")
    line = command("train", "dogerm", tmp_path / "run", f"model={base_dir}", f"data={toy_file}", f"domain.model={lm_dir}", *short)
    assert "held-out accuracy" in line
    model = tmp_path / "run" / "model"
    line = command("merge", model, lm_dir, tmp_path / "merged", "method=domain", "weights=0,0.05,1", f"data={toy_file}")
    assert "(chosen): validation accuracy" in line
    assert "at weight 0.2 (given)" in command("merge", model, lm_dir, tmp_path / "given", "method=domain", "weight=0.2")
