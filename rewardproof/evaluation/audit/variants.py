"""A prompt's answers and their changed forms: which are made, laid out in groups that share as many tokens as can be, and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rewardproof.data.group import Group, Message
from rewardproof.evaluation.audit.passages import Passage, resized
from rewardproof.evaluation.audit.suite import PERTURBATIONS, perturbed

ANSWERS = 8
"""Answers to a prompt that are scored as they are; two of them are changed."""
Measure = Callable[[str], int]
"""Size of a text: its tokens where the scorer has a tokenizer, else its words."""


class Variant(NamedTuple):
    """One changed form of an answer."""

    place: int
    """Place of the answer among the prompt's answers."""
    name: str
    """Of the perturbation."""
    control: bool
    """Whether it is that perturbation's control: the answer at the length of its changed form."""
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, its answers as they were given, and the changed forms of some of them."""

    number: int
    group: Group
    variants: tuple[Variant, ...]

    def groups(self) -> list[Group]:
        """What is to be scored: the answers; the forms that go on where one of them ends, by answer; and the others.

        A packed scorer computes what a group's conversations begin with once, which is here the prompt, or prompt and answer.
        """
        return [replace(self.group, answers=answers, scores=None) for answers in self._answers() if answers]

    def scores(self, rows: Sequence[Sequence[float]]) -> CaseScores:
        """The case's scores out of those of `groups`."""
        found = iter(rows)
        originals, *others = (tuple(next(found)) if answers else () for answers in self._answers())
        reward = {
            variant[:3]: value for part, row in zip(self._parts(), others, strict=True) for variant, value in zip(part, row, strict=True)
        }
        return CaseScores(self.number, self.group.prompt_key, self.group.scores, originals, reward)

    def _parts(self) -> list[list[Variant]]:
        texts = [answer[-1].content for answer in self.group.answers]
        going_on: list[list[Variant]] = [[] for _ in texts]
        apart: list[Variant] = []
        for variant in self.variants:
            (going_on[variant.place] if variant.text.startswith(texts[variant.place]) else apart).append(variant)
        return [*going_on, apart]

    def _answers(self) -> list[tuple[tuple[Message, ...], ...]]:
        changed = [tuple(_with_text(self.group.answers[variant.place], variant.text) for variant in part) for part in self._parts()]
        return [self.group.answers, *changed]


@dataclass(frozen=True, slots=True)
class CaseScores:
    """Rewards of one prompt's answers and of their changed forms.

    Attributes:
        number: The case's, which tells two cases of one prompt apart.
        prompt: The prompt's key.
        given: The data's own scores of the answers, where it has some.
        originals: Rewards of the answers.
        changed: Rewards by place of the answer, perturbation, and whether it is the control.
    """

    number: int
    prompt: str
    given: tuple[float, ...] | None
    originals: tuple[float, ...]
    changed: dict[tuple[int, str, bool], float]


def make_case(number: int, group: Group, other: str, names: Sequence[str], *, measure: Measure, seed: int = 0) -> Case:
    """Change the best and the worst of a prompt's answers by the data's scores; without scores its first.

    Of many answers the best, the worst and the first of the others are kept, `ANSWERS` in all.

    Args:
        number: The case's.
        group: The prompt and its answers, of which the last turn is changed.
        other: An answer to another prompt.
        names: The perturbations.
        measure: A text's size, for the controls.
        seed: Of the perturbations.
    """
    places = _audited(group)
    kept = sorted([*places, *[place for place in range(len(group.answers)) if place not in places][: ANSWERS - len(places)]])
    scores = None if group.scores is None else tuple(group.scores[place] for place in kept)
    small = replace(group, answers=tuple(group.answers[place] for place in kept), scores=scores)
    variants: list[Variant] = []
    for place in (kept.index(place) for place in places):
        text = small.answers[place][-1].content
        passage = Passage(text, _question(group), other)
        for name in names:
            made = perturbed(name, passage, seed=seed)
            if made is None:
                continue
            variants.append(Variant(place, name, False, made))
            if PERTURBATIONS[name].resizes:
                variants.append(Variant(place, name, True, resized(text, measure(made), measure)))
    return Case(number, small, tuple(variants))


def _audited(group: Group) -> tuple[int, ...]:
    """Places of the best and the worst answer, or of the first where nothing orders them."""
    if group.scores is None or len(set(group.scores)) < 2:
        return (0,)
    return int(np.argmax(group.scores)), int(np.argmin(group.scores))


def _question(group: Group) -> str:
    """What the user said last."""
    return next((message.content for message in reversed(group.prompt) if message.role == "user"), group.prompt_text)


def _with_text(answer: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    return (*answer[:-1], answer[-1]._replace(content=text))
