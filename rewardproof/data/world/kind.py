"""`Kind`: one sort of constraint that a program can check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arguments = dict[str, Any]
FAMILIES = ("length", "keywords", "case_and_punctuation", "opening_and_closing", "structure")


@dataclass(frozen=True)
class Kind:
    """One sort of constraint.

    Attributes:
        name: What the constraint is called in data and tables: the *capability*.
        family: One of `FAMILIES`: the *category*.
        phrasings: Two or more ways of asking for it, with the arguments in braces.
        draw: Arguments for one prompt, from a generator and the topic; JSON-able.
        check: Satisfaction in [0, 1] of an answer, given the arguments.
        slots: What the constraint lays hold of. Two kinds that share a slot are never in one prompt.
        shifted: The kind appears in the part `shifted` alone.
    """

    name: str
    family: str
    phrasings: tuple[str, ...]
    draw: Callable[[np.random.Generator, str], Arguments]
    check: Callable[..., float]
    slots: frozenset[str] = frozenset()
    shifted: bool = False


def pick(generator: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of several options, each as likely as the others."""
    return options[int(generator.integers(len(options)))]


def slots(names: str) -> frozenset[str]:
    """A set of slots from one string."""
    return frozenset(names.split())


def nothing(generator: np.random.Generator, topic: str) -> Arguments:
    """For kinds without arguments."""
    return {}
