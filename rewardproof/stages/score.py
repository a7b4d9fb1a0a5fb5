"""`rewardproof score MODEL IN OUT`: the same rows out, with `rewards` added; streamed, resumable, in bounded memory.

Rows are written to `OUT.partial`, which becomes OUT when all are there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, silent, writing
from rewardproof.config import Section
from rewardproof.data import ReadCounts, Row, iter_rows
from rewardproof.data.encoding import EncodedGroup, Overlong
from rewardproof.errors import CheckpointError
from rewardproof.models.precision import Precision
from rewardproof.scoring import Implicit, Judge, load_judge
from rewardproof.stages.row_file import RowFile, as_line

log = logging.getLogger(__name__)


class Score(Section):
    """Rewards for the rows of a data set."""

    model: str
    """The reward model: a directory or a hub id; with `implicit` a language model."""
    data: str
    """Rows to score: a file, a folder, a hub id or `embedded:…`."""
    precision: Precision = "fp32"
    """Of the forward pass; `fp32` reproduces stock rewards to rounding."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop"] = "fail"
    """Stop at a row that cannot be scored, or leave it out and count it."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Longest conversation, in tokens; 0 is the model's own limit, which models with rotary positions do not have."""
    overlong: Overlong = "fail"
    """What happens at a longer conversation: stop, leave its row out, or score it with its prompt shortened from the beginning."""
    implicit: Implicit | None = None
    """Score by the reward that a policy trained by DPO implies, instead of a reward head."""
    chunk: Annotated[int, Field(ge=1)] = 512
    """Rows scored and written together; memory and what an interruption can lose are bounded by it."""


def run(
    config: Score,
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> Report:
    """Score every row, in order.

    Args:
        config: Model and data.
        out: JSONL file to write, whole or not at all; its report goes to `OUT.report/`.
        overwrite: Replace an existing file; it stays as it is until all rows are scored.
        resume: Go on after the last whole chunk of an interrupted run's `OUT.partial`, or after the rows of OUT where there is none.
        progress: Receives what is being done, how far, and 0 for an unknown total.

    Returns:
        The report; the headline is the mean reward and its spread.

    Raises:
        CheckpointError: OUT exists and neither option was given, is a directory, or is or lies within what is read.
        DataError: A row that cannot be scored, or is longer than allowed, under `fail`.
        StorageError: The disk is full; the rows written stay, and `resume` goes on after them.
    """
    started = time.perf_counter()
    files = RowFile.at(Path(out))
    files.check(config.data, overwrite=overwrite, resume=resume)
    earlier = _earlier_rows(files, config.chunk) if resume else None
    model = load_judge(config.model, config.implicit, precision=config.precision)
    files.out.parent.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(files.report, config, resume=True, started=started) if resume else None
    counts, lengths = ReadCounts(), Counter[str]()
    rows = iter_rows(config.data, format=config.format, on_bad=config.on_bad, purpose="score", text=config.text, counts=counts)
    done = earlier.rows if earlier else 0
    scored = _scored(model, islice(_encoded(model, rows, config, lengths), done, None), config.chunk)
    first = next(scored, [])
    moments = _Moments(earlier)
    with writing(files.partial), _open_partial(files, earlier) as stream:
        directory = directory or RunDirectory(files.report, config, overwrite=overwrite, started=started)
        for chunk in chain([first], scored):
            for row, values in chunk:
                stream.write(as_line({**row.raw, "rewards": list(values)}))
                moments.add(values)
            stream.flush()
            done += len(chunk)
            progress("scoring", done, 0)
    os.replace(files.partial, files.out)
    return _report(directory, files, done, (counts, lengths), moments)


def _report(directory: RunDirectory, files: RowFile, written: int, counted: tuple[ReadCounts, Counter[str]], moments: _Moments) -> Report:
    counts, lengths = counted
    dropped = dict(counts.bad) | ({"overlong": lengths["overlong_dropped"]} if lengths["overlong_dropped"] else {})
    shortened = lengths["overlong_prompt_truncated"]
    if dropped or shortened:
        named = ", ".join(f"{count} × {reason}" for reason, count in dropped.items()) or "none"
        log.warning("%s: of %d rows left out: %s; scored with a shortened prompt: %d", files.out, counts.read, named, shortened)
    headline = f"{written} rows, {moments.count} answers, mean reward {moments.mean:.4f} (standard deviation {moments.std:.4f})"
    results: dict[str, Any] = {
        "rows": {"read": counts.read, "written": written, "dropped": dropped, "prompt_truncated": shortened},
        "rewards": {"count": moments.count, "mean": moments.mean, "std": moments.std},
    }
    report = directory.finish(headline, results)
    return Report(files.out, report.headline, report.results)


class _Earlier(NamedTuple):
    """An interrupted run's file, and what of it is kept, in rows and in bytes."""

    file: Path
    rows: int
    size: int


def _earlier_rows(files: RowFile, chunk: int) -> _Earlier | None:
    """What an interrupted run left: whole chunks, so that the rest is scored in the same company, to the same last bit."""
    file = next((file for file in (files.partial, files.out) if file.exists()), None)
    if file is None or not file.stat().st_size:
        return None
    files.require_ours(file, "score")
    ends = [0]
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
    rows = len(ends) - 1
    if file == files.partial:
        rows -= rows % chunk
    return _Earlier(file, rows, ends[rows])


def _open_partial(files: RowFile, earlier: _Earlier | None) -> Any:
    """`OUT.partial`, behind its whole rows; OUT itself is left as it is."""
    if earlier is None:
        return files.partial.open("wb")
    if earlier.file != files.partial:
        shutil.copyfile(earlier.file, files.partial)
    os.truncate(files.partial, earlier.size)
    return files.partial.open("ab")


class _Moments:
    """Count, mean and spread of rewards, over those already in a file and those added."""

    def __init__(self, earlier: _Earlier | None) -> None:
        self.count, self._sum, self._squares = 0, 0.0, 0.0
        if earlier is None:
            return
        with earlier.file.open("rb") as lines:
            for number, line in enumerate(islice(lines, earlier.rows), start=1):
                try:
                    self.add(json.loads(line)["rewards"])
                except (ValueError, KeyError, TypeError) as error:
                    raise CheckpointError(
                        f"{earlier.file}:{number}: got a line without rewards ({type(error).__name__}), expected a scored row: the file is "
                        "damaged or not ours. Pass --overwrite to start again, or name another OUT."
                    ) from error

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


def _encoded(model: Judge, rows: Iterator[Row], config: Score, lengths: Counter[str]) -> Iterator[tuple[Row, EncodedGroup]]:
    """The rows that are scored, as tokens; a resumed run goes through the earlier ones again, so that it counts what they counted."""
    while chunk := list(islice(rows, config.chunk)):
        encoded, found = model.encode([row.group for row in chunk], max_length=config.max_length, overlong=config.overlong)
        lengths.update(found)
        for entry in encoded:
            yield chunk[entry.index], entry


def _scored(model: Judge, entries: Iterator[tuple[Row, EncodedGroup]], size: int) -> Iterator[list[tuple[Row, tuple[float, ...]]]]:
    while chunk := list(islice(entries, size)):
        rewards = model.score_encoded([entry for _, entry in chunk], origins=[row.group.origin for row, _ in chunk])
        yield [(row, values) for (row, _), values in zip(chunk, rewards, strict=True)]
