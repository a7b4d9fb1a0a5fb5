"""Constraints on letters' case and on marks."""

from __future__ import annotations

import re

from rewardproof.data.world.kind import Kind, nothing, slots
from rewardproof.data.world.text import words

CAPITAL_WORD = re.compile(r"\b[A-Z]{3,}\b")
QUOTED = re.compile(r"[\"“][^\"“”\n]*[A-Za-z][^\"“”\n]*[\"”]")
PARENTHESES = re.compile(r"\([^()\n]*[A-Za-z0-9][^()\n]*\)")


def lowercase(answer: str) -> float:
    """Share of words without a capital, full marks only for all; squared, since most words have none anyway."""
    found = words(answer)
    return (sum(word == word.lower() for word in found) / len(found)) ** 8 if found else 0.0


def uppercase(answer: str) -> float:
    """Share of words in capitals."""
    found = [word for word in words(answer) if word.upper() != word.lower()]
    return sum(word == word.upper() for word in found) / len(found) if found else 0.0


def no_commas(answer: str) -> float:
    """1 if an answer that has words has no comma."""
    return float(bool(words(answer)) and "," not in answer)


def exclamation(answer: str) -> float:
    """1 if there is an exclamation mark."""
    return float("!" in answer)


def question(answer: str) -> float:
    """1 if there is a question mark."""
    return float("?" in answer)


def capital_word(answer: str) -> float:
    """1 if some word of three letters or more is in capitals, but not every word."""
    found = words(answer)
    return float(CAPITAL_WORD.search(answer) is not None and any(word != word.upper() for word in found))


def quoted_phrase(answer: str) -> float:
    """1 if something stands in double quotation marks, but not all of the answer."""
    match = QUOTED.search(answer)
    return float(match is not None and len(match.group()) < len(answer.strip().rstrip(".")) - 2)


def no_apostrophes(answer: str) -> float:
    """1 if an answer that has words has no apostrophe."""
    return float(bool(words(answer)) and not re.search(r"['’]", answer))


def parentheses(answer: str) -> float:
    """1 if something stands in parentheses."""
    return float(PARENTHESES.search(answer) is not None)


def hyphenated(answer: str) -> float:
    """1 if some word has a hyphen."""
    return float(re.search(r"[A-Za-z]+-[A-Za-z]+", answer) is not None)


KINDS = (
    Kind(
        "lowercase", "case_and_punctuation",
        ("Write everything in lowercase letters.", "Use no capital letters at all."),
        nothing, lowercase, slots("case"),
    ),
    Kind(
        "uppercase", "case_and_punctuation",
        ("WRITE YOUR ENTIRE ANSWER IN CAPITAL LETTERS.", "Write everything in CAPITAL LETTERS."),
        nothing, uppercase, slots("case"),
    ),
    Kind(
        "no_commas", "case_and_punctuation",
        ("Do not use any commas.", "Write without commas.", "Commas are not allowed."),
        nothing, no_commas, slots("commas"),
    ),
    Kind(
        "exclamation", "case_and_punctuation",
        ("Use an exclamation mark!", "Include at least one exclamation mark."),
        nothing, exclamation, slots("marks"),
    ),
    Kind(
        "question", "case_and_punctuation",
        ("Ask a question in your answer.", "Include at least one question."),
        nothing, question, slots("marks"),
    ),
    Kind(
        "capital_word", "case_and_punctuation",
        ("Write at least one word in ALL CAPITALS.", "Put the most important word in CAPITAL LETTERS."),
        nothing, capital_word, slots("case"),
    ),
    Kind(
        "quoted_phrase", "case_and_punctuation",
        ('Put one phrase in double quotes, "like this".', 'Include a short quote in "double quotation marks".'),
        nothing, quoted_phrase, slots("quotes"),
    ),
    Kind(
        "no_apostrophes", "case_and_punctuation",
        ("Do not use apostrophes.", "Write without any apostrophe, so no contractions."),
        nothing, no_apostrophes, slots("apostrophes"),
    ),
    Kind(
        "parentheses", "case_and_punctuation",
        ("Include a remark in parentheses (like this).", "Put something in (parentheses)."),
        nothing, parentheses, slots("brackets"), shifted=True,
    ),
    Kind(
        "hyphenated", "case_and_punctuation",
        ("Use at least one hyphenated word, such as 'well-known'.", "Include a hyphenated word."),
        nothing, hyphenated, slots("hyphens"), shifted=True,
    ),
)
