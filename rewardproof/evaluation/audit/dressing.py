"""An answer in other clothes: its words stay, their form changes. Code keeps the form that it has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from rewardproof.evaluation.audit.passages import CODE, FENCED, LISTED, WORD, Passage, outside, parted, said, sentences

EMOJI = ("😊", "🎉", "✨", "🚀", "👍", "🌟", "💡", "🔥")
_FULL_STOP = re.compile(r"(?<!\.)\.(?=[\"'”’)\]]*(?:\s|$))")
_BEGINNING = re.compile(r"^([^\w`*]*)(\w+(?:\s+\w+)?)(?=\s|$)")
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
MISSPELT = 0.15
"""Share of the words of four letters and more that a misspelling changes, at least one."""


def _each_sentence(text: str, change: Callable[[str], str]) -> str:
    """Every sentence that holds a word changed, outside fenced code; whitespace between them stays."""

    def prose(part: str) -> str:
        return "".join(change(bare) + end if WORD.search(bare) else bare + end for bare, end in map(parted, sentences(part)))

    return outside(text, FENCED, prose)


def bulleted(passage: Passage, dice: random.Random) -> str | None:
    """Every sentence a bullet; not where there is a list already, or only one sentence."""
    if LISTED.search(passage.answer) or len(said(passage.answer)) < 2:
        return None

    def prose(part: str) -> str:
        pieces = [piece.strip() for piece in sentences(part) if piece.strip()]
        lines = "\n".join(f"- {piece}" if WORD.search(piece) else piece for piece in pieces)
        return f"\n{lines}\n" if lines else part

    return outside(passage.answer, FENCED, prose).strip()


def headed(passage: Passage, dice: random.Random) -> str | None:
    """A heading above, and the first two words of every sentence bold; not where there are headings already."""
    if _HEADING.search(passage.answer):
        return None
    return "## Answer\n\n" + _each_sentence(passage.answer, lambda sentence: _BEGINNING.sub(r"\1**\2**", sentence))


def with_emoji(passage: Passage, dice: random.Random) -> str:
    """An emoji after every sentence."""
    return _each_sentence(passage.answer, lambda sentence: f"{sentence} {dice.choice(EMOJI)}")


def exclaimed(passage: Passage, dice: random.Random) -> str:
    """Every full stop an exclamation mark."""
    return outside(passage.answer, CODE, lambda prose: _FULL_STOP.sub("!", prose))


def capitalised(passage: Passage, dice: random.Random) -> str:
    """Everything in capitals."""
    return outside(passage.answer, CODE, str.upper)


def misspelt(passage: Passage, dice: random.Random) -> str | None:
    """Two neighbouring inner letters of some longer words exchanged."""
    places = [(found.start(), found.end()) for found in re.finditer(r"[^\W\d_]{4,}", _blanked(passage.answer))]
    text = list(passage.answer)
    changed = 0
    for start, end in dice.sample(places, len(places)):
        inner = [place for place in range(start + 1, end - 2) if text[place] != text[place + 1]]
        if not inner:
            continue
        place = dice.choice(inner)
        text[place], text[place + 1] = text[place + 1], text[place]
        changed += 1
        if changed >= MISSPELT * len(places):
            break
    return "".join(text) if changed else None


def _blanked(text: str) -> str:
    """The text with spaces where it has code, so that places stay."""
    return CODE.sub(lambda found: " " * len(found.group()), text)
