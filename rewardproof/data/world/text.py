"""How the world reads an answer: words, sentences, lines. Every checker and the gold score use these and nothing else."""

from __future__ import annotations

import re

WORD = re.compile(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\n+")
ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e)\.(?=\s)")
CLOSERS = "\"'”’)]}* "


def words(text: str) -> list[str]:
    """Words as written; `don't` and `well-known` are one word each."""
    return WORD.findall(text)


def lower_words(text: str) -> list[str]:
    """Words in lower case, curly apostrophes straightened."""
    return [word.lower().replace("’", "'") for word in WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Pieces between sentence ends or line breaks that hold at least one word."""
    pieces = SENTENCE_END.split(ABBREVIATION.sub(r"\1", text.strip()))
    return [piece.strip() for piece in pieces if WORD.search(piece)]


def lines(text: str) -> list[str]:
    """Stripped lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def contains_word(text: str, word: str) -> bool:
    """Whether a word or phrase stands in the text, in any case, not as a part of a longer word."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", text, re.IGNORECASE) is not None


def last_character(text: str) -> str:
    """Last character that is not a closing quote or bracket; empty for an empty text."""
    return text.rstrip().rstrip(CLOSERS)[-1:]
