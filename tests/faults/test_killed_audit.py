"""kill -9 at random moments of `audit`, then --resume: what an undisturbed run ends at, bit for bit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.undisturbed import Undisturbed, appears, report

pytestmark = pytest.mark.slow
TIMES = {"seconds", "peak_memory_gb"}
Killed = Callable[..., bool]


@pytest.fixture(scope="module")
def audited(reward_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory, finished: Callable[..., str]) -> Undisturbed:
    finished("recipes", "ls")  # the server starts
    settings = (f"data={toy_file}", "prompts=40", "perturbations=padding,repetition,refusal", "precision=fp32", "names=m")
    path, begun = tmp_path_factory.mktemp("audit") / "run", time.monotonic()
    finished("audit", reward_dir, path, *settings)
    return Undisturbed(path, (str(reward_dir), *settings), time.monotonic() - begun)


def assert_same_audit(found: Path, whole: Path) -> None:
    assert report(found, TIMES) == report(whole, TIMES)
    assert (found / "scores/0.jsonl").read_bytes() == (whole / "scores/0.jsonl").read_bytes()
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in whole.iterdir()), "something is left over"


def scored(chunks: int) -> Callable[[Path], Callable[[], bool]]:
    def moment(run: Path) -> Callable[[], bool]:
        file = run / "scores" / "0.jsonl"
        return lambda: file.exists() and file.read_bytes().count(b"\n") >= 8 * chunks

    return moment


MOMENTS = {
    "the settings are written": appears("config.yaml"),
    "the first prompts are scored": scored(1),
    "most are scored": scored(4),
    "the numbers are there": appears("report.json", apart_from="report.html"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_audit_killed_at_a_moment(name: str, audited: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    model, *settings = audited.command
    runs = (tmp_path / str(attempt) for attempt in range(5))  # a moment can be over before it is seen
    run = next(run for run in runs if killed(MOMENTS[name](run), "audit", model, run, *settings))
    finished("audit", model, run, *settings, "--resume")
    assert_same_audit(run, audited.path)


def test_audit_killed_again_and_again(audited: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path) -> None:
    model, *settings = audited.command
    run, dice, resume = tmp_path / "run", random.Random(0), []
    for _ in range(4):
        end = time.monotonic() + dice.random() * audited.seconds
        killed(lambda end=end: time.monotonic() > end, "audit", model, run, *settings, *resume)
        resume = ["--resume"]
    finished("audit", model, run, *settings, "--resume")
    assert_same_audit(run, audited.path)
