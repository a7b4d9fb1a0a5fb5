"""kill -9 at random moments of `train umm` and of `score`, then --resume: what an undisturbed run ends at, bit for bit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardproof.models.checkpoints import EXPERTS_FILE
from tests.faults import undisturbed
from tests.faults.undisturbed import Undisturbed, appears

pytestmark = pytest.mark.slow
TIMES = {"seconds", "peak_memory_gb", "tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
Killed = Callable[..., bool]


def report(run: Path) -> Any:
    return undisturbed.report(run, TIMES)


def steps(run: Path) -> list[tuple[str, bool, int]]:
    """Every logged step: phase, evaluation or not, number."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(record["phase"], "eval_loss" in record, record["step"]) for record in records if {"loss", "eval_loss"} & record.keys()]


def assert_same_run(found: Path, whole: Path) -> None:
    for file in ("model/model.safetensors", f"moe/{EXPERTS_FILE}"):
        ours, theirs = load_file(found / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"{file} is another"
    assert report(found) == report(whole)
    assert (found / "model" / "config.json").read_text() == (whole / "model" / "config.json").read_text()
    assert sorted(steps(found)) == sorted(steps(whole)), "steps are missing from the log, or in it twice"
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in whole.iterdir()), "something is left over"
    assert (found / "report.html").read_text().count("<svg") == (whole / "report.html").read_text().count("<svg")


@pytest.fixture(scope="module")
def umm(base_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory, finished: Callable[..., str]) -> Undisturbed:
    """All that `train umm` can do: dense warm-up, upcycling, the mixture's training, merging; a checkpoint a step."""
    command = (
        f"model={base_dir}", f"data={toy_file}", "split=0.25", "start=rm", "compute.precision=fp32", "upcycle.n_experts=4",
        "upcycle.n_active=3", "merge.steps=6", "merge.held_out=0.2", "trainer.learning_rate=5e-3", "trainer.max_steps=6",
        "trainer.per_device_train_batch_size=8", "trainer.save_steps=1", "trainer.logging_steps=2", "layers=top:2",
    )  # fmt: skip
    finished("recipes", "ls")  # the server starts
    path, begun = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    finished("train", "umm", path, *command)
    return Undisturbed(path, command, time.monotonic() - begun)


def after(seconds: float) -> Callable[[Path], Callable[[], bool]]:
    def moment(_: Path) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    return moment


def logged(phase: str) -> Callable[[Path], Callable[[], bool]]:
    def moment(run: Path) -> Callable[[], bool]:
        file = run / "log.jsonl"
        return lambda: file.exists() and f'"phase": "{phase}"' in file.read_text()

    return moment


MOMENTS: dict[str, Callable[[Path], Callable[[], bool]]] = {
    "the settings are written": appears("config.yaml"),
    "warm-up": appears("checkpoints/dense/checkpoint-3/trainer_state.json"),
    "a checkpoint's weights are being written": appears("checkpoints/dense/checkpoint-*/*", apart_from="optimizer.pt"),
    "a checkpoint's optimizer is being written": appears("checkpoints/moe/checkpoint-*/optimizer.pt", apart_from="trainer_state.json"),
    "the mixture's first steps": appears("checkpoints/moe/checkpoint-1"),
    "the mixture is being saved": appears(".moe.partial-*"),
    "merging": logged("merge"),
    "the model is being saved": appears(".model.partial-*"),
    "the model is evaluated": appears("model"),
    "the page is being written": appears("report.json"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_train_killed_at_a_phase(name: str, umm: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    runs = (tmp_path / str(attempt) for attempt in range(5))  # a moment can be over before it is seen
    run = next(run for run in runs if killed(MOMENTS[name](run), "train", "umm", run, *umm.command))
    finished("train", "umm", run, *umm.command, "--resume")
    assert_same_run(run, umm.path)


def random_moments(seed: int, count: int) -> Iterator[float]:
    """Fractions of a run."""
    dice = random.Random(seed)
    return (dice.random() for _ in range(count))


@pytest.mark.parametrize("seed", range(3))
def test_train_killed_again_and_again(seed: int, umm: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    run, resume = tmp_path / "run", []
    for fraction in random_moments(seed, 4):
        killed(after(fraction * umm.seconds)(run), "train", "umm", run, *umm.command, *resume)
        resume = ["--resume"]
    finished("train", "umm", run, *umm.command, "--resume")
    assert_same_run(run, umm.path)


def test_a_finished_run_is_not_done_again(umm: Undisturbed, installed: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in umm.path.rglob("*") if path.is_file()}
    result = installed("train", "umm", umm.path, *umm.command, "--resume")
    assert result.returncode == 0
    assert "held-out accuracy" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in umm.path.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def scores(
    reward_dir: Path,
    toy_rows: Callable[..., list[dict[str, Any]]],
    write_jsonl: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    finished: Callable[..., str],
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("scores")
    data = write_jsonl(folder / "in.jsonl", toy_rows(3000, seed=3))
    command, path = ("score", str(reward_dir), str(data)), folder / "whole.jsonl"
    finished("recipes", "ls")
    begun = time.monotonic()
    finished(*command, path, "chunk=64")
    return Undisturbed(path, command, time.monotonic() - begun)


def written(rows: int) -> Callable[[Path], Callable[[], bool]]:
    def moment(out: Path) -> Callable[[], bool]:
        partial = Path(f"{out}.partial")
        return lambda: partial.exists() and partial.read_bytes().count(b"\n") >= rows

    return moment


SCORE_MOMENTS: dict[str, Callable[[Path], Callable[[], bool]]] = {
    "nothing is written": appears("../out.jsonl.partial"),
    "one row": written(1),
    "rows": written(700),
    "many rows": written(2200),
    "the last chunk": written(2950),
    "the file has its name": appears("../out.jsonl", apart_from="out.jsonl.report/report.json"),
}


def assert_same_rows(out: Path, whole: Path) -> None:
    assert out.read_bytes() == whole.read_bytes(), "a row is missing, there twice, or has another reward"
    assert report(Path(f"{out}.report")) == report(Path(f"{whole}.report"))
    assert not Path(f"{out}.partial").exists()


@pytest.mark.parametrize("name", SCORE_MOMENTS)
def test_score_killed_at_a_moment(name: str, scores: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    killed(SCORE_MOMENTS[name](out), *scores.command, out, "chunk=64")
    finished(*scores.command, out, "chunk=64", "--resume")
    assert_same_rows(out, scores.path)


@pytest.mark.parametrize("seed", range(2))
def test_score_killed_again_and_again(seed: int, scores: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    out, resume = tmp_path / "out.jsonl", []
    for fraction in random_moments(seed, 4):
        killed(after(fraction * scores.seconds)(out), *scores.command, out, "chunk=64", *resume)
        resume = ["--resume"]
    finished(*scores.command, out, "chunk=64", "--resume")
    assert_same_rows(out, scores.path)
