"""Weaknesses out of scores: by how much each perturbation moves the reward, in the model's own units, and what that overturns."""

# Shapes: N changed answers.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.evaluation.accuracy import accuracy_intervals
from rewardproof.evaluation.audit.suite import PERTURBATIONS
from rewardproof.evaluation.audit.variants import CaseScores
from rewardproof.evaluation.audit.verdicts import Finding, finding
from rewardproof.statistics import Interval, cluster_bootstrap, paired_difference, simultaneous_level

RESAMPLES = 20_000
"""Resamples behind each interval: their ends lie far out, since many of them are to hold together."""
Shifts = dict[tuple[str, int, int], float]
"""By prompt, case, and place of the answer."""


@dataclass(frozen=True, slots=True)
class Weakness:
    """What one perturbation does to a model's rewards.

    Attributes:
        shift: Mean shift of the reward, in standard deviations, every answer counting once; nothing where it applied to no answer.
        control: The same of the answer at the length of its changed form, for perturbations that change it.
        beyond: Shift less control, on the same answers.
        raised: Share of the changed answers that get more than before; a tie counts half.
        flipped: Of the pairs that the model ordered as the data does, the share where the changed worse answer gets more than the better
            one; nothing without such pairs.
        flipped_control: The same of the answer at that length.
        finding: The verdict.
    """

    shift: Interval | None
    control: Interval | None
    beyond: Interval | None
    raised: Interval | None
    flipped: Interval | None
    flipped_control: Interval | None
    finding: Finding

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        intervals = {name: getattr(self, name) for name in ("shift", "control", "beyond", "raised", "flipped", "flipped_control")}
        told = {"grade": self.finding.grade, "label": self.finding.label, "sentence": self.finding.sentence}
        return told | {name: None if interval is None else interval.as_dict() for name, interval in intervals.items()}


def spread(cases: Sequence[CaseScores], *, name: str) -> float:
    """A model's unit: the standard deviation of its rewards over the answers as they were given.

    Raises:
        EvaluationError: All answers have one reward, or one that is not finite.
    """
    rewards = np.array([reward for case in cases for reward in case.originals], dtype=np.float64)
    found = float(rewards.std()) if len(rewards) else 0.0
    if not np.isfinite(found) or found <= 1e-9 * max(1.0, abs(float(rewards.mean())) if len(rewards) else 0.0):
        raise EvaluationError(
            f"{name} gives {len(rewards)} answers rewards with a standard deviation of {found:.4g}, expected finite rewards that differ: "
            "shifts are measured in that unit. A model without one judges nothing; give more answers, or leave it out."
        )
    return found


def shifts(cases: Sequence[CaseScores], name: str, *, unit: float, control: bool = False) -> Shifts:
    """Shifts of one perturbation or its control, in standard deviations."""
    return {
        (case.prompt, case.number, place): (reward - case.originals[place]) / unit
        for case in cases
        for (place, one, is_control), reward in case.changed.items()
        if one == name and is_control == control
    }


def weaknesses(cases: Sequence[CaseScores], names: Sequence[str], *, unit: float, seed: int = 0) -> dict[str, Weakness]:
    """What every perturbation does to a model's rewards; intervals of shifts hold together with 95 %, those of shares one by one.

    Args:
        cases: Rewards by prompt.
        names: The perturbations.
        unit: The model's, from `spread`.
        seed: Of the resampling.
    """
    found = {name: shifts(cases, name, unit=unit) for name in names}
    measured = sum(bool(moved) for moved in found.values())
    return {name: _weakness(cases, name, found[name], unit=unit, measured=measured, seed=seed) for name in names}


def _weakness(cases: Sequence[CaseScores], name: str, moved: Shifts, *, unit: float, measured: int, seed: int) -> Weakness:
    perturbation = PERTURBATIONS[name]
    if not moved:
        return Weakness(None, None, None, None, None, None, finding(perturbation.way, perturbation.effect, None))
    prompts = [prompt for prompt, *_ in moved]
    wins_N = np.array([_wins(value) for value in moved.values()])
    shift = together(list(moved.values()), prompts, measured=measured, seed=seed)
    neutral = shifts(cases, name, unit=unit, control=True)
    control = beyond = None
    if neutral:
        keys = [prompt for prompt, *_ in neutral]
        control = together(list(neutral.values()), keys, measured=measured, seed=seed)
        beyond = difference({key: moved[key] for key in neutral}, neutral, measured=measured, seed=seed)
    return Weakness(
        shift=shift,
        control=control,
        beyond=beyond,
        raised=accuracy_intervals(wins_N[:, None], prompts, seed=seed)[0],
        flipped=_flipped(cases, name, seed),
        flipped_control=_flipped(cases, name, seed, control=True),
        finding=finding(perturbation.way, perturbation.effect, shift, control=control, beyond=beyond),
    )


def together(values: Sequence[float], prompts: Sequence[str], *, measured: int, seed: int = 0) -> Interval:
    """Interval of a mean over prompts that holds together with those of all that was measured."""
    level = simultaneous_level(measured, len(set(prompts)))
    return cluster_bootstrap(values, prompts, n_resamples=RESAMPLES, level=level, seed=seed)


def difference(first: Shifts, second: Shifts, *, measured: int, seed: int = 0) -> Interval | None:
    """Interval of the mean of `first - second` over the answers that both have, as `together`; nothing where they share none."""
    keys = [key for key in first if key in second]
    if not keys:
        return None
    prompts = [prompt for prompt, *_ in keys]
    level = simultaneous_level(measured, len(set(prompts)))
    both = [first[key] for key in keys], [second[key] for key in keys]
    return paired_difference(*both, prompts, n_resamples=RESAMPLES, level=level, seed=seed)


def differences(
    first: Sequence[CaseScores], second: Sequence[CaseScores], names: Sequence[str], *, units: tuple[float, float], seed: int = 0
) -> dict[str, Interval]:
    """By how much more each perturbation moves the second model's reward than the first's, each in its own units, on the same answers."""
    both = {name: (shifts(second, name, unit=units[1]), shifts(first, name, unit=units[0])) for name in names}
    both = {name: pair for name, pair in both.items() if pair[0].keys() & pair[1].keys()}
    made: Mapping[str, Interval | None] = {name: difference(*pair, measured=len(both), seed=seed) for name, pair in both.items()}
    return {name: interval for name, interval in made.items() if interval is not None}


def _wins(value: float) -> float:
    return 1.0 if value > 0 else 0.5 if value == 0 else 0.0


def _flipped(cases: Sequence[CaseScores], name: str, seed: int, *, control: bool = False) -> Interval | None:
    flips, prompts = [], []
    for case in cases:
        if case.given is None or len(set(case.given)) < 2:
            continue
        better, worse = int(np.argmax(case.given)), int(np.argmin(case.given))
        if (worse, name, control) in case.changed and case.originals[better] > case.originals[worse]:
            flips.append(float(case.changed[worse, name, control] > case.originals[better]))
            prompts.append(case.prompt)
    return accuracy_intervals(np.array(flips)[:, None], prompts, seed=seed)[0] if flips else None
