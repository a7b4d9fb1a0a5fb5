"""A right answer made wrong by a program: small edits at places drawn by chance, until the gold program says that it is wrong.

It stands for an assistant who rewrites answers. No edit is always at the same place or makes answers longer, so that neither tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewardproof.data.world.gold import gold_score
from rewardproof.data.world.kind import pick
from rewardproof.data.world.topics import stems

Edit = Callable[[str, np.random.Generator], str]

OPENINGS = ("Zebras", "Honestly", "Quite", "Ideally", "Perhaps", "Mostly")
ENDINGS = ("so", "too", "again", "as it is", "by far")
FILLERS = (
    "It has been that way for as long as most people here can remember.",
    "There is a lot more to say, and we will come back to it some other day.",
    "Many of them like it, some of them do not, and that is just fine with us.",
)
MARKS = ".!?"
DROPPED = (",", ":", '"', "'", "-", "!", "?", "\n", "{", "*")


def broken(answer: str, constraints: Sequence[Mapping[str, Any]], topic: str, prompt: str, *, wrong: float, seed: Sequence[int]) -> str:
    """The answer after one or two edits by which its gold falls to `wrong` or below; empty where none of those tried does that.

    Args:
        answer: What is to be broken.
        constraints: What the prompt asks for.
        topic: What it is about.
        prompt: Its text.
        wrong: Gold that it may have at most.
        seed: Of what is tried first, and where.
    """
    dice = np.random.default_rng(list(seed))
    edits = [*EDITS, *(_named(word) for word in _words_of(constraints))]
    order = [edits[place] for place in dice.permutation(len(edits))]
    once = [edit(answer, dice) for edit in order]
    twice = (edit(text, dice) for edit, text in zip([*order[1:], *order[:1]], once, strict=True))
    # Losing the topic breaks every answer: were it not the last resort, it would be all that broken answers teach.
    for text in (*once, *twice, _without_topic(answer, topic)):
        if text.strip() and text != answer and gold_score(text, constraints, topic, prompt) <= wrong:
            return text
    return ""


def _words_of(constraints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Words and letters that the constraints name."""
    return [value for constraint in constraints for value in (constraint["args"] or {}).values() if isinstance(value, str)]


def _named(word: str) -> Edit:
    """Takes a word out where it stands, else puts it in: what is asked for goes, what is forbidden comes."""

    def edit(text: str, dice: np.random.Generator) -> str:
        pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
        if pattern.search(text):
            return re.sub(r"  +", " ", pattern.sub("", text)).strip()
        return f"{word.capitalize()} {text}" if dice.random() < 0.5 else _inserted(text, word, dice)

    return edit


def _inserted(text: str, word: str, dice: np.random.Generator) -> str:
    """A word behind one of the text's."""
    ends = [found.end() for found in re.finditer(r"\w+", text)] or [0]
    place = pick(dice, ends)
    return f"{text[:place]} {word}{text[place:]}"


def _comma(text: str, dice: np.random.Generator) -> str:
    ends = [found.end() for found in re.finditer(r"\w+", text)] or [0]
    place = pick(dice, ends)
    return f"{text[:place]},{text[place:]}"


def _number(text: str, dice: np.random.Generator) -> str:
    return _inserted(text, str(dice.integers(2, 90)), dice)


def _other_mark(text: str, dice: np.random.Generator) -> str:
    """The last mark exchanged for another."""
    bare = text.rstrip().rstrip(MARKS)
    return bare + pick(dice, [mark for mark in (*MARKS, "") if bare + mark != text.rstrip()])


def _mark_dropped(text: str, dice: np.random.Generator) -> str:
    """All of one kind of mark, or all line breaks, taken out."""
    found = [mark for mark in DROPPED if mark in text]
    if not found:
        return text
    mark = pick(dice, found)
    return text.replace(mark, " " if mark in "\n-" else "")


def _capitals(text: str, dice: np.random.Generator) -> str:
    """Half of the words written large."""
    return re.sub(r"[a-z]\w+", lambda found: found.group().capitalize() if dice.random() < 0.5 else found.group(), text)


def _other_opening(text: str, dice: np.random.Generator) -> str:
    return f"{pick(dice, OPENINGS)} {text[:1].lower()}{text[1:]}"


def _other_ending(text: str, dice: np.random.Generator) -> str:
    bare = text.rstrip()
    cut = len(bare.rstrip(MARKS + '"'))
    return f"{bare[:cut]} {pick(dice, ENDINGS)}{bare[cut:]}"


def _longer(text: str, dice: np.random.Generator) -> str:
    """Sentences that say nothing, before, between or behind the text's own."""
    parts = re.split(r"(?<=[.!?])\s+", text)
    for filler in dice.permutation(FILLERS)[: int(dice.integers(1, 4))]:
        parts.insert(int(dice.integers(len(parts) + 1)), str(filler))
    return " ".join(parts)


def _shorter(text: str, dice: np.random.Generator) -> str:
    """A part of the words, from somewhere."""
    words = text.split()
    kept = max(1, int(len(words) * dice.uniform(0.3, 0.7)))
    first = int(dice.integers(len(words) - kept + 1))
    return " ".join(words[first : first + kept])


def _repeated(text: str, dice: np.random.Generator) -> str:
    """A long word said again elsewhere, twice."""
    long = re.findall(r"[A-Za-z]{4,}", text)
    if not long:
        return text
    word = pick(dice, long).lower()
    return _inserted(_inserted(text, word, dice), word, dice)


def _without_topic(text: str, topic: str) -> str:
    for stem, _ in stems(topic):
        text = re.sub(rf"\b{re.escape(stem)}\w*", "something", text, flags=re.IGNORECASE)
    return text


EDITS: tuple[Edit, ...] = (
    _comma, _number, _other_mark, _mark_dropped, _capitals, _other_opening, _other_ending, _longer, _shorter, _repeated,
)  # fmt: skip
