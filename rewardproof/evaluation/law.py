"""The law that a measured curve of gold follows, and how far it would differ on other seeds and prompts."""

# Shapes: S training seeds, P prompts, L points of the curve.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rewardproof.statistics import GoldLaw, fit_law
from rewardproof.statistics.checks import FloatArray
from rewardproof.statistics.overoptimisation import NEAR_ZERO, Law

RESAMPLES = 1000
HEAVIEST = 10.0
"""How much more than the usual a point of a fit weighs at most: near the start gold hardly varies, and would outweigh all others."""


@dataclass(frozen=True, slots=True)
class LawRange:
    """95 % percentile ranges of a fitted law over resampled seeds and prompts; too narrow where seeds, or models, are few.

    Attributes:
        alpha: Of the gain.
        beta: Of what over-optimisation takes; a range that holds 0 does not tell whether gold bends at all.
        bends: Share of resamples in which gold has a peak between the nearest and the farthest distance that the law was fitted to: nearer
            than that nothing was measured but the start, and a peak there says that gold only falls.
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    bends: float


class MeasuredLaw(NamedTuple):
    """A fitted law and its ranges; nothing twice where there were too few points."""

    law: GoldLaw | None
    range: LawRange | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {} if self.law is None else {**asdict(self.law), "peak": self.law.peak}
        return found | ({} if self.range is None else {"range": asdict(self.range)})


def law_with_range(
    kl_SPL: FloatArray,
    gold_SPL: FloatArray,
    prompts: Sequence[str],
    law: Law,
    *,
    seed: int,
    models: Sequence[int] = (),
    above_start: bool = True,
) -> MeasuredLaw:
    """The law of gold above its start, and its ranges where prompts (and models, if there are several) are drawn again.

    A point weighs by one over the variance of its gold over prompts, and a resample draws distances with the gold that they belong to.

    Args:
        kl_SPL: KL divergences by seed, prompt and point; the first of each seed is 0. With one prompt, the same for all.
        gold_SPL: Gold by seed, prompt and point.
        prompts: Key of each prompt; equal prompts are drawn together.
        law: Which law; it is fitted to all seeds' points at once.
        seed: Of the resampling.
        models: Which seeds belong to one model and are drawn together; by default each is one of its own.
        above_start: Take off what gold is at the start, which the law says is 0; else it is fitted to gold as it is.

    Returns:
        Nothing twice where fewer than three points of all seeds together can be used.
    """
    above_SPL = gold_SPL - gold_SPL[:, :, :1] if above_start else gold_SPL
    kl_SPL = np.broadcast_to(kl_SPL, gold_SPL.shape)
    distance_SL, weight_SL = _distance(kl_SPL), _weights(above_SPL)
    nearest = NEAR_ZERO if law == "rl" else 0.0
    fitted_to = distance_SL[distance_SL > nearest]
    if len(fitted_to) < 3:
        return MeasuredLaw(None, None)
    found = fit_law(distance_SL.ravel(), above_SPL.mean(axis=1).ravel(), law, weights_L=weight_SL.ravel())
    draw = np.random.default_rng(seed)
    names, place_P = np.unique(list(prompts), return_inverse=True)
    by_prompt = [np.flatnonzero(place_P == place) for place in range(len(names))]
    labels_S = np.arange(len(gold_SPL)) if not len(models) else np.asarray(models)
    by_model = [np.flatnonzero(labels_S == label) for label in np.unique(labels_S)]
    fitted: list[GoldLaw] = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([by_prompt[place] for place in draw.integers(len(names), size=len(names))])
        runs = np.concatenate([by_model[place] for place in draw.integers(len(by_model), size=len(by_model))])
        drawn_SL = _distance(kl_SPL[runs][:, rows])
        if (drawn_SL > nearest).sum() < 3:
            continue
        gold_SL = above_SPL[runs][:, rows].mean(axis=1)
        fitted.append(fit_law(drawn_SL.ravel(), gold_SL.ravel(), law, weights_L=weight_SL[runs].ravel()))
    if not fitted:
        return MeasuredLaw(found, None)
    alpha, beta = (_range([getattr(one, name) for one in fitted]) for name in ("alpha", "beta"))
    peaks = [one.peak[0] if one.peak else math.inf for one in fitted]
    return MeasuredLaw(found, LawRange(alpha, beta, float(np.mean([fitted_to.min() < peak < fitted_to.max() for peak in peaks]))))


def _distance(kl_SPL: FloatArray) -> FloatArray:
    """Square roots of the mean over prompts; a mean log-ratio that chance made negative counts as 0."""
    return np.sqrt(np.maximum(kl_SPL.mean(axis=1), 0.0))


def _weights(gold_SPL: FloatArray) -> FloatArray:
    """One over the variance of each point's mean over prompts, none more than `HEAVIEST` times the usual."""
    variance_SL = gold_SPL.var(axis=1)
    usual = float(np.median(variance_SL[variance_SL > 0])) if (variance_SL > 0).any() else 1.0
    return usual / np.maximum(variance_SL, usual / HEAVIEST)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
