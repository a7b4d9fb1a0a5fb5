"""What the tests that kill runs compare: reports apart from their times, and when a file is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Moment = Callable[[Path], Callable[[], bool]]


@dataclass(frozen=True)
class Undisturbed:
    """A run or a file that nobody disturbed: where it lies, the command that made it, and its seconds."""

    path: Path
    command: tuple[str, ...]
    seconds: float


def apart_from(value: Any, times: Collection[str]) -> Any:
    """A JSON value without the named keys, at any depth."""
    if isinstance(value, dict):
        return {key: apart_from(entry, times) for key, entry in value.items() if key not in times}
    return [apart_from(entry, times) for entry in value] if isinstance(value, list) else value


def report(run: Path, times: Collection[str]) -> Any:
    """What a run reports, apart from its times."""
    return apart_from(json.loads((run / "report.json").read_text()), times)


def appears(pattern: str, *, apart_from: str = "") -> Moment:
    """When a file of that name is there, and another that is written after it is not yet."""

    def moment(run: Path) -> Callable[[], bool]:
        def reached() -> bool:
            try:
                return any(not apart_from or not (path.parent / apart_from).exists() for path in run.glob(pattern))
            except FileNotFoundError:  # deleted while it was listed
                return False

        return reached

    return moment
