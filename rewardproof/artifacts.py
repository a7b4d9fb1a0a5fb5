"""Run directories: what a verb leaves behind, and the rules for creating, resuming and overwriting them."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rewardproof.config import Section, dump_yaml
from rewardproof.errors import CheckpointError

PACKAGES = ("rewardproof", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "scipy")
MARKER = "provenance.json"
Progress = Callable[[str, int, int], None]
"""Receives what is being done, how far, and of how much; 0 for an unknown total."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of a caller who wants to see none."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verb returns: where its files lie and the one number to remember.

    Attributes:
        path: The run directory (or file) that was written.
        headline: One sentence with the headline number and its 95 % interval.
        results: The content of `report.json`.
    """

    path: Path
    headline: str
    results: Mapping[str, Any]


class RunDirectory:
    """A directory that one run owns. It is created once, never overwritten by accident, and written atomically."""

    def __init__(
        self, path: Path | str, config: Section, *, overwrite: bool = False, resume: bool = False, started: float | None = None
    ) -> None:
        """Create the directory and write `config.yaml` and `provenance.json`.

        Args:
            path: The run directory.
            config: The resolved configuration.
            overwrite: Delete what an earlier run left there.
            resume: Continue an interrupted run with the same configuration.
            started: `time.perf_counter()` when the verb began, for the seconds of the report; now if absent.

        Raises:
            CheckpointError: The directory holds something and neither option was given, belongs to no run of ours,
                or was made with another configuration.
        """
        self.path = Path(path)
        self.started = time.perf_counter() if started is None else started
        self.config = config
        text = dump_yaml(config)
        occupied = require_free(self.path, overwrite=overwrite, resume=resume)
        if occupied and overwrite and not resume:
            if not (self.path / MARKER).exists():
                raise CheckpointError(f"{self.path} was not written by rewardproof (no {MARKER}); refusing to delete it.")
            shutil.rmtree(self.path)
        if occupied and resume:
            written = self.path / "config.yaml"
            if not written.exists():
                raise CheckpointError(
                    f"{self.path} was not written by rewardproof (no config.yaml); --resume continues a run. Name another directory."
                )
            if written.read_text() != text:
                raise CheckpointError(
                    f"{self.path}/config.yaml differs from the settings given now; --resume continues a run with the same "
                    "settings. Restore them, or pass --overwrite to start again."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_text("config.yaml", text)
        self.write_json(MARKER, provenance(elapsed=time.perf_counter() - self.started))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file atomically and return its path."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text)
        os.replace(partial, target)
        return target

    def write_json(self, name: str, value: object) -> Path:
        """Write JSON atomically; dataclasses become objects, numbers that are not finite become null."""
        return self.write_text(name, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(plain(record), allow_nan=False) + "\n")

    def finish(self, headline: str, results: Mapping[str, Any]) -> Report:
        """Write `report.json` with the run's seconds and peak memory, and return the report."""
        full = plain(
            {
                "headline": headline,
                **results,
                "seconds": round(time.perf_counter() - self.started, 1),
                "peak_memory_gb": peak_memory_gb(),
            }
        )
        self.write_json("report.json", full)
        return Report(self.path, headline, full)


def plain(value: object) -> Any:
    """Turn dataclasses, tuples, paths and NumPy or torch scalars into JSON values; non-finite floats into `None`."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    return str(value)


def provenance(*, elapsed: float = 0.0) -> dict[str, Any]:
    """The command, commit, versions and machine of this process, which started its work `elapsed` seconds ago."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "rewardproof"), *sys.argv[1:]]),
        "commit": _commit(),
        "versions": versions,
        "machine": {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - elapsed)),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        shown = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.strip()


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)


def require_free(path: Path | str, *, overwrite: bool, resume: bool) -> bool:
    """Refuse a run directory that must not be written, before any work is done; says whether it holds something.

    Raises:
        CheckpointError: It is a file, or it holds something and neither option was given.
    """
    found = Path(path)
    if found.exists() and not found.is_dir():
        raise CheckpointError(f"{found} is a file; expected a directory to write to. Name another one.")
    occupied = found.exists() and any(found.iterdir())
    if occupied and not overwrite and not resume:
        raise CheckpointError(
            f"{found} is not empty; a run never overwrites another. Name a new directory, "
            "or pass --overwrite to delete it, or --resume to continue an interrupted run."
        )
    return occupied


def refuse_inputs_inside(out: Path | str, inputs: Sequence[str]) -> None:
    """Refuse a run directory that holds the run's own inputs, which overwriting would delete.

    Raises:
        CheckpointError: Names the input.
    """
    target = Path(out).resolve()
    for spec in inputs:
        if Path(spec).exists() and Path(spec).resolve().is_relative_to(target):
            raise CheckpointError(
                f"{spec} lies in the output directory {out}, expected it elsewhere: the run owns that directory. Name another."
            )
