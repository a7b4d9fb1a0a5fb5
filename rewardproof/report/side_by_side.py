"""Two forms of a text beside each other, what is in one alone marked; plain inline HTML, no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import NamedTuple

LEAST = 0.5
"""Share of the shorter text that has to be in the other too for the two to be compared; else all of both is marked."""
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")


class Stretch(NamedTuple):
    """A stretch of text, and whether the other form lacks it."""

    text: str
    own: bool


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two forms of a text.

    Attributes:
        caption: What was done to what.
        left: The first form.
        right: The second.
        left_label: A line under the first: its reward.
        right_label: A line under the second.
    """

    caption: str
    left: tuple[Stretch, ...]
    right: tuple[Stretch, ...]
    left_label: str
    right_label: str


def side_by_side(caption: str, left: str, right: str, *, labels: tuple[str, str]) -> SideBySide:
    """Compare two forms of a text word by word.

    Example:
        >>> found = side_by_side("added", "It is.", "It is not.", labels=("+0.1", "+0.9"))
        >>> [stretch.text for stretch in found.right if stretch.own], [stretch.text for stretch in found.left]
        ([' not'], ['It is.'])
    """
    one, other = _PIECE.findall(left), _PIECE.findall(right)
    *matches, end = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    # White space that happens to stand in both holds nothing together, nor do the few words that any two texts share.
    matches = [match for match in matches if not "".join(one[match.a : match.a + match.size]).isspace()]
    if sum(match.size for match in matches) < LEAST * min(len(one), len(other)):
        matches = []
    places = [(match.a, match.b, match.size) for match in (*matches, end)]
    return SideBySide(
        caption,
        _stretches(one, [(start, start + size) for start, _, size in places]),
        _stretches(other, [(start, start + size) for _, start, size in places]),
        *labels,
    )


def _stretches(pieces: Sequence[str], shared: Sequence[tuple[int, int]]) -> tuple[Stretch, ...]:
    """Pieces joined while they are all shared, or all own; `shared` ends with an empty range at the end."""
    found: list[Stretch] = []
    for (_, before), (start, end) in pairwise([(0, 0), *shared]):
        for text, own in (("".join(pieces[before:start]), True), ("".join(pieces[start:end]), False)):
            if not text:
                continue
            if found and found[-1].own == own:
                found[-1] = Stretch(found[-1].text + text, own)
            else:
                found.append(Stretch(text, own))
    return tuple(found)
