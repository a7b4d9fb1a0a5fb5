"""Tables of numbers as lines of text, so that a row of results stays a few kilobytes that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardproof.statistics.checks import FloatArray

KEY = 12
"""Characters of a prompt's key that are kept: enough to tell prompts apart."""


def as_text(table: FloatArray) -> list[str]:
    """One line a row, five digits a number; a list of numbers is a column.

    Example:
        >>> as_text(np.array([[0.5, 1 / 3], [2.0, 10.0]]))
        ['0.5 0.33333', '2 10']
    """
    rows = table[:, None] if table.ndim == 1 else table
    return [" ".join(f"{value:.5g}" for value in row) for row in rows]


def of_text(lines: Sequence[str]) -> FloatArray:
    """The table that `as_text` wrote, always two-dimensional."""
    return np.array([[float(word) for word in line.split()] for line in lines])
