"""A file of rows as a verb leaves it: the rows that it read with columns added, whole or not at all, and its report beside it."""

from __future__ import annotations

import json
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewardproof.artifacts import require_free, require_writable
from rewardproof.errors import CheckpointError


class RowFile(NamedTuple):
    """A file of rows that a verb writes, `OUT.partial`, which becomes it when all rows are there, and the directory of its report."""

    out: Path
    partial: Path
    report: Path

    @classmethod
    def at(cls, out: Path) -> RowFile:
        """The file of that name."""
        return cls(out, Path(f"{out}.partial"), Path(f"{out}.report"))

    def check(self, data: str, *, overwrite: bool, resume: bool) -> None:
        """Refuse before anything is opened what would destroy rows, ours or the user's.

        Raises:
            CheckpointError: OUT exists and neither option was given, is a directory, or is or lies within what is read.
        """
        for file in (self.out, self.partial):
            if file.is_dir():
                raise CheckpointError(f"{file} is a directory; expected a file to write rows to. Name a file in it, or another.")
        source = Path(data).resolve()
        if source.exists():
            same = source in (self.out.resolve(), self.partial.resolve()) or (self.out.exists() and self.out.samefile(source))
            if same or source.is_relative_to(self.report.resolve()):
                raise CheckpointError(
                    f"Got {data} to read and {self.out} to write; expected two different files: the rows would be replaced by their own "
                    "output. Name another OUT."
                )
            if source.is_dir() and self.out.resolve().is_relative_to(source):
                raise CheckpointError(
                    f"{self.out} lies in {data}, the folder to read; expected it elsewhere: a later run would read the scored rows as "
                    "data. Name an OUT outside that folder."
                )
        if self.out.exists() and not (overwrite or resume):
            raise CheckpointError(f"{self.out} exists; a run never overwrites a file. Name another, or pass --overwrite or --resume.")
        if self.partial.exists() and self.partial.stat().st_size and not (overwrite or resume):
            raise CheckpointError(
                f"{self.partial} exists, rows of an interrupted run; expected none, because a run never overwrites another. Pass --resume "
                "to go on after them, or --overwrite to start again."
            )
        require_writable(self.out)
        require_free(self.report, overwrite=overwrite, resume=resume)

    def require_ours(self, file: Path, verb: str) -> None:
        """Refuse to go on with rows that no run of the verb has left.

        Raises:
            CheckpointError: There is no report beside them.
        """
        if not (self.report / "config.yaml").exists():
            raise CheckpointError(
                f"{file} was not written by rewardproof {verb} (no {self.report}/config.yaml); expected rows of an interrupted run, "
                "because --resume goes on with them. Name another OUT."
            )


def as_line(row: dict[str, Any]) -> bytes:
    """One row as a line of JSON; what JSON has no type for (Parquet's dates, decimals and bytes) as text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_as_json).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold but an escape can
        return json.dumps(row, default=_as_json).encode() + b"\n"


def _as_json(value: Any) -> Any:
    if isinstance(value, (datetime, date, clock)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode(errors="backslashreplace")
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return str(value)
