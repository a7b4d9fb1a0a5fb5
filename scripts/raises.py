"""List the `raise` statements of the package that no test has reached: `python scripts/raises.py [.coverage]` after a run under coverage.

Every message is part of the product, so each is under test. What cannot be reached on one CPU machine without a network stands in
UNREACHED with its reason; a reason that is no longer needed is an error too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coverage import CoverageData

PACKAGE = Path(__file__).resolve().parent.parent / "rewardproof"
UNREACHED: dict[tuple[str, str], str] = {
    ("models/trunk.py", "AssertionError('the forward pass did not reach"): "our own invariant: every family's layers run in order",
}
"""File and beginning of what is raised (as `ast.unparse` writes it), and why no test reaches it."""


class Raised(NamedTuple):
    """A `raise` statement."""

    file: str
    lines: range
    what: str


def statements(package: Path) -> Iterator[Raised]:
    """Every `raise` of the package."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise):
                what = ast.unparse(node.exc) if node.exc else "what is being handled"
                yield Raised(str(file.relative_to(package)), range(node.lineno, (node.end_lineno or node.lineno) + 1), what)


def reached(data: CoverageData, raised: Raised) -> bool:
    """Whether a test came by."""
    lines = data.lines(str(PACKAGE / raised.file)) or []
    return not set(raised.lines).isdisjoint(lines)


def main(database: str) -> int:
    """Print what is left and say how many."""
    data = CoverageData(database)
    data.read()
    found = list(statements(PACKAGE))
    left = [raised for raised in found if not reached(data, raised)]
    excused = {key: [raised for raised in left if raised.file == key[0] and raised.what.startswith(key[1])] for key in UNREACHED}
    missing = [raised for raised in left if not any(raised in covered for covered in excused.values())]
    stale = [key for key, covered in excused.items() if not covered]
    for raised in missing:
        print(f"rewardproof/{raised.file}:{raised.lines.start}: no test reaches: raise {raised.what[:140]}")
    for file, what in stale:
        print(f"scripts/raises.py: {file}, {what!r} is reached or gone; take it off the list")
    excused_ones = len(left) - len(missing)
    print(f"{len(found)} raise statements, {len(found) - len(left)} reached by tests, {excused_ones} excused, {len(missing)} left")
    return 1 if missing or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ".coverage"))
