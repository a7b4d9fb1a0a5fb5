"""Torn checkpoints are left out and named; a loss or weights that are not finite stop training and spoil nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import Trainer
from typer.testing import CliRunner

from rewardproof.artifacts import RunDirectory
from rewardproof.cli.main import app
from rewardproof.config import Section
from rewardproof.errors import TrainingError
from rewardproof.models.heads import Head
from rewardproof.training.batches import TrainingSet
from rewardproof.training.checkpoints import latest_whole
from rewardproof.training.fit import Compute, Fit, FitResult, fit
from rewardproof.training.objective import Loss

STEPS = 6


def train(tiny: ModuleType, data: TrainingSet, folder: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], FitResult, list[Any]]:
    """Weights, result and log records of a small run that saves a checkpoint a step and keeps three."""
    model, records = changes.pop("model", None) or tiny.classifier("llama"), []
    trainer = {
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_steps": STEPS, "save_steps": 1, "save_total_limit": 3,
        "logging_steps": 3, "lr_scheduler_type": "constant", **changes.pop("trainer", {}),
    }  # fmt: skip
    settings: dict[str, Any] = {
        "held_out": None, "layers": range(1, 3), "seed": 3, "loss": Loss(), "compute": Compute(precision="fp32"),
        "head": Head(init="keep", learning_rate=1e-2), "resume": False,
    }  # fmt: skip
    run = Fit(model=model, train=data, folder=folder, trainer=trainer, record=records.append, **{**settings, **changes})
    result = fit(run)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, result, records


def numbers(result: FitResult) -> tuple[Any, ...]:
    return result.steps, {key: value for key, value in result.last.items() if key != "tokens_per_second"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


TEARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut off": (lambda folder: cut(folder / "trained.safetensors"), "trained.safetensors is cut off or damaged"),
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "no trainer_state.json"),
    "state cut off": (lambda folder: cut(folder / "trainer_state.json"), "trainer_state.json is cut off or damaged"),
    "empty optimizer": (lambda folder: (folder / "optimizer.pt").write_bytes(b""), "optimizer.pt is cut off or damaged"),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "no optimizer.pt"),
    "damaged optimizer": (
        lambda folder: (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes().replace(b"\x00\x00", b"\x07\x00")),
        "optimizer.pt is cut off or damaged",
    ),
    "random state cut off": (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth is cut off or damaged"),
    "empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "no trainer_state.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEARS)
def test_a_torn_checkpoint_is_named_and_the_one_before_is_taken(
    name: str, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = random_set(16)
    whole, result, _ = train(tiny, data, tmp_path / "whole")
    train(tiny, data, tmp_path / "torn", trainer={"max_steps": 5})
    tear, flaw = TEARS[name]
    tear(tmp_path / "torn" / "checkpoint-5")
    with caplog.at_level(logging.WARNING, logger="rewardproof"):
        found, resumed, _ = train(tiny, data, tmp_path / "torn", resume=True)
    assert f"torn/checkpoint-5 is torn ({flaw}); going on from checkpoint-4" in caplog.text
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert numbers(resumed) == numbers(result), "the records of the log hold sums over steps before and after"


def test_where_every_checkpoint_is_torn_training_begins_again(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = random_set(16)
    whole, *_ = train(tiny, data, tmp_path / "run")
    for folder in (tmp_path / "run").iterdir():
        (folder / "trainer_state.json").unlink()
    with caplog.at_level(logging.WARNING, logger="rewardproof"):
        found, *_ = train(tiny, data, tmp_path / "run", resume=True)
    assert caplog.text.count("going on from the beginning") == 3
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_checkpoints_are_told_from_other_folders(tmp_path: Path) -> None:
    assert latest_whole(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "dense").mkdir()
    assert latest_whole(tmp_path) is None
    assert (tmp_path / "checkpoint-best").is_dir()


def test_a_sharded_checkpoint_is_known_by_its_state(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    (folder / "pytorch_model_fsdp_0").mkdir(parents=True)
    assert latest_whole(tmp_path) is None
    (folder / "pytorch_model_fsdp_0").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    assert latest_whole(tmp_path) == folder


def test_a_run_stopped_after_its_last_step_takes_no_other(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data, held_out = random_set(16), random_set(4, seed=9)
    whole, result, records = train(tiny, data, tmp_path / "run", held_out=held_out, trainer={"eval_strategy": "epoch"})
    found, resumed, again = train(tiny, data, tmp_path / "run", held_out=held_out, resume=True, trainer={"eval_strategy": "epoch"})
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert numbers(resumed) == numbers(result)
    (evaluation,) = again
    assert evaluation == next(record for record in reversed(records) if "eval_loss" in record)


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_a_resumed_run_logs_what_an_undisturbed_one_does(
    stop: int, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data = random_set(16)
    _, _, whole = train(tiny, data, tmp_path / "whole")
    _, _, first = train(tiny, data, tmp_path / "run", trainer={"max_steps": stop})
    _, _, second = train(tiny, data, tmp_path / "run", resume=True)
    times = {"tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}

    def losses(records: list[Any]) -> list[Any]:
        return [{key: value for key, value in record.items() if key not in times} for record in records if "loss" in record]

    assert [record for record in losses(first) if record["step"] % 3 == 0] + losses(second) == losses(whole)


def test_a_loss_that_is_not_finite_stops_and_the_last_checkpoint_stays(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    message = (
        r"Training broke down: the loss of step 2 is (nan|inf), expected finite numbers; the last good checkpoint is .*checkpoint-1\. "
        r"Usual causes: a learning rate that is too high \(now 1e\+30, head 0\.01\).*lower trainer\.learning_rate .*compute\.precision=fp32"
    )
    with pytest.raises(TrainingError, match=message):
        train(tiny, random_set(16), tmp_path, trainer={"learning_rate": 1e30})
    assert latest_whole(tmp_path) == tmp_path / "checkpoint-1"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(tmp_path / "checkpoint-1" / "trained.safetensors").values())


def test_weights_that_are_not_finite_are_neither_saved_nor_delivered(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"layers\..* values that are not finite after step 1.*; no checkpoint had been saved yet"):
        train(tiny, random_set(16), tmp_path / "saved", trainer={"learning_rate": 1e39, "max_grad_norm": 0.0})
    assert not list((tmp_path / "saved").glob("checkpoint-*"))
    with pytest.raises(TrainingError, match=r"holds values that are not finite after step 1"):
        train(tiny, random_set(4), tmp_path, trainer={"learning_rate": 1e39, "max_steps": 1, "save_strategy": "no"})


def test_a_base_that_is_not_finite_is_noticed_at_the_first_step(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"the loss of step 1 is nan.*weights that were not finite to begin with"):
        train(tiny, random_set(16), tmp_path, model=model)


def test_errors_of_transformers_that_are_not_ours_pass_unchanged(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(Trainer, "__init__", broken)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        train(tiny, random_set(4), tmp_path)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_broke_and_keeps_the_run(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    result = command(
        "train", "dense", tmp_path / "run", f"model={base_dir}", f"data={toy_file}", "trainer.learning_rate=1e30", "trainer.save_steps=1",
        "compute.precision=fp32",
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Training broke down: the loss of step 4 is nan")
    assert "start again with --overwrite" in result.stderr
    assert not (tmp_path / "run" / "model").exists()
    assert latest_whole(tmp_path / "run" / "checkpoints" / "dense") == tmp_path / "run" / "checkpoints" / "dense" / "checkpoint-3"


class Empty(Section):
    """No settings."""


def test_a_resumed_log_repeats_nothing_and_loses_nothing(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run", Empty())
    said = [
        {"phase": "data", "rows": 3},
        *({"phase": "training", "seed": 0, "step": step, "loss": 0.5} for step in (1, 2)),
        {"phase": "training", "seed": 0, "step": 2, "eval_loss": 0.4},
        {"phase": "training", "seed": 0, "step": 2, "train_runtime": 9.0},
        *({"phase": "training", "seed": 1, "step": step, "loss": 0.7} for step in (1, 2, 3)),
    ]
    for record in said:
        first.log(record)
    with (tmp_path / "run" / "log.jsonl").open("a") as stream:
        stream.write('{"phase": "training", "seed": 1, "st')
    second = RunDirectory(tmp_path / "run", Empty(), resume=True)
    for record in (said[0], {**said[4], "train_runtime": 0.0}, {**said[6], "loss": 0.71}, {**said[7], "loss": 0.72}):
        second.log(record)
    found = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert found == [*said[:6], {**said[6], "loss": 0.71}, {**said[7], "loss": 0.72}]


def test_an_interrupted_deletion_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDirectory(tmp_path / "run", Empty()).write_text("model/weights", "x")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path / "run", Empty(), overwrite=True)
    RunDirectory(tmp_path / "run", Empty(), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "provenance.json"]


def test_a_run_killed_while_its_settings_were_written_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.partial").write_text("se")
    RunDirectory(tmp_path, Empty(), resume=True)
    assert (tmp_path / "config.yaml").is_file()
