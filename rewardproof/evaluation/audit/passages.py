"""An answer as the audit changes it: what is prose and what is code, where sentences end, and text that says nothing."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
WORD = re.compile(r"\w+(?:['’-]\w+)*")
LISTED = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+", re.MULTILINE)
_BOUNDARY = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")

NEUTRAL = (
    "There is more that could be said about this.",
    "The points above can be looked at in several ways.",
    "Each of them has its own place in the whole.",
    "Some of this may be seen in one way or in another.",
    "What has been said here belongs to what was asked.",
    "It is also the case that other things are related to it.",
    "All of this can be taken together with the rest.",
    "The matter as a whole has more than one side.",
)
"""Sentences that say nothing: what length alone is made of."""


class Passage(NamedTuple):
    """What a perturbation reads: an answer, its prompt, and an answer that was given to another prompt (empty where there is none)."""

    answer: str
    prompt: str = ""
    other: str = ""


Change = Callable[[Passage, random.Random], str | None]
"""An answer's changed form, or nothing where the change does not apply; its choices are the dice's."""


def outside(text: str, kept: re.Pattern[str], change: Callable[[str], str]) -> str:
    """The text with everything changed but what a pattern finds.

    Example:
        >>> outside("run `ls` now", CODE, str.upper)
        'RUN `ls` NOW'
    """
    pieces: list[str] = []
    start = 0
    for found in kept.finditer(text):
        pieces += [change(text[start : found.start()]), found.group()]
        start = found.end()
    return "".join([*pieces, change(text[start:])])


def sentences(text: str) -> list[str]:
    """Sentences and lines, each with the whitespace that follows it; joined they are the text.

    Example:
        >>> sentences("One. Two!  Three")
        ['One. ', 'Two!  ', 'Three']
    """
    ends = [found.end() for found in _BOUNDARY.finditer(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def parted(piece: str) -> tuple[str, str]:
    """A piece without the whitespace at its end, and that whitespace.

    Example:
        >>> parted("One. ")
        ('One.', ' ')
    """
    bare = piece.rstrip()
    return bare, piece[len(bare) :]


def said(text: str) -> list[str]:
    """The sentences outside fenced code that hold at least one word, without whitespace around them."""
    return [piece.strip() for part in FENCED.split(text) for piece in sentences(part) if WORD.search(piece)]


def neutral_words() -> Iterator[str]:
    """The words of the neutral sentences, for ever."""
    while True:
        for sentence in NEUTRAL:
            yield from sentence.split()


def resized(text: str, size: int, measure: Callable[[str], int]) -> str:
    """An answer at another length: with neutral text after it, or cut after a word, so that it measures as nearly as can be what is asked.

    Args:
        text: The answer.
        size: What is asked, 1 or more.
        measure: A text's size: its tokens, or its words.

    Returns:
        At least its first word.

    Example:
        >>> words = lambda text: len(text.split())
        >>> resized("Tea is warm.", 5, words), resized("Tea is warm.", 2, words)
        ('Tea is warm. There is.', 'Tea is')
    """
    missing = size - measure(text)
    if missing > 0:
        return f"{text} {neutral_text(missing, measure)}"
    if missing == 0:
        return text
    ends = [found.end() for found in WORD.finditer(text)] or [len(text)]
    after = bisect_left(ends, size, key=lambda end: measure(text[:end]))
    return text[: min(ends[max(after - 1, 0) : after + 1], key=lambda end: abs(measure(text[:end]) - size))]


def neutral_text(size: int, measure: Callable[[str], int]) -> str:
    """Neutral words that measure as nearly as can be what is asked, ended by a full stop.

    Args:
        size: What is asked, 1 or more.
        measure: A text's size: its tokens, or its words.

    Example:
        >>> neutral_text(4, lambda text: len(text.split()))
        'There is more that.'
    """
    source = neutral_words()
    words: list[str] = []
    reached = best = ""
    while not words or measure(reached) < size:
        words.append(next(source))
        best, reached = reached, " ".join(words).rstrip(".") + "."
    return reached if not best or measure(reached) - size <= size - measure(best) else best
