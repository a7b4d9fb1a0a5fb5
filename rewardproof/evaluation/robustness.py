"""Robustness of pair accuracy: what is left of it where one of a pair's answers is perturbed, before and after a correction.

The perturbations are the audit's; here they are the paper's four, and what counts is the pair's order, not the reward's shift.

Reference:
    REFORM, arXiv:2507.06419.
"""

# N prompts, M models.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewardproof.evaluation.accuracy import accuracy_intervals
from rewardproof.evaluation.audit import CaseScores
from rewardproof.statistics import paired_difference

SUITES: Mapping[str, str] = {
    "verbosity": "padding",
    "capitalisation": "capitals",
    "repetition": "repetition",
    "misspelling": "misspelling",
}
"""The paper's perturbations, and what the audit calls each."""
SIDES = ("preferred", "other")
"""Which of a pair's answers is perturbed."""
UNCHANGED = "unchanged"
Outcomes = dict[str, dict[tuple[str, int], float]]
"""By suite and side, `verbosity/other`, or `unchanged`: 1 for each prompt whose pair is ordered as the data does, 0.5 for a tie, else 0."""


def outcomes(cases: Sequence[CaseScores]) -> Outcomes:
    """How each prompt's best and worst answer are ordered, as they are and with one of them perturbed.

    Args:
        cases: Rewards of answers and their changed forms; prompts whose answers the data does not order are left out.

    Example:
        >>> case = CaseScores(0, "a", (1.0, 0.0), (0.7, 0.5), {(1, "padding", False): 0.9, (0, "capitals", False): 0.6})
        >>> {name: found[("a", 0)] for name, found in outcomes([case]).items() if found}
        {'unchanged': 1.0, 'verbosity/other': 0.0, 'capitalisation/preferred': 1.0}
    """
    found: Outcomes = {UNCHANGED: {}, **{f"{suite}/{side}": {} for suite in SUITES for side in SIDES}}
    for case in cases:
        if case.given is None or len(set(case.given)) < 2:
            continue
        places = int(np.argmax(case.given)), int(np.argmin(case.given))
        plain = [case.originals[place] for place in places]
        found[UNCHANGED][case.prompt, case.number] = _ordered(*plain)
        for suite, name in SUITES.items():
            for side, place in enumerate(places):
                changed = case.changed.get((place, name, False))
                if changed is not None:
                    pair = [changed if number == side else reward for number, reward in enumerate(plain)]
                    found[f"{suite}/{SIDES[side]}"][case.prompt, case.number] = _ordered(*pair)
    return found


def _ordered(preferred: float, other: float) -> float:
    return 0.5 * (1 + float(np.sign(preferred - other)))


def compared(before: Outcomes, after: Outcomes, *, seed: int = 0) -> dict[str, Any]:
    """For `report.json`: accuracy of both models by suite and side, and what the second gains on the same pairs.

    Args:
        before: Outcomes of the first model.
        after: Outcomes of the second, on the same prompts.
        seed: Of the resampling.
    """
    rows: dict[str, Any] = {}
    for name, first in before.items():
        keys = [key for key in first if key in after[name]]
        if not keys:
            continue
        both_NM = np.array([[side[name][key] for side in (before, after)] for key in keys])
        prompts = [prompt for prompt, _ in keys]
        one, other = accuracy_intervals(both_NM, prompts, seed=seed)
        gain = paired_difference(both_NM[:, 1], both_NM[:, 0], prompts, seed=seed)
        rows[name] = {"before": one.as_dict(), "after": other.as_dict(), "gain": gain.as_dict()}
    return rows
