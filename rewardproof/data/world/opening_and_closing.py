"""Constraints on how an answer begins and ends."""

from __future__ import annotations

from rewardproof.data.world.kind import Kind, nothing, pick, slots
from rewardproof.data.world.text import last_character, lower_words

OPENINGS = ("Imagine", "Today", "When", "Every", "Many", "Sometimes", "My", "Perhaps", "People", "Nothing")
CLOSINGS = ("Thank you.", "Good luck.", "See you soon.", "Enjoy today.", "Have fun.")
LETTERS = ("T", "A", "I", "S", "W", "M", "B")
MARK_NAMES = {".": "full stop", "!": "exclamation mark", "?": "question mark"}


def start_with(answer: str, word: str) -> float:
    """1 if the first word is this one, in any case."""
    found = lower_words(answer)
    return float(bool(found) and found[0] == word.lower())


def end_with(answer: str, phrase: str) -> float:
    """1 if the last words are these, in any case, and something stands before them."""
    found, wanted = lower_words(answer), lower_words(phrase)
    return float(len(found) > len(wanted) and found[-len(wanted) :] == wanted)


def start_letter(answer: str, letter: str) -> float:
    """1 if the first word begins with this letter, in any case."""
    found = lower_words(answer)
    return float(bool(found) and found[0][0] == letter.lower())


def end_mark(answer: str, mark: str, name: str) -> float:
    """1 if the last mark is this one, closing quotes and brackets aside."""
    return float(bool(lower_words(answer)) and last_character(answer) == mark)


def avoid_start(answer: str, first: str, second: str) -> float:
    """1 if the first word is neither of the two."""
    found = lower_words(answer)
    return float(bool(found) and found[0] not in (first.lower(), second.lower()))


def whole_quote(answer: str) -> float:
    """1 if the whole answer stands in double quotation marks."""
    text = answer.strip()
    return float(len(lower_words(text)) > 0 and text[:1] in "\"“" and text[-1:] in "\"”")


def start_vowel(answer: str) -> float:
    """1 if the first word begins with a vowel."""
    found = lower_words(answer)
    return float(bool(found) and found[0][0] in "aeiou")


KINDS = (
    Kind(
        "start_with", "opening_and_closing",
        ("Start with the word '{word}'.", "The first word must be '{word}'.", "Begin your answer with '{word}'."),
        lambda generator, topic: {"word": pick(generator, OPENINGS)}, start_with, slots("start"),
    ),
    Kind(
        "end_with", "opening_and_closing",
        ("End with the words '{phrase}'", "Your last words must be '{phrase}'"),
        lambda generator, topic: {"phrase": pick(generator, CLOSINGS)}, end_with, slots("end items"),
    ),
    Kind(
        "start_letter", "opening_and_closing",
        ("Start with the letter '{letter}'.", "The first letter of your answer must be '{letter}'."),
        lambda generator, topic: {"letter": pick(generator, LETTERS)}, start_letter, slots("start"),
    ),
    Kind(
        "end_mark", "opening_and_closing",
        ("End your answer with a {name} ({mark}).", "The last character must be a {name} ({mark})."),
        lambda generator, topic: (lambda mark: {"mark": mark, "name": MARK_NAMES[mark]})(pick(generator, ".!!??")),
        end_mark, slots("end marks"),
    ),
    Kind(
        "avoid_start", "opening_and_closing",
        ("Do not start with '{first}' or '{second}'.", "The first word must not be '{first}' or '{second}'."),
        lambda generator, topic: dict(zip(("first", "second"), pick(generator, (("The", "A"), ("The", "In"), ("The", "It"))), strict=True)),
        avoid_start, slots("start"),
    ),
    Kind(
        "whole_quote", "opening_and_closing",
        ("Wrap your whole answer in double quotation marks.", 'Put the entire answer inside "double quotes".'),
        nothing, whole_quote, slots("start end quotes format marks"),
    ),
    Kind(
        "start_vowel", "opening_and_closing",
        ("Begin with a vowel.", "The first letter must be a vowel (a, e, i, o or u)."),
        nothing, start_vowel, slots("start"), shifted=True,
    ),
)
