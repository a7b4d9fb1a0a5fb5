"""Constraints on how long an answer is. Near misses earn a part."""

from __future__ import annotations

from rewardproof.data.world.kind import Kind, pick, slots
from rewardproof.data.world.text import sentences, words


def max_words(answer: str, n: int) -> float:
    """1 up to n words, falling to 0 at 2n; an empty answer is 0."""
    count = len(words(answer))
    return 0.0 if not count else max(0.0, min(1.0, 2 - count / n))


def min_words(answer: str, n: int) -> float:
    """1 from n words on; half or fewer is 0."""
    return max(0.0, min(1.0, 2 * len(words(answer)) / n - 1))


def word_range(answer: str, low: int, high: int) -> float:
    """1 between low and high, falling to 0 at a distance of half of low."""
    count = len(words(answer))
    return max(0.0, 1 - 2 * max(low - count, count - high, 0) / low)


def sentence_count(answer: str, n: int) -> float:
    """1 for exactly n sentences, one half for one too many or too few."""
    count = len(sentences(answer))
    return 0.0 if not count else max(0.0, 1 - abs(count - n) / 2)


def max_characters(answer: str, n: int) -> float:
    """1 up to n characters, falling to 0 at 2n; an empty answer is 0."""
    count = len(answer.strip())
    return 0.0 if not words(answer) else max(0.0, min(1.0, 2 - count / n))


def short_sentences(answer: str, n: int) -> float:
    """Share of sentences with at most n words."""
    found = sentences(answer)
    return sum(len(words(sentence)) <= n for sentence in found) / len(found) if found else 0.0


KINDS = (
    Kind(
        "max_words",
        "length",
        ("Use at most {n} words.", "Keep it to {n} words or fewer.", "Do not write more than {n} words."),
        lambda generator, topic: {"n": pick(generator, (10, 12, 15, 18, 20))},
        max_words,
        slots("length"),
    ),
    Kind(
        "min_words",
        "length",
        ("Use at least {n} words.", "Write {n} words or more.", "Your answer must have no fewer than {n} words."),
        lambda generator, topic: {"n": pick(generator, (20, 25, 30))},
        min_words,
        slots("length unique"),
    ),
    Kind(
        "word_range",
        "length",
        ("Use between {low} and {high} words.", "Your answer should be {low} to {high} words long."),
        lambda generator, topic: dict(zip(("low", "high"), pick(generator, ((8, 14), (12, 18), (15, 25), (20, 30))), strict=True)),
        word_range,
        slots("length"),
    ),
    Kind(
        "sentence_count",
        "length",
        ("Number of sentences: exactly {n}.", "The number of sentences must be {n}."),
        lambda generator, topic: {"n": pick(generator, (1, 2, 3))},
        sentence_count,
        slots("length format"),
    ),
    Kind(
        "max_characters",
        "length",
        ("Stay under {n} characters.", "Your answer may have at most {n} characters."),
        lambda generator, topic: {"n": pick(generator, (60, 80, 100, 120))},
        max_characters,
        slots("length"),
    ),
    Kind(
        "short_sentences",
        "length",
        ("No sentence may be longer than {n} words.", "Keep every sentence to {n} words or fewer."),
        lambda generator, topic: {"n": pick(generator, (8, 10, 12))},
        short_sentences,
        slots("length"),
        shifted=True,
    ),
)
