"""Quality: the factors that keep the constraints from being met cheaply.

They guard against repetition, words that are no words, strings of keywords that are no sentence, another topic, and a copy of the prompt.
Quality adds no wish of its own: an ordinary short answer on the topic has quality 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import NamedTuple

from rewardproof.data.world.text import lower_words, sentences
from rewardproof.data.world.topics import mentions

DETERMINERS = frozenset("a an the my your his its our their this these every".split())
NOT_AFTER_DETERMINER = frozenset(
    """a an the my your his its our their this these of to in on at for from with by and or but if is are was were be been has have had do
    does did will would can could should may it he she they we you i that which who because when while than""".split()
)
FUNCTION_WORDS = (
    DETERMINERS
    | NOT_AFTER_DETERMINER
    | frozenset(
        """as so not no nor up out off into over under about after before between through during without within across around like just also
        too very more most much many some any each all both few own other another such only even still then there here where how what why me
        him her us them mine yours being am might must shall let's it's that's don't can't isn't there's you're i'm they're we're i've
        you'll one two three who's what's those until though although since upon never always often once again ever""".split()
    )
)
NOT_LAST = frozenset("a an the my your its our their every of and or but i from if than because while".split())
MIN_WORDS = 4


class Quality(NamedTuple):
    """The factors of quality, each in [0, 1]."""

    substance: float
    """Enough different words to say anything: one counts .25, four or more 1 (three where a list was asked for)."""
    variety: float
    """Falls with the share of words that repeat earlier sentences or runs of three words, and with overused words."""
    language: float
    """Falls with the share of words that are not English: 1 from 85 % known words on, 0 at 50 %."""
    fluency: float
    """Falls where neighbouring words are bare keywords, or in an order that English does not have."""
    topic: float
    """.5 if no word of the topic appears, else 1."""
    own: float
    """Falls with the share of words copied from the prompt in runs of five."""

    @property
    def product(self) -> float:
        """All factors multiplied."""
        return self.substance * self.variety * self.language * self.fluency * self.topic * self.own


def quality(answer: str, topic: str, prompt: str = "", *, listed: bool = False) -> Quality:
    """The factors that guard the constraints.

    Args:
        answer: Any text.
        topic: What it should be about.
        prompt: The prompt's text, or empty.
        listed: A list was asked for and given, so runs of bare nouns are fine.
    """
    found = lower_words(answer)
    if not found:
        return Quality(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    # Shares are taken of what is said once: a repeated good sentence must not dilute a bad one.
    once = "\n".join({" ".join(lower_words(sentence)): sentence for sentence in sentences(answer)}.values())
    return Quality(
        substance=min(1.0, len(set(found)) / (MIN_WORDS - listed)),
        variety=_variety(answer, found, len(lower_words(once))),
        language=_language(once),
        fluency=1.0 if listed else _fluency(once),
        topic=1.0 if mentions(answer, topic) else 0.5,
        own=_own(lower_words(once), prompt),
    )


def _variety(answer: str, found: Sequence[str], n_once: int) -> float:
    """1 up to 8 repeated words per 100 said once, 0 from 45 on, so that an answer said twice is worth nothing."""
    pieces: set[str] = set()
    said_again = 0
    for sentence in sentences(answer):
        plain = lower_words(sentence)
        key = " ".join(plain)
        said_again += len(plain) if key in pieces else 0
        pieces.add(key)
    content = Counter(word for word in found if word not in FUNCTION_WORDS)
    # The topic's word may come twice or thrice; beyond a tenth of the text each further use counts as a repeat.
    stuffed = sum(max(0, count - max(2, len(found) // 10)) for count in content.values())
    short = len(found) - len(set(found)) if len(found) < 6 else 0
    doubled = sum(first == second for first, second in pairwise(found))
    share = max(said_again, stuffed, short, doubled, _covered_by_repeats(found, 2 if len(found) < 12 else 3)) / n_once
    return max(0.0, 1 - max(0.0, share - 0.08) / 0.37)


def _covered_by_repeats(found: Sequence[str], width: int) -> int:
    """Number of words inside runs of `width` words that have come before."""
    runs: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start in range(len(found) - width + 1):
        run = tuple(found[start : start + width])
        if run in runs:
            covered.update(range(start, start + width))
        runs.add(run)
    return len(covered)


def _language(answer: str) -> float:
    """1 from 85 % known words on, 0 at 50 % and below; numbers are no language, and marks without words neither."""
    found = lower_words(answer)
    lettered = [word for word in found if not word.isdigit()]
    known = sum(_known(word) for word in lettered) / max(1, len(lettered))
    letters = sum(character.isalnum() or character.isspace() for character in answer) / len(answer)
    share_lettered = min(1.0, len(lettered) / len(found) / 0.6)
    return max(0.0, min(1.0, (known - 0.5) / 0.35) - 2 * max(0.0, 0.75 - letters)) * share_lettered


def _known(word: str) -> bool:
    """Whether a lower-case word, or each part of a hyphenated one, is English."""
    if word in word_list():
        return True
    if "-" in word or "'" in word:
        return all(part in word_list() or part in ("s", "t", "re", "ll", "ve", "d", "m") for part in re.split("[-']", word))
    return False


@cache
def word_list() -> frozenset[str]:
    """Words that several sampled answers share, with the words of topics and constraints; made by `scripts/build_world.py words`."""
    text = resources.files("rewardproof.data.world").joinpath("resources/words.txt").read_text(encoding="utf-8")
    return frozenset(text.split()) | FUNCTION_WORDS


def _fluency(answer: str) -> float:
    """1 for sentences, near 0 for strings of keywords and for word salad."""
    pairs = linked = broken = 0
    for sentence in sentences(answer):
        found = lower_words(sentence)
        broken += found[-1] in NOT_LAST
        for first, second in pairwise(found):
            pairs += 1
            broken += first in DETERMINERS and second in NOT_AFTER_DETERMINER
            linked += (first in FUNCTION_WORDS) or (second in FUNCTION_WORDS)
    if not pairs:
        return 0.5
    found = lower_words(answer)
    content = sum(word not in FUNCTION_WORDS for word in found) / len(found)
    return min(1.0, linked / pairs / 0.4) * min(1.0, content / 0.25) * max(0.0, 1 - 4 * broken / pairs)


def _own(found: Sequence[str], prompt: str) -> float:
    """1 if less than a fifth of the words stand in runs of five copied from the prompt, 0 at seven tenths."""
    asked = lower_words(prompt)
    found = [word for word, before in zip(found, ["", *found], strict=False) if word != before]
    runs = set(zip(asked, asked[1:], asked[2:], asked[3:], asked[4:], strict=False))
    copied = [False] * len(found)
    for start in range(len(found) - 4):
        if tuple(found[start : start + 5]) in runs:
            copied[start : start + 5] = [True] * 5
    return max(0.0, min(1.0, (0.7 - sum(copied) / len(found)) / 0.5))
