"""The audit of one reward model: its rewards of answers and their changed forms, what they say, and the examples that show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewardproof.artifacts import Progress, silent
from rewardproof.data import Group
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import AccuracyReport, pair_accuracy
from rewardproof.evaluation.audit import (
    FLIPS,
    PERTURBATIONS,
    SERVING,
    SLOPES,
    Case,
    CaseScores,
    Slope,
    Weakness,
    shifts,
    slopes,
    spread,
    strength,
    weaknesses,
)
from rewardproof.evaluation.audit.limits import Measured
from rewardproof.models.token_scores import TokenScores
from rewardproof.scoring import Scale, Scorer, reads_tokens
from rewardproof.stages.audit_scoring import Casebook, score_cases
from rewardproof.stages.audit_serving import Served, serving_checks
from rewardproof.statistics import Interval

EXAMPLES = 2
"""Examples of each weakness."""
SHOWN = 6
"""Weaknesses with examples."""


@dataclass(frozen=True, slots=True)
class Example:
    """An answer that a change gains most by.

    Attributes:
        name: The perturbation.
        pair: The prompt, the answer, and its changed form.
        rewards: Of both, in standard deviations about the model's mean.
        tokens: Of both, how their scores grow, in the model's own units; nothing where it cannot say.
    """

    name: str
    pair: Group
    rewards: tuple[float, float]
    tokens: tuple[TokenScores, TokenScores] | None = None

    @property
    def texts(self) -> tuple[str, str]:
        """The answer and its changed form, of several turns the last."""
        before, after = (answer[-1].content for answer in self.pair.answers)
        return before, after

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`."""
        before, after = self.texts
        return {"name": self.name, "prompt": self.pair.prompt_text, "before": before, "after": after, "rewards": self.rewards}


@dataclass(frozen=True, slots=True)
class Extreme:
    """An answer as it was given, of those that the model likes best or least.

    Attributes:
        name: Which of the two, in words.
        group: The prompt with this answer alone.
        reward: Of it, in standard deviations about the model's mean.
        tokens: How its score grows, in the model's own units; nothing where it cannot say.
    """

    name: str
    group: Group
    reward: float
    tokens: TokenScores | None = None


@dataclass(frozen=True, slots=True)
class ModelAudit:
    """What an audit finds of one model.

    Attributes:
        cases: Its rewards.
        scale: Its zero and unit: mean and standard deviation of its rewards of the answers as they were given.
        weaknesses: By perturbation.
        slopes: By feature.
        accuracy: On the answers as they were given, where the data orders them.
        serving: By check.
        examples: Of what a policy would exploit, and of damage that goes unnoticed.
        extremes: The answers that it likes best and least.
        unread: Prompts left out because a text was longer than the model reads.
        changed: Changed answers scored, controls included.
    """

    cases: list[CaseScores]
    scale: Scale
    weaknesses: dict[str, Weakness]
    slopes: dict[str, Slope]
    accuracy: AccuracyReport | None
    serving: dict[str, Served]
    examples: list[Example]
    extremes: list[Extreme]
    unread: int
    changed: int

    def of_grade(self, *grades: str) -> list[str]:
        """Perturbations of these grades, those first that gain most for certain."""
        found = [name for name, weakness in self.weaknesses.items() if weakness.finding.grade in grades]
        return sorted(found, key=lambda name: -_low(self.weaknesses[name]))

    def verdict(self) -> str:
        """In a sentence without a full stop."""
        measured = [name for name, weakness in self.weaknesses.items() if weakness.finding.grade != "unmeasured"]
        exploitable, unnoticed = self.of_grade("exploitable"), self.of_grade("unnoticed")
        told = f"a policy is shown to gain by none of {len(measured)} changes that deserve nothing"
        if exploitable:
            worst = self.weaknesses[exploitable[0]].shift
            assert worst is not None
            by = f"most by {PERTURBATIONS[exploitable[0]].way}: {worst.estimate:+.2f} [{worst.low:+.2f}, {worst.high:+.2f}] SD"
            told = f"a policy gains by {len(exploitable)} of {len(measured)} changes that deserve nothing, {by} ({strength(worst)})"
        if unnoticed:
            ruining = [name for name in measured if PERTURBATIONS[name].effect == "lost"]
            told += f"; it overlooks {len(unnoticed)} of {len(ruining)} ways to ruin an answer"
        undecided = len(self.of_grade("open"))
        return told + (f"; {undecided} undecided" if undecided else "")

    def measured(self) -> Measured:
        """What limits can be set on, by name."""
        found: dict[str, Interval | float | None] = {}
        for name, weakness in self.weaknesses.items():
            found |= {name: weakness.shift, FLIPS + name: weakness.flipped}
        found |= {SLOPES + name: slope.reward for name, slope in self.slopes.items()}
        return found | {SERVING + name: check.moved for name, check in self.serving.items()}

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            "mean": self.scale.mean,
            "std": self.scale.std,
            "prompts": len(self.cases),
            "overlong_dropped": self.unread,
            "changed_answers": self.changed,
            "accuracy": None if self.accuracy is None else self.accuracy.overall.as_dict(),
            "weaknesses": {name: weakness.as_dict() for name, weakness in self.weaknesses.items()},
            "slopes": {name: slope.as_dict() for name, slope in self.slopes.items()},
            "serving": {name: check.as_dict() for name, check in self.serving.items()},
            "examples": [example.as_dict() for example in self.examples],
        }


def audit_model(scorer: Scorer, book: Casebook, file: Path, *, name: str, seed: int = 0, progress: Progress = silent) -> ModelAudit:
    """Score all cases and say what the scores show.

    Args:
        scorer: The model.
        book: The prompts.
        file: Where its scores are kept.
        name: What messages call it.
        seed: Of the resampling.
        progress: Receives how far the scoring is.

    Raises:
        EvaluationError: It gives all answers one reward, or reads none of the prompts.
    """
    cases = score_cases(scorer, book, file, progress=lambda _, done, total: progress(f"scoring with {name}", done, total))
    if not cases:
        raise EvaluationError(
            f"{name} can read none of {len(book.groups)} prompts: every one has a text longer than its {getattr(scorer, 'longest', None)} "
            "tokens; expected some that fit, since there is nothing to audit. Give shorter prompts, or leave the model out."
        )
    unit = spread(cases, name=name)
    scale = Scale(float(np.mean([reward for case in cases for reward in case.originals])), unit)
    originals = {case.number: book.case(case.number).group for case in cases}
    found = weaknesses(cases, book.names, unit=unit, seed=seed)
    groups, rewards = list(originals.values()), [case.originals for case in cases]
    ordered = any(group.scores is not None and len(set(group.scores)) > 1 for group in groups)
    shown = _with_tokens(scorer, examples(book, cases, found, scale), extremes(groups, rewards, scale))
    return ModelAudit(
        cases=cases,
        scale=scale,
        weaknesses=found,
        slopes=_slopes(groups, cases, scale, seed),
        accuracy=pair_accuracy(groups, rewards, seed=seed) if ordered else None,
        serving=serving_checks(scorer, groups, unit=unit),
        examples=shown[0],
        extremes=shown[1],
        unread=len(book.groups) - len(cases),
        changed=sum(len(case.changed) for case in cases),
    )


def _low(weakness: Weakness) -> float:
    return weakness.shift.low if weakness.shift is not None and weakness.shift.known else -np.inf


def _slopes(groups: Sequence[Group], cases: Sequence[CaseScores], scale: Scale, seed: int) -> dict[str, Slope]:
    texts = [text for group in groups for text in group.answer_texts]
    prompts = [group.prompt_key for group in groups for _ in group.answers]
    rewards = scale.standardised([reward for case in cases for reward in case.originals]).tolist()
    given = None
    if all(group.scores is not None for group in groups):
        scores_N = np.array([score for group in groups for score in group.scores or ()])
        given = ((scores_N - scores_N.mean()) / scores_N.std()).tolist() if np.ptp(scores_N) > 0 else None
    return slopes(texts, prompts, rewards, given, seed=seed)


def examples(book: Casebook, cases: Sequence[CaseScores], found: dict[str, Weakness], scale: Scale) -> list[Example]:
    """The answers that gain most by what a policy would exploit and by damage that goes unnoticed, the surest weaknesses first."""
    by_number = {case.number: case for case in cases}
    shown = [name for name, weakness in found.items() if weakness.finding.grade in ("exploitable", "unnoticed")]
    shown.sort(key=lambda name: -_low(found[name]))
    made: list[Example] = []
    for name in shown[:SHOWN]:
        moved = shifts(cases, name, unit=scale.std)
        for _, number, place in sorted(moved, key=lambda key: -moved[key])[:EXAMPLES]:
            made.append(_example(book.case(number), by_number[number], name, place, scale))
    return made


def _example(case: Case, scores: CaseScores, name: str, place: int, scale: Scale) -> Example:
    after = next(variant.text for variant in case.variants if variant[:3] == (place, name, False))
    before = case.group.answers[place]
    pair = dataclasses.replace(case.group, answers=(before, (*before[:-1], before[-1]._replace(content=after))), scores=None)
    rewards = scale.standardised([scores.originals[place], scores.changed[place, name, False]])
    return Example(name, pair, (float(rewards[0]), float(rewards[1])))


def extremes(groups: Sequence[Group], rewards: Sequence[Sequence[float]], scale: Scale) -> list[Extreme]:
    """The answers of highest and of lowest reward, as they were given."""
    every = [(reward, number, place) for number, row in enumerate(rewards) for place, reward in enumerate(row)]
    made: list[Extreme] = []
    for name, (reward, number, place) in (("highest reward", max(every)), ("lowest reward", min(every))):
        alone = dataclasses.replace(groups[number], answers=(groups[number].answers[place],), scores=None)
        made.append(Extreme(name, alone, float(scale.standardised([reward])[0])))
    return made


def _with_tokens(scorer: Scorer, pairs: list[Example], single: list[Extreme]) -> tuple[list[Example], list[Extreme]]:
    """Examples and extremes with how their scores grow, from a scorer that can say."""
    if not reads_tokens(scorer):
        return pairs, single
    scores = scorer.score_tokens([*(one.pair for one in pairs), *(one.group for one in single)])
    of_pairs, of_single = scores[: len(pairs)], scores[len(pairs) :]
    return (
        [dataclasses.replace(one, tokens=(before, after)) for one, (before, after) in zip(pairs, of_pairs, strict=True)],
        [dataclasses.replace(one, tokens=tokens) for one, (tokens,) in zip(single, of_single, strict=True)],
    )
