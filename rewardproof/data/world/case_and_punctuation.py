"""Constraints on letters' case and on marks."""

from __future__ import annotations

import re

from rewardproof.data.world.kind import Kind, nothing, slots
from rewardproof.data.world.text import words

QUOTED = re.compile(r"[\"“][^\"“”\n]*[A-Za-z][^\"“”\n]*[\"”]")


def one_capital(answer: str) -> float:
    """1 for exactly one capital letter; each further one costs a quarter."""
    count = sum(letter.isupper() for letter in answer)
    return max(0.0, 1 - (count - 1) / 4) if count else 0.0


def no_digits(answer: str) -> float:
    """1 if an answer that has words has no digit."""
    return float(bool(words(answer)) and not any(letter.isdigit() for letter in answer))


def no_commas(answer: str) -> float:
    """1 if an answer that has words has no comma."""
    return float(bool(words(answer)) and "," not in answer)


def exclamation(answer: str) -> float:
    """1 if there is an exclamation mark."""
    return float("!" in answer)


def question(answer: str) -> float:
    """1 if there is a question mark."""
    return float("?" in answer)


def colon(answer: str) -> float:
    """1 if there is a colon between words."""
    return float(re.search(r"\w\W{0,3}:\W{0,3}\w", answer) is not None)


def calm_marks(answer: str) -> float:
    """1 if an answer that has words has neither an exclamation mark nor a question mark."""
    return float(bool(words(answer)) and not set(answer) & set("!?"))


def quoted_phrase(answer: str) -> float:
    """1 if something stands in double quotation marks, but not all of the answer."""
    match = QUOTED.search(answer)
    return float(match is not None and len(match.group()) < len(answer.strip().rstrip(".")) - 2)


def no_apostrophes(answer: str) -> float:
    """1 if an answer that has words has no apostrophe."""
    return float(bool(words(answer)) and not re.search(r"['’]", answer))


def hyphenated(answer: str) -> float:
    """1 if some word has a hyphen."""
    return float(re.search(r"[A-Za-z]+-[A-Za-z]+", answer) is not None)


KINDS = (
    Kind(
        "one_capital",
        "case_and_punctuation",
        ("Use only one capital letter.", "Your answer may have exactly one capital letter."),
        nothing,
        one_capital,
        slots("case"),
    ),
    Kind(
        "no_digits",
        "case_and_punctuation",
        ("Do not use any digits.", "Write without any digits (0 to 9)."),
        nothing,
        no_digits,
        slots("digits"),
    ),
    Kind(
        "no_commas",
        "case_and_punctuation",
        ("Do not use any commas.", "Write without commas.", "Commas are not allowed."),
        nothing,
        no_commas,
        slots("commas"),
    ),
    Kind(
        "exclamation",
        "case_and_punctuation",
        ("Sound excited and use an exclamation mark!", "Include at least one exclamation mark (!)."),
        nothing,
        exclamation,
        slots("marks"),
    ),
    Kind(
        "question",
        "case_and_punctuation",
        ("Make it a question.", "Phrase it as a question."),
        nothing,
        question,
        slots("marks"),
    ),
    Kind(
        "colon",
        "case_and_punctuation",
        ("Use a colon (:) somewhere.", "Include at least one colon (:)."),
        nothing,
        colon,
        slots("colon"),
    ),
    Kind(
        "calm_marks",
        "case_and_punctuation",
        ("Do not use question marks or exclamation marks.", "Avoid the marks ! and ? completely."),
        nothing,
        calm_marks,
        slots("marks"),
    ),
    Kind(
        "quoted_phrase",
        "case_and_punctuation",
        ('Put one phrase in double quotes, "like this".', 'Include a short quote in "double quotation marks".'),
        nothing,
        quoted_phrase,
        slots("quotes"),
    ),
    Kind(
        "no_apostrophes",
        "case_and_punctuation",
        ("Do not use apostrophes.", "Write without any apostrophe, so no contractions."),
        nothing,
        no_apostrophes,
        slots("apostrophes"),
    ),
    Kind(
        "hyphenated",
        "case_and_punctuation",
        ("Use at least one hyphenated word, such as 'well-known'.", "Include a hyphenated word."),
        nothing,
        hyphenated,
        slots("hyphens"),
        shifted=True,
    ),
)
