"""kill -9 of `evaluate` on a benchmark, then --resume: the numbers and files of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import undisturbed

pytestmark = pytest.mark.slow
TIMES = {"seconds", "peak_memory_gb"}


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., Any], write_jsonl: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2000 rows of RewardBench's shape, so several chunks."""
    draw = random.Random(0)
    names = ["donotanswer", "hep-cpp", "math-prm", "llmbar-natural", "alpacaeval-hard"]
    made = [{**row, "subset": draw.choice(names), "id": place} for place, row in enumerate(toy_rows(2000, seed=9))]
    return write_jsonl(tmp_path_factory.mktemp("rb") / "filtered.jsonl", made)


@pytest.fixture(scope="module")
def whole(reward_dir: Path, rows: Path, finished: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    finished("evaluate", reward_dir, rows, "--out", path)
    return path


@pytest.mark.parametrize("chunks", [0, 1, 3, 6])
def test_evaluate_killed_after_so_many_chunks(
    chunks: int, whole: Path, reward_dir: Path, rows: Path, killed: Callable[..., bool], finished: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kept = run / "judged" / "0.jsonl"

    def reached() -> bool:
        return kept.read_bytes().count(b"\n") >= chunks if kept.exists() else (chunks == 0 and (run / "config.yaml").exists())

    killed(reached, "evaluate", reward_dir, rows, "--out", run)
    finished("evaluate", reward_dir, rows, "--out", run, "--resume")
    assert undisturbed.report(run, TIMES) == undisturbed.report(whole, TIMES)
    for file in [*undisturbed.report(whole, TIMES)["result_files"], "judged/0.jsonl"]:
        assert (run / file).read_text() == (whole / file).read_text()
