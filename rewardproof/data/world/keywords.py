"""Constraints on which words and letters an answer uses."""

from __future__ import annotations

import numpy as np

from rewardproof.data.world.kind import Arguments, Kind, pick, slots
from rewardproof.data.world.text import contains_word, lower_words
from rewardproof.data.world.topics import has_stem, stems

INCLUDED = (
    "bright",
    "quiet",
    "simple",
    "warm",
    "time",
    "people",
    "small",
    "gentle",
    "always",
    "never",
    "home",
    "story",
    "light",
    "world",
    "careful",
    "patient",
    "morning",
    "night",
    "friend",
    "heart",
    "perfect",
    "strong",
    "early",
    "slow",
    "history",
    "together",
    "today",
    "favorite",
    "memory",
    "moment",
    "golden",
    "curious",
    "useful",
    "ancient",
    "modern",
    "secret",
    "family",
    "children",
    "beautiful",
    "music",
)
AVOIDED = ("the", "is", "and", "of", "it", "to", "are", "with", "that", "in")
LETTERS = "bfgkmpvwyzxjq"
COLORS = (
    "red orange yellow green blue purple violet pink brown black white gray grey gold golden silver crimson scarlet turquoise beige teal"
).split()


def include_word(answer: str, word: str) -> float:
    """1 if the word is there."""
    return float(contains_word(answer, word))


def include_two(answer: str, first: str, second: str) -> float:
    """One half for each of the two words."""
    return (contains_word(answer, first) + contains_word(answer, second)) / 2


def avoid_word(answer: str, word: str) -> float:
    """1 if the word is absent from an answer that has any."""
    return float(bool(answer.strip()) and not contains_word(answer, word))


def avoid_letter(answer: str, letter: str) -> float:
    """1 if the letter is absent from an answer that has any."""
    return float(bool(answer.strip()) and letter not in answer.lower())


def topic_twice(answer: str, stem: str, word: str) -> float:
    """One half for each mention of the topic's word, up to two."""
    return min(sum(has_stem(found, stem) for found in lower_words(answer)), 2) / 2


def mention_color(answer: str) -> float:
    """1 if a colour is named."""
    return float(any(contains_word(answer, color) for color in COLORS))


def _two_words(generator: np.random.Generator, topic: str) -> Arguments:
    first, second = generator.choice(len(INCLUDED), size=2, replace=False)
    return {"first": INCLUDED[first], "second": INCLUDED[second]}


def _letter(generator: np.random.Generator, topic: str) -> Arguments:
    return {"letter": pick(generator, [letter for letter in LETTERS[:9] if letter not in topic.lower()] or ["z"])}


def _topic_word(generator: np.random.Generator, topic: str) -> Arguments:
    stem, word = stems(topic)[-1]
    return {"stem": stem, "word": word}


KINDS = (
    Kind(
        "include_word",
        "keywords",
        ("Include the word '{word}'.", "Use the word '{word}' somewhere.", "The word '{word}' must appear."),
        lambda generator, topic: {"word": pick(generator, INCLUDED)},
        include_word,
        slots("include"),
    ),
    Kind(
        "include_two",
        "keywords",
        ("Use both words '{first}' and '{second}'.", "Include the words '{first}' and '{second}'."),
        _two_words,
        include_two,
        slots("include"),
    ),
    Kind(
        "avoid_word",
        "keywords",
        ("Do not use the word '{word}'.", "Avoid the word '{word}'.", "The word '{word}' is forbidden."),
        lambda generator, topic: {"word": pick(generator, AVOIDED)},
        avoid_word,
        slots("avoid"),
    ),
    Kind(
        "avoid_letter",
        "keywords",
        ("Do not use the letter '{letter}'.", "Avoid every word with the letter '{letter}'."),
        _letter,
        avoid_letter,
        slots("avoid include start end last"),
    ),
    Kind(
        "topic_twice",
        "keywords",
        ("Mention '{word}' at least twice.", "Use the word '{word}' two times or more."),
        _topic_word,
        topic_twice,
        slots("count unique"),
    ),
    Kind(
        "mention_color",
        "keywords",
        ("Mention a color.", "Name at least one color."),
        lambda generator, topic: {},
        mention_color,
        slots("include"),
        shifted=True,
    ),
)
