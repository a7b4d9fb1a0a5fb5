"""Constraints on how an answer begins and ends."""

from __future__ import annotations

from rewardproof.data.world.kind import Kind, nothing, pick, slots
from rewardproof.data.world.text import last_character, lower_words

OPENINGS = ("Imagine", "Today", "When", "Every", "Many", "Sometimes", "My", "Perhaps", "People", "Nothing")
LETTERS = ("T", "A", "I", "S", "W", "M", "B")


def start_with(answer: str, word: str) -> float:
    """1 if the first word is this one, in any case."""
    found = lower_words(answer)
    return float(bool(found) and found[0] == word.lower())


def end_long_word(answer: str, n: int) -> float:
    """1 if the last word has at least n letters."""
    found = lower_words(answer)
    return float(bool(found) and len(found[-1]) >= n)


def start_letter(answer: str, letter: str) -> float:
    """1 if the first word begins with this letter, in any case."""
    found = lower_words(answer)
    return float(bool(found) and found[0][0] == letter.lower())


def end_mark(answer: str, mark: str) -> float:
    """1 if the last mark is this one, closing quotes and brackets aside."""
    return float(bool(lower_words(answer)) and last_character(answer) == mark)


def avoid_start(answer: str, first: str, second: str) -> float:
    """1 if the first word is neither of the two."""
    found = lower_words(answer)
    return float(bool(found) and found[0] not in (first.lower(), second.lower()))


def end_letter(answer: str, letter: str) -> float:
    """1 if the last word ends with this letter, in any case."""
    found = lower_words(answer)
    return float(bool(found) and found[-1][-1] == letter.lower())


def start_vowel(answer: str) -> float:
    """1 if the first word begins with a vowel."""
    found = lower_words(answer)
    return float(bool(found) and found[0][0] in "aeiou")


KINDS = (
    Kind(
        "start_with",
        "opening_and_closing",
        ("Start with the word '{word}'.", "The first word must be '{word}'.", "Begin your answer with '{word}'."),
        lambda generator, topic: {"word": pick(generator, OPENINGS)},
        start_with,
        slots("start"),
    ),
    Kind(
        "end_long_word",
        "opening_and_closing",
        ("The last word must have at least {n} letters.", "End with a word of {n} or more letters."),
        lambda generator, topic: {"n": pick(generator, (6, 7, 8))},
        end_long_word,
        slots("last"),
    ),
    Kind(
        "start_letter",
        "opening_and_closing",
        ("Start with the letter '{letter}'.", "The first letter of your answer must be '{letter}'."),
        lambda generator, topic: {"letter": pick(generator, LETTERS)},
        start_letter,
        slots("start"),
    ),
    Kind(
        "end_mark",
        "opening_and_closing",
        ("End your answer with this mark: {mark}", "The last character of your answer must be {mark}"),
        lambda generator, topic: {"mark": pick(generator, ".!!??")},
        end_mark,
        slots("end marks"),
    ),
    Kind(
        "avoid_start",
        "opening_and_closing",
        ("Do not start with '{first}' or '{second}'.", "The first word must not be '{first}' or '{second}'."),
        lambda generator, topic: dict(zip(("first", "second"), pick(generator, (("The", "A"), ("The", "In"), ("The", "It"))), strict=True)),
        avoid_start,
        slots("start"),
    ),
    Kind(
        "end_letter",
        "opening_and_closing",
        ("The last letter of your answer must be '{letter}'.", "End with a word whose last letter is '{letter}'."),
        lambda generator, topic: {"letter": pick(generator, "sedtyn")},
        end_letter,
        slots("last"),
    ),
    Kind(
        "start_vowel",
        "opening_and_closing",
        ("Begin with a vowel.", "The first letter must be a vowel (a, e, i, o or u)."),
        nothing,
        start_vowel,
        slots("start"),
        shifted=True,
    ),
)
