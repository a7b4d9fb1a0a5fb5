"""Run directories: created once, written atomically, never overwritten by accident."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rewardproof.artifacts import RunDirectory, peak_memory_gb, plain, provenance, require_free
from rewardproof.config import Section
from rewardproof.errors import CheckpointError


class Small(Section):
    """A configuration."""

    seed: int = 0
    """Seed."""


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_directory_says_what_runs(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b", Small(seed=4))
    assert files(directory.path).keys() == {"config.yaml", "provenance.json"}
    assert (directory.path / "config.yaml").read_text() == "seed: 4\n"


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    RunDirectory(tmp_path, Small())
    assert (tmp_path / "config.yaml").is_file()


def test_an_occupied_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", Small(seed=1)).write_text("model/weights", "precious")
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"run is not empty; .*Name a new directory, or pass --overwrite.*or --resume"):
        RunDirectory(tmp_path / "run", Small(seed=1))
    assert files(tmp_path) == before


def test_overwrite_starts_from_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", Small()).write_text("old/file", "x")
    directory = RunDirectory(tmp_path / "run", Small(seed=2), overwrite=True)
    assert files(directory.path).keys() == {"config.yaml", "provenance.json"}


@pytest.mark.parametrize(
    ("options", "message"), [({"overwrite": True}, "refusing to delete it"), ({"resume": True}, "--resume continues a run")]
)
def test_a_directory_that_is_not_ours_is_left_alone(options: dict[str, bool], message: str, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=f"thesis was not written by rewardproof .*{message}"):
        RunDirectory(tmp_path / "thesis", Small(), **options)
    assert files(tmp_path / "thesis") == {"chapter.txt": "years of work"}


def test_resume_wants_the_same_settings(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", Small(seed=1)).write_text("kept", "x")
    RunDirectory(tmp_path / "run", Small(seed=1), resume=True)
    assert (tmp_path / "run" / "kept").read_text() == "x"
    with pytest.raises(CheckpointError, match=r"run/config.yaml differs .*Restore them, or pass --overwrite"):
        RunDirectory(tmp_path / "run", Small(seed=2), resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1\n"


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_file_is_no_directory(options: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file is a file; expected a directory to write to. Name another"):
        RunDirectory(tmp_path / "file", Small(), **options)
    assert (tmp_path / "file").read_text() == "x"


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path, Small())
    directory.write_json("report.json", {"old": 1})

    def full_disk(self: Path, text: str) -> int:
        with self.open("w") as stream:
            stream.write(text[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        directory.write_json("report.json", {"new": 2})
    monkeypatch.undo()
    assert json.loads((tmp_path / "report.json").read_text()) == {"old": 1}


def test_a_value_that_json_cannot_hold_does_not_destroy_the_report(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, Small())
    assert json.loads(directory.write_json("x.json", {"value": float("nan"), "odd": object}).read_text())["value"] is None
    assert not list(tmp_path.glob("*.partial"))


def test_the_report_is_what_is_returned(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, Small())
    report = directory.finish("headline 0.5", {"tensor": torch.tensor([0.5, float("nan")]), "path": tmp_path, "pair": (1, np.float32(2.0))})
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report.results == json.loads(json.dumps(report.results))
    assert written["tensor"] == [0.5, None]
    assert written["headline"] == report.headline == "headline 0.5"
    assert written["seconds"] >= 0
    assert 0.01 < written["peak_memory_gb"] == peak_memory_gb() < 200


def test_the_log_grows_line_by_line(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, Small())
    directory.log({"step": 1, "loss": torch.tensor(0.5)})
    directory.log({"step": 2, "loss": float("inf")})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


def test_plain_values() -> None:
    @dataclass(frozen=True, slots=True)
    class Point:
        x: float
        where: tuple[Path, ...]

    given = {
        1: np.int64(3), "bool": np.bool_(True), "flag": False, "nan": np.float64("nan"), "single": np.float32("inf"),
        "array": np.array([[1.0, np.nan]]), "tensor": torch.tensor(2.5), "ints": torch.tensor([1, 2]),
        "point": Point(float("-inf"), (Path("/a"),)), "none": None, "set": {4},
        "nested": [{"deep": (np.float32(0.5),)}], "trained": torch.ones(1, requires_grad=True),
    }  # fmt: skip
    expected = {
        "1": 3, "bool": True, "flag": False, "nan": None, "single": None, "array": [[1.0, None]], "tensor": 2.5, "ints": [1, 2],
        "point": {"x": None, "where": ["/a"]}, "none": None, "set": [4], "nested": [{"deep": [0.5]}], "trained": [1.0],
    }  # fmt: skip
    found = plain(given)
    assert found == expected
    assert found["bool"] is True
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_provenance_says_how_to_make_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rewardproof", "train", "umm"])
    found = provenance()
    assert found["command"] == "rewardproof train umm"
    assert {"python", "rewardproof", "torch", "transformers", "numpy"} <= found["versions"].keys()
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["machine"]["cores"] == os.cpu_count()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["started"])
    here = Path(__file__).parent
    shown = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    assert shown.returncode != 0 or str(found["commit"]).startswith(shown.stdout.strip()[:7])


def test_a_free_directory_is_free_and_an_occupied_one_is_not(tmp_path: Path) -> None:
    assert not require_free(tmp_path / "new", overwrite=False, resume=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"is a file; expected a directory"):
        require_free(tmp_path / "file", overwrite=True, resume=False)
    with pytest.raises(CheckpointError, match=r"not empty; .*--overwrite .*--resume"):
        require_free(tmp_path, overwrite=False, resume=False)
    assert require_free(tmp_path, overwrite=True, resume=False)
