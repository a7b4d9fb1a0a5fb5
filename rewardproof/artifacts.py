"""Run directories: what a verb leaves behind, and the rules for creating, resuming and overwriting them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rewardproof.config import Section, dump_yaml
from rewardproof.errors import CheckpointError, StorageError

PACKAGES = ("rewardproof", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "scipy")
MARKER = "provenance.json"
LOG = "log.jsonl"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_IN_WORDS = re.compile(r"os error (?:27|28|122)\b|No space left|File too large|PytorchStreamWriter failed|unexpected pos \d")
Progress = Callable[[str, int, int], None]
"""Receives what is being done, how far, and of how much; 0 for an unknown total."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of a caller who wants to see none."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk is full; safetensors and torch say so in words alone."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def writing(target: Path | str, *, discard: Path | None = None, advice: str = "Free some space there") -> Iterator[None]:
    """Turn a full disk, however a library reports it, into one error.

    Args:
        target: What is being written, for the message.
        discard: File or directory to delete where writing fails: half of it would stand as a whole, or keep the disk full.
        advice: What to do, without a full stop.

    Raises:
        StorageError: The disk is full, or a limit on the size of files is reached.
    """
    try:
        yield
    except BaseException as error:
        if discard is not None:
            shutil.rmtree(discard, ignore_errors=True) if discard.is_dir() else discard.unlink(missing_ok=True)
        if isinstance(error, StorageError) or not isinstance(error, Exception) or not is_full(error):
            raise
        raise StorageError(
            f"Could not write {target}: its disk is full, or a limit on the size of files is reached ({_free_gb(Path(target))} GB free); "
            f"expected room for it. What was finished before is kept. {advice}"
        ) from error


def write_whole(target: Path, text: str) -> Path:
    """Write a text file that is there whole or not at all, and return its path.

    Raises:
        StorageError: The disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with writing(target, discard=partial):
        partial.write_text(text)
    os.replace(partial, target)
    return target


def _free_gb(path: Path) -> float:
    place = next(folder for folder in path.absolute().parents if folder.exists())
    return round(shutil.disk_usage(place).free / 1e9, 2)


def is_main() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that a launcher started."""
    return process_number() == 0


def process_number() -> int:
    """Which of the launcher's processes this is, counted from 0."""
    return 0 if n_processes() == 1 else int(os.environ.get("RANK", "0"))


def n_processes() -> int:
    """How many processes a launcher (torchrun, accelerate) has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, slots=True)
class Report:
    """What a verb returns: where its files lie and the one number to remember.

    Attributes:
        path: The run directory (or file) that was written.
        headline: One sentence with the headline number and its 95 % interval.
        results: The content of `report.json`.
        missed: Limits set by the user that the run misses, a sentence each; the command then exits with 3.
    """

    path: Path
    headline: str
    results: Mapping[str, Any]
    missed: tuple[str, ...] = ()


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
        begun = provenance(elapsed=time.perf_counter() - self.started)
        if occupied and overwrite and not resume:
            if not (self.path / MARKER).exists():
                raise CheckpointError(f"{self.path} was not written by rewardproof (no {MARKER}); refusing to delete it.")
            _delete_run(self.path)
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
        self.write_json(MARKER, begun)
        self._earlier = self._take_up_log() if occupied and resume else []
        self._logged: list[dict[str, Any]] = []

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file atomically and return its path."""
        return write_whole(self.path / name, text)

    def write_json(self, name: str, value: object) -> Path:
        """Write JSON atomically; dataclasses become objects, numbers that are not finite become null."""
        return self.write_text(name, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to `log.jsonl`; what an interrupted run logged of a step that is done again gives way to it."""
        entry = plain(record)
        repeated = [line for line in self._earlier if _kind(line) == _kind(entry) and line.get("step", 0) >= entry.get("step", 0)]
        if repeated and "loss" not in entry and "eval_loss" not in entry:
            return  # said by the interrupted run: the rows read, the seconds of a training that was finished
        if repeated:
            self._rewrite_log([line for line in self._earlier if line not in repeated])
        if self._earlier:
            self._logged.append(entry)
        with writing(self.path / LOG), (self.path / LOG).open("a") as stream:
            stream.write(_as_line(entry))

    def forget_beyond(self, step: int) -> None:
        """Drop what an interrupted run logged of later steps, whatever its phase: all of it is done again."""
        if any(line.get("step", -1) > step for line in self._earlier):
            self._rewrite_log([line for line in self._earlier if line.get("step", -1) <= step])

    def _rewrite_log(self, earlier: list[dict[str, Any]]) -> None:
        self._earlier = earlier
        self.write_text(LOG, "".join(map(_as_line, self._earlier + self._logged)))

    def _take_up_log(self) -> list[dict[str, Any]]:
        """What an interrupted run logged; a last line that was cut off is dropped from the file."""
        file = self.path / LOG
        found: list[dict[str, Any]] = []
        for line in file.read_text().splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        if found:
            self.write_text(LOG, "".join(map(_as_line, found)))
        return found

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


def _as_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _kind(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a record of the log is about, apart from the step."""
    return record.get("phase"), record.get("seed"), record.get("states"), "loss" in record, "eval_loss" in record


def _delete_run(path: Path) -> None:
    """Delete a run, the file by which it is known last: an interrupted deletion can be done again."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == MARKER):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


class FollowedRun(RunDirectory):
    """A run directory as the processes see it that do not write: everything is the same, and nothing reaches the disk."""

    def __init__(self, path: Path | str, config: Section, *, started: float) -> None:
        """Name the directory that the main process has made."""
        self.path = Path(path)
        self.started = started
        self.config = config

    def write_text(self, name: str, text: str) -> Path:
        """The path where the main process writes the text."""
        return self.path / name

    def log(self, record: Mapping[str, Any]) -> None:
        """The main process logs."""

    def forget_beyond(self, step: int) -> None:
        """The main process keeps the log."""


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
        "machine": {"platform": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - elapsed)),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        shown = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.strip()


def processor() -> str:
    """The processor's name, as it gives it itself."""
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
    require_writable(found)
    occupied = found.exists() and any(entry.name != "config.yaml.partial" for entry in found.iterdir())
    if occupied and not overwrite and not resume:
        raise CheckpointError(
            f"{found} is not empty; a run never overwrites another. Name a new directory, "
            "or pass --overwrite to delete it, or --resume to continue an interrupted run."
        )
    return occupied


def finished_report(path: Path | str, config: Section) -> Report | None:
    """The report of a run that came to its end with these settings; nothing where it was interrupted, or ran with others."""
    run = Path(path)
    if not all((run / name).is_file() for name in ("config.yaml", "report.json", "report.html")):
        return None
    if (run / "config.yaml").read_text() != dump_yaml(config):
        return None
    results = json.loads((run / "report.json").read_text())
    return Report(run, results["headline"], results)


def require_writable(path: Path | str) -> None:
    """Refuse a place where nothing can be made, before any work is done.

    Raises:
        CheckpointError: What would hold it is a file, or must not be written.
    """
    holder = next(folder for folder in Path(path).absolute().parents if os.path.lexists(folder))
    if not holder.is_dir():
        raise CheckpointError(f"Cannot write {path}: {holder} is a file, expected a directory to hold it. Name another place.")
    if not os.access(holder, os.W_OK | os.X_OK):
        raise CheckpointError(f"Cannot write {path}: {holder} must not be written, expected a directory that may. Name another place.")


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
