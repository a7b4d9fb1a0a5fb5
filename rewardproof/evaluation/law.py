"""The law that a measured curve of gold follows, and how far it would differ on other seeds and prompts."""

# Shapes: S training seeds, P prompts, L points of the curve.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardproof.statistics import GoldLaw, fit_law
from rewardproof.statistics.checks import FloatArray
from rewardproof.statistics.overoptimisation import NEAR_ZERO, Law

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class LawRange:
    """95 % percentile ranges of a fitted law over resampled seeds and prompts.

    Attributes:
        alpha: Of the gain.
        beta: Of what over-optimisation takes; a range that holds 0 does not tell whether gold bends at all.
        bends: Share of resamples in which gold has a peak inside the measured distances.
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    bends: float


def law_with_range(
    distance_L: FloatArray, gold_SPL: FloatArray, prompts: Sequence[str], law: Law, *, seed: int
) -> tuple[GoldLaw | None, LawRange | None]:
    """The law of the mean curve above its start, and its ranges where prompts (and seeds, if there are several) are drawn again.

    Args:
        distance_L: Square roots of KL divergences.
        gold_SPL: Gold by seed, prompt and point.
        prompts: Key of each prompt; equal prompts are drawn together.
        law: Which law.
        seed: Of the resampling.

    Returns:
        Nothing twice where fewer than three points can be used.
    """
    above_SPL = gold_SPL - gold_SPL[:, :, :1]
    if (distance_L > (NEAR_ZERO if law == "rl" else 0.0)).sum() < 3:
        return None, None
    found = fit_law(distance_L, above_SPL.mean(axis=(0, 1)), law)
    draw = np.random.default_rng(seed)
    names, place_P = np.unique(list(prompts), return_inverse=True)
    by_prompt = [np.flatnonzero(place_P == place) for place in range(len(names))]
    fitted: list[GoldLaw] = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([by_prompt[place] for place in draw.integers(len(names), size=len(names))])
        models = draw.integers(len(gold_SPL), size=len(gold_SPL))
        fitted.append(fit_law(distance_L, above_SPL[models][:, rows].mean(axis=(0, 1)), law))
    alpha, beta = (_range([getattr(one, name) for one in fitted]) for name in ("alpha", "beta"))
    peaks = [one.peak[0] if one.peak else math.inf for one in fitted]
    return found, LawRange(alpha, beta, float(np.mean([peak < distance_L[-1] for peak in peaks])))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
