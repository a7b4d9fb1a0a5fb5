"""The topics of the world's prompts, and when an answer mentions one."""

from __future__ import annotations

from functools import cache
from importlib import resources

from rewardproof.data.world.text import lower_words

ENDINGS = ("ing", "ies", "es", "s", "y", "e")


@cache
def topics(shifted: bool = False) -> tuple[str, ...]:
    """Topics for training and held-out prompts, or the ones that only the part `shifted` uses.

    The file has one topic a line; those below the line `# shifted` are the unseen ones.
    """
    text = resources.files("rewardproof.data.world").joinpath("resources", "topics.txt").read_text(encoding="utf-8")
    seen, unseen = text.split("# shifted\n")
    return tuple(line for line in (unseen if shifted else seen).splitlines() if line and not line.startswith("#"))


@cache
def stems(topic: str) -> tuple[tuple[str, str], ...]:
    """`(stem, word)` of each word of a topic, the last one being its noun.

    Example:
        >>> stems("bread baking")
        (('bread', 'bread'), ('bak', 'baking'))
    """
    return tuple((_stem(word), word) for word in lower_words(topic) if len(word) > 2 and word not in ("the", "and", "for", "with"))


def mentions(answer: str, topic: str) -> bool:
    """Whether some word of the answer has the stem of a word of the topic."""
    found = set(lower_words(answer))
    return any(has_stem(word, stem) for stem, _ in stems(topic) for word in found)


def has_stem(word: str, stem: str) -> bool:
    """Whether a lower-case word is a form of the stem: at most four letters follow, two after a stem of three letters."""
    return word.startswith(stem) and len(word) - len(stem) <= (4 if len(stem) > 3 else 2)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word
