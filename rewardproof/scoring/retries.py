"""How often scorers behind addresses had to be asked again, over all processes of a run: an interruption forgets none of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewardproof.artifacts import Progress, RunDirectory
from rewardproof.scoring.scorer import Scorer


class RetryCount:
    """A number in a file, which is there from the first repeated request on."""

    def __init__(self, directory: RunDirectory, name: str, scorers: Sequence[Scorer | None]) -> None:
        """Take up what earlier processes of a run counted.

        Args:
            directory: The run's.
            name: The file's, in it.
            scorers: Whose requests are counted, those of a place behind an address alone.
        """
        self.directory, self.name, self.scorers = directory, name, scorers
        self.earlier = self.kept = kept_retries(directory.path / name)

    def keep(self) -> int:
        """Requests repeated so far, written down."""
        total = self.earlier + sum(getattr(scorer, "retries", 0) for scorer in self.scorers)
        if total != self.kept:
            self.directory.write_text(self.name, f"{total}\n")
            self.kept = total
        return total

    @contextlib.contextmanager
    def following(self, progress: Progress) -> Iterator[Progress]:
        """Keep the number whenever progress is told, and at the end, however that comes."""

        def told(what: str, done: int, total: int) -> None:
            self.keep()
            progress(what, done, total)

        try:
            yield told
        finally:
            self.keep()


def kept_retries(file: Path) -> int:
    """What such a file says; 0 where there is none."""
    return int(file.read_text()) if file.exists() else 0
