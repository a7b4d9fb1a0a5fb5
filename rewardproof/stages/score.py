"""`rewardproof score MODEL IN OUT`: the same rows out, with `rewards` added; streamed, resumable, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.config import Section
from rewardproof.data import ReadCounts, Row, iter_rows
from rewardproof.errors import CheckpointError
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel


class Score(Section):
    """Rewards for the rows of a data set."""

    model: str
    """The reward model: a directory or a hub id."""
    data: str
    """Rows to score: a file, a folder, a hub id or `embedded:…`."""
    precision: Precision = "fp32"
    """Of the forward pass; `fp32` reproduces stock rewards to rounding."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    on_bad: Literal["fail", "drop"] = "fail"
    """Stop at a row that cannot be scored, or leave it out and count it."""
    chunk: int = 512
    """Rows scored and written together; memory and what an interruption can lose are bounded by it."""


def run(
    config: Score,
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Report:
    """Score every row, in order.

    Args:
        config: Model and data.
        out: JSONL file to write; its report goes to `OUT.report/`.
        overwrite: Replace an existing file.
        resume: Go on after the last whole row of an interrupted run's file.
        progress: Receives what is being done, how far, and 0 for an unknown total.

    Returns:
        The report; the headline is the mean reward and its spread.

    Raises:
        CheckpointError: OUT exists and neither option was given.
    """
    target = Path(out)
    if target.exists() and not (overwrite or resume):
        raise CheckpointError(f"{target} exists; a run never overwrites a file. Name another, or pass --overwrite or --resume.")
    model = RewardModel.load(config.model, precision=config.precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(f"{target}.report", config, overwrite=overwrite, resume=resume)
    done = _keep_whole_rows(target) if resume and target.exists() else 0
    counts = ReadCounts()
    rows = iter_rows(config.data, format=config.format, on_bad=config.on_bad, purpose="score", counts=counts)
    moments = _Moments(target if done else None)
    with target.open("a" if done else "w") as stream:
        for chunk in _chunks(islice(rows, done, None), config.chunk):
            rewards = model.score([row.group for row in chunk])
            for row, values in zip(chunk, rewards, strict=True):
                stream.write(json.dumps({**row.raw, "rewards": list(values)}, ensure_ascii=False) + "\n")
                moments.add(values)
            stream.flush()
            done += len(chunk)
            progress("scoring", done, 0)
    headline = f"{done} rows, {moments.count} answers, mean reward {moments.mean:.4f} (standard deviation {moments.std:.4f})"
    results: dict[str, Any] = {
        "rows": {"read": counts.read, "written": done, "dropped": dict(counts.bad)},
        "rewards": {"count": moments.count, "mean": moments.mean, "std": moments.std},
    }
    report = directory.finish(headline, results)
    return Report(target, report.headline, report.results)


class _Moments:
    """Count, mean and spread of rewards, over those already in a file and those added."""

    def __init__(self, written: Path | None) -> None:
        self.count, self._sum, self._squares = 0, 0.0, 0.0
        if written is not None:
            with written.open() as lines:
                for line in lines:
                    self.add(json.loads(line)["rewards"])

    def add(self, values: tuple[float, ...] | list[float]) -> None:
        self.count += len(values)
        self._sum += float(np.sum(values))
        self._squares += float(np.sum(np.square(values)))

    @property
    def mean(self) -> float:
        return self._sum / max(self.count, 1)

    @property
    def std(self) -> float:
        return float(np.sqrt(max(self._squares / max(self.count, 1) - self.mean**2, 0.0)))


def _keep_whole_rows(file: Path) -> int:
    """Cut a half-written last line off, and count the rows that stay."""
    kept = rows = 0
    with file.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            kept += len(line)
            rows += 1
    with file.open("rb+") as stream:
        stream.truncate(kept)
    return rows


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk
