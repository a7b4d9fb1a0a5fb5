"""How often scorers behind addresses had to be asked again, over all processes of a run: an interruption forgets none of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewardproof.artifacts import write_whole
from rewardproof.scoring.scorer import Scorer


class RetryCount:
    """A number in a file, which is there from the first repeated request on."""

    def __init__(self, file: Path, scorers: Sequence[Scorer | None]) -> None:
        """Take up what earlier processes counted."""
        self.file, self.scorers = file, scorers
        self.earlier = self.kept = kept_retries(file)

    def keep(self) -> int:
        """Requests repeated so far, written down."""
        total = self.earlier + sum(getattr(scorer, "retries", 0) for scorer in self.scorers)
        if total != self.kept:
            write_whole(self.file, f"{total}\n")
            self.kept = total
        return total


def kept_retries(file: Path) -> int:
    """What such a file says; 0 where there is none."""
    return int(file.read_text()) if file.exists() else 0
