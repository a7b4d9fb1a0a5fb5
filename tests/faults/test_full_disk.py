"""A full disk: nothing finished is lost, nothing half-written stands as finished, and the message says how to go on.

A limit on the size of files stands for the disk: the kernel refuses the write in the middle of a file, as it does where no room is left.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardproof.artifacts import RunDirectory, is_full, writing
from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import StorageError
from rewardproof.models import embedded
from rewardproof.models.saving import save_reward_model
from rewardproof.models.trunk import TrunkCache

GOING_ON = r"What was finished before is kept\. .*; run the same command with --resume to go on$"


def stopped(process: BaseProcess) -> str:
    """The one message of a command that ended with exit code 2."""
    process.join(120)
    printed = Path(process.name).read_text().strip()
    assert process.exitcode == 2, printed
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1, printed
    return printed.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("largest_file", "overrides", "message", "kept"),
    [
        (40_000, (), r"could not write .*dense/checkpoint-1: its disk is full", []),
        (100_000, (), r"could not write .*dense/checkpoint-1: its disk is full", []),
        (300_000, (), r"could not write .*moe/checkpoint-1: its disk is full", ["checkpoints/dense/checkpoint-3"]),
        (100_000, ("trainer.save_strategy=no",), r"could not write .*run/moe: its disk is full", []),
    ],
)
def test_training_stops_and_goes_on(
    largest_file: int,
    overrides: tuple[str, ...],
    message: str,
    kept: list[str],
    base_dir: Path,
    toy_file: Path,
    tmp_path: Path,
    started: Callable[..., BaseProcess],
    finished: Callable[..., str],
) -> None:
    command = (
        f"model={base_dir}", f"data={toy_file}", "split=0.25", "start=rm", "compute.precision=fp32", "upcycle.n_experts=4",
        "upcycle.n_active=3", "merge.steps=2", "merge.held_out=0.2", "trainer.max_steps=3", "trainer.per_device_train_batch_size=8",
        "trainer.save_steps=1", "layers=top:2", "compute.trunk_cache_gb=0", *overrides,
    )  # fmt: skip
    run = tmp_path / "run"
    said = stopped(started("train", "umm", run, *command, largest_file=largest_file))
    assert re.search(message, said, re.IGNORECASE), said
    assert re.search(GOING_ON, said), said
    assert sorted(str(path.relative_to(run)) for path in run.glob("checkpoints/*/checkpoint-*")) == kept
    assert not [path.name for path in run.iterdir() if path.name in {"model", "moe"} or "partial" in path.name]
    finished("train", "umm", run, *command, "--resume")
    finished("train", "umm", tmp_path / "whole", *command)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_scored_rows_stay_and_the_rest_follows(
    reward_dir: Path, toy_file: Path, tmp_path: Path, started: Callable[..., BaseProcess], finished: Callable[..., str]
) -> None:
    command = ("score", reward_dir, toy_file)
    finished(*command, tmp_path / "whole.jsonl", "chunk=16")
    out = tmp_path / "out.jsonl"
    limit = (tmp_path / "whole.jsonl").stat().st_size // 2
    said = stopped(started(*command, out, "chunk=16", largest_file=limit))
    assert re.search(r"out\.jsonl\.partial: its disk is full", said), said
    assert re.search(GOING_ON, said), said
    assert not out.exists()
    partial = Path(f"{out}.partial").read_bytes()
    assert (tmp_path / "whole.jsonl").read_bytes().startswith(partial)
    assert partial.count(b"\n") > 50
    finished(*command, out, "chunk=16", "--resume")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_a_full_trunk_cache_says_where_it_lies_and_how_to_do_without(
    base_dir: Path, toy_file: Path, tmp_path: Path, started: Callable[..., BaseProcess], finished: Callable[..., str]
) -> None:
    command = (f"model={base_dir}", f"data={toy_file}", "layers=top:1", "trainer.max_steps=2", "seed=77", "compute.precision=fp32")
    run = tmp_path / "run"
    said = stopped(started("train", "dense", run, *command, "compute.tokens_per_batch=64", largest_file=30_000))
    assert re.search(r"trunk.*: its disk is full.*REWARDPROOF_CACHE.*compute\.trunk_cache_gb=0", said), said
    finished("train", "dense", run, *command, "compute.tokens_per_batch=64", "--resume")


def rows_of(cache: TrunkCache) -> int:
    return sum(1 for line in cache.index_file.read_text().splitlines() if line)


def test_activations_cut_off_by_a_full_disk_are_made_again(
    tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    groups = random_groups(12, seed=5)
    cache = TrunkCache(tiny.classifier("llama"), 1, precision="fp32", limit_gb=1)
    for done in cache.add(groups, tokens_per_batch=60):
        if done:
            break
    known = rows_of(cache)
    with cache.rows_file.open("ab") as rows:
        rows.write(b"half a row")
    with cache.index_file.open("a") as index:
        index.write('\n["cut o')
    again = TrunkCache(tiny.classifier("llama"), 1, precision="fp32", limit_gb=1)
    assert len(again.index) == known
    list(again.add(groups, tokens_per_batch=60))
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path / "other"))
    fresh = TrunkCache(tiny.classifier("llama"), 1, precision="fp32", limit_gb=1)
    list(fresh.add(groups, tokens_per_batch=60))
    for group in groups:
        torch.testing.assert_close(again.read([group]), fresh.read([group]), atol=1e-6, rtol=0)
    assert len(TrunkCache(tiny.classifier("llama"), 1, precision="fp32", limit_gb=1).index) == len(fresh.index)


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=[type(error).__name__ + str(number) for number, error in enumerate(FULL)])
def test_a_full_disk_in_whatever_words(error: Exception, tmp_path: Path) -> None:
    half = tmp_path / "half"

    def write() -> None:
        with writing(half, discard=half):
            half.mkdir()
            (half / "weights").write_text("x")
            raise error

    with pytest.raises(StorageError, match=r"Could not write .*half: its disk is full, .* GB free.* Free some space there$"):
        write()
    assert not half.exists()
    assert is_full(error)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="mine"), writing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "mine")
    with pytest.raises(StorageError, match="the inner one"), writing(tmp_path / "file"), writing(tmp_path, advice="the inner one"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not is_full(ValueError("an error of 28 words"))


def test_a_model_is_saved_whole_or_not_at_all(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny.classifier("llama"), tiny.word_tokenizer()
    (tmp_path / ".model.partial-killed").mkdir()
    (tmp_path / ".model.mine").write_text("kept")
    save_reward_model(model, tokenizer, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_text()

    def full(folder: Path, **_: Any) -> None:
        save_file({"half": torch.zeros(3)}, folder / "model.safetensors")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(StorageError, match=r"Could not write .*model: its disk is full"):
        save_reward_model(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.mine", "model"]


def test_a_conversion_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_checked_gguf", lambda: tmp_path)
    monkeypatch.setattr(embedded, "_convert", full)
    with pytest.raises(OSError, match="No space left on device"):
        embedded.embedded_model_dir()
    assert not list(tmp_path.iterdir())


class Empty(Section):
    """No settings."""


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", Empty())
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"Could not write .*log\.jsonl: its disk is full"):
        directory.log({"step": 1})
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())
