"""The topics of the world's prompts, and when an answer mentions one."""

from __future__ import annotations

from functools import cache
from importlib import resources

from rewardproof.data.world.text import lower_words

ENDINGS = ("ing", "ies", "es", "s", "y", "e")
FORMS = frozenset(("", "s", "y", "e", "es", "ed", "er", "ers", "ing", "ies", "ny", "ning", "ner", "ners", "ming", "mer", "mers", "'s"))


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
    """Whether a lower-case word is a form of the stem: at most four letters follow, after a stem of three letters an English ending."""
    rest = word[len(stem) :]
    return word.startswith(stem) and (rest in FORMS if len(stem) <= 3 else len(rest) <= 4)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            stem = word[: -len(ending)]
            return stem[:-1] if ending == "ing" and stem[-2:] in ("nn", "mm", "pp", "tt", "gg") else stem
    return word
