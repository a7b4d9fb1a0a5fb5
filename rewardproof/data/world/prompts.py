"""Prompts of the world: a topic and one to three constraints, in plain English. Everything follows from one seed."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.data.world.constraints import KINDS, compatible
from rewardproof.data.world.kind import FAMILIES, pick
from rewardproof.data.world.topics import topics

SIZES = {"train": 1020, "heldout": 300, "shifted": 309}
SHIFTS = ("topics", "kinds", "combinations")
SENTENCE_TASKS = (
    "Write one short sentence about {topic}.",
    "Answer in one short sentence about {topic}.",
    "In one short sentence, tell me about {topic}.",
    "Write a single short line about {topic}.",
)
TEXT_TASKS = ("Write a very short text about {topic}.", "Write a few words about {topic}.", "Write a tiny note about {topic}.")
NEED_TEXT = frozenset("min_words sentence_count several_lines any_list numbered json_object title varied_starts".split())
"""Kinds that one sentence cannot satisfy."""
TASK_FIRST = frozenset("any_list numbered json_object title".split())
"""Kinds whose phrasing only makes sense after the task."""
TASK_LAST = 0.75
"""Share of prompts whose task comes after the constraints; the small policy then keeps to its topic more often."""
COUNT_PROBABILITIES = np.array([0.3, 0.45, 0.25])
"""Probability of one, two and three constraints."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: The whole instruction, as the policy reads it.
        topic: What it is about.
        constraints: `{"kind", "family", "args"}` each, the first one giving the prompt's category and capability.
        shift: What is unseen about it: one of `SHIFTS`, empty outside the part `shifted`.
    """

    text: str
    topic: str
    constraints: tuple[dict[str, Any], ...]
    shift: str = ""


def make_prompts(seed: int = 0) -> dict[str, list[Prompt]]:
    """All prompts by part: `train`, `heldout` (same distribution) and `shifted`. No text occurs twice.

    Of the shifted prompts a third has unseen topics, a third a constraint kind that training never shows, and a third a pair of kinds
    that training never shows together; nothing else about them is new.
    """
    generator = np.random.default_rng(seed)
    seen: set[str] = set()
    parts = {part: _fill(lambda: _usual(generator, topics()), SIZES[part], seen) for part in ("train", "heldout")}
    parts["shifted"] = [
        prompt for shift in SHIFTS for prompt in _fill(lambda shift=shift: _shifted(generator, shift), SIZES["shifted"] // 3, seen)
    ]
    return parts


def held_pair(first: str, second: str) -> bool:
    """Whether training never shows these two kinds together: one pair in six, by hash."""
    return zlib.crc32("+".join(sorted((first, second))).encode()) % 6 == 0


def _fill(make: Callable[[], Prompt], size: int, seen: set[str]) -> list[Prompt]:
    """Draws until there are enough texts that have not occurred."""
    prompts: list[Prompt] = []
    while len(prompts) < size:
        prompt = make()
        if prompt.text not in seen:
            seen.add(prompt.text)
            prompts.append(prompt)
    return prompts


def _usual(generator: np.random.Generator, among: Sequence[str], shift: str = "") -> Prompt:
    """A prompt of known kinds without a held pair."""
    size = 1 + int(generator.choice(3, p=COUNT_PROBABILITIES))
    while True:
        names = _names(generator, size)
        if compatible(names) and not any(held_pair(*pair) for pair in itertools.combinations(names, 2)):
            return _phrase(generator, pick(generator, among), names, shift)


def _shifted(generator: np.random.Generator, shift: str) -> Prompt:
    """A prompt that is new in one way."""
    if shift == "topics":
        return _usual(generator, topics(shifted=True), shift)
    size = 2 + int(generator.random() < 0.3)
    while True:
        names = _names(generator, size)
        if shift == "kinds":
            names[0] = pick(generator, [name for name, kind in KINDS.items() if kind.shifted])
        pairs = list(itertools.combinations(names, 2))
        held = any(held_pair(*pair) for pair in pairs if not any(KINDS[name].shifted for name in pair))
        if compatible(names) and held == (shift == "combinations"):
            return _phrase(generator, pick(generator, topics()), names, shift)


def _names(generator: np.random.Generator, size: int) -> list[str]:
    """Known kinds, drawn by family first, so that families are equally frequent."""
    chosen = [pick(generator, FAMILIES) for _ in range(size)]
    return [pick(generator, [name for name, kind in KINDS.items() if kind.family == family and not kind.shifted]) for family in chosen]


def _phrase(generator: np.random.Generator, topic: str, names: Sequence[str], shift: str) -> Prompt:
    """Puts topic and constraints into words."""
    task = pick(generator, TEXT_TASKS if NEED_TEXT & set(names) else SENTENCE_TASKS).format(topic=topic)
    pieces: list[str] = []
    constraints: list[dict[str, Any]] = []
    for name in names:
        kind = KINDS[name]
        arguments = kind.draw(generator, topic)
        pieces.append(pick(generator, kind.phrasings).format(**arguments))
        constraints.append({"kind": name, "family": kind.family, "args": arguments})
    last = generator.random() < TASK_LAST and not TASK_FIRST & set(names)
    pieces.insert(len(pieces) if last else 0, task)
    return Prompt(" ".join(pieces), topic, tuple(constraints), shift)
