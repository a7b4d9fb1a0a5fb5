"""Proxy points: how far each reward may be raised before gold falls, found where a surface through evaluations of policies is highest."""

# M evaluations, N rewards, Q places of a grid.
from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rewardproof.config import Section, Strings
from rewardproof.errors import EvaluationError
from rewardproof.evaluation.policy_runs import Evaluation
from rewardproof.statistics import Surface, density, pearson
from rewardproof.statistics.checks import FloatArray

PROXY = "proxy/"


class ProxyPoints(Section):
    """How proxy points are found in what earlier policy runs came to."""

    runs: Strings = ()
    """Directories of `align` with the same rewards and with gold, judged on prompts that nothing is reported on later."""
    degree: Annotated[int, Field(ge=1)] = 10
    """Of the polynomial; it takes as many evaluations as it has terms, 66 for two rewards."""
    density: Annotated[float, Field(ge=0)] = 50.0
    """Least density of evaluations where the surface is believed, per unit of every reward (the paper's, for two rewards from 0 to 1)."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same as a share of the highest density, for rewards of other units; then write density=0."""


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A run that proxy points are found in.

    Attributes:
        evaluations: Its evaluations.
        weights: Weight of each reward, by name.
    """

    evaluations: Sequence[Evaluation]
    weights: Mapping[str, float]

    def alone(self, name: str) -> bool:
        """Whether it optimised this reward and no other."""
        return {other for other, weight in self.weights.items() if weight} == {name}


@dataclass(frozen=True, slots=True)
class FoundProxyPoints:
    """Where gold is highest, over all rewards together and over each by itself.

    Attributes:
        names: Of the rewards.
        points_MN: Mean of each reward at every evaluation.
        gold_M: Mean gold there.
        surface: Fitted to them.
        least_density: Where it is lower the surface is not believed.
        joint_N: The proxy points: where the surface is highest.
        range_N2: Lowest and highest of them when each run in turn is left out; NaN where too few evaluations would be left.
        gold: The surface's height there.
        alone_N: Where a curve of gold over one reward is highest, by the runs that optimised it alone, else by all.
        correlation_NN: Of the rewards' means over the evaluations.
        prompts: Keys of the prompts that all this was judged on.
    """

    names: tuple[str, ...]
    points_MN: FloatArray
    gold_M: FloatArray
    surface: Surface
    least_density: float
    joint_N: FloatArray
    range_N2: FloatArray
    gold: float
    alone_N: FloatArray
    correlation_NN: FloatArray
    prompts: frozenset[str]

    @property
    def thresholds(self) -> dict[str, float]:
        """The proxy points by name."""
        return dict(zip(self.names, self.joint_N.tolist(), strict=True))

    def believed(self, places_QN: FloatArray) -> FloatArray:
        """The surface's height at places, NaN where too few evaluations lie, shape `(Q,)`."""
        return np.where(density(self.points_MN, places_QN) >= self.least_density, self.surface.at(places_QN), np.nan)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "proxy_points": self.thresholds,
            "without_a_run": {name: low_high.tolist() for name, low_high in zip(self.names, self.range_N2, strict=True)},
            "alone": dict(zip(self.names, self.alone_N.tolist(), strict=True)),
            "gold": self.gold,
            "residual": self.surface.residual,
            "correlation": {
                name: dict(zip(self.names, row, strict=True)) for name, row in zip(self.names, self.correlation_NN.tolist(), strict=True)
            },
            "evaluations": len(self.gold_M),
            "prompts": len(self.prompts),
        }


def find_proxy_points(runs: Sequence[SeenRun], settings: ProxyPoints, *, gold: str = "gold") -> FoundProxyPoints:
    """Fit the surface and find its summit.

    Args:
        runs: Policy runs of the same rewards.
        settings: How.
        gold: Name of gold's column.

    Raises:
        EvaluationError: Runs without gold or of different rewards, too few evaluations, or none dense enough anywhere.

    Reference:
        Moskovitz et al., arXiv:2310.04373, section 3.
    """
    names = _names(runs, gold)
    tables = [_means(run, names, gold) for run in runs]
    points_MN, gold_M = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    surface, least, joint_N = _summit(points_MN, gold_M, settings)
    alone = [
        _alone([table for run, table in zip(runs, tables, strict=True) if run.alone(name)] or tables, place, settings)
        for place, name in enumerate(names)
    ]
    return FoundProxyPoints(
        names=names,
        points_MN=points_MN,
        gold_M=gold_M,
        surface=surface,
        least_density=least,
        joint_N=joint_N,
        range_N2=_without_each(tables, settings),
        gold=float(surface.at(joint_N[None])[0]),
        alone_N=np.array(alone),
        correlation_NN=np.array([[pearson(one, other) for other in points_MN.T] for one in points_MN.T]),
        prompts=frozenset(key for run in runs for one in run.evaluations for key in one.prompts),
    )


def _names(runs: Sequence[SeenRun], gold: str) -> tuple[str, ...]:
    if not runs or not all(run.evaluations for run in runs):
        raise EvaluationError("Got no run with evaluations, expected at least one: proxy points are found in what runs came to. Name runs.")
    first = runs[0].evaluations[0]
    for run in runs:
        row = run.evaluations[0].rows[0]
        if gold not in row:
            raise EvaluationError(
                "Got a run that nobody judged, expected gold beside its rewards: how far a reward may be raised is where gold is highest. "
                "Run align with gold=."
            )
        if set(run.evaluations[0].proxies) != set(first.proxies):
            raise EvaluationError(
                f"Got runs of the rewards {', '.join(first.proxies)} and {', '.join(run.evaluations[0].proxies)}, expected the same names, "
                "since points in different coordinates make no surface. Give every run all rewards, with weight 0 what it shall not raise."
            )
    return tuple(name.removeprefix(PROXY) for name in first.proxies)


def _means(run: SeenRun, names: Sequence[str], gold: str) -> tuple[FloatArray, FloatArray]:
    points = [[one.table(PROXY + name).mean() for name in names] for one in run.evaluations]
    return np.array(points), np.array([one.table(gold).mean() for one in run.evaluations])


def _alone(tables: Sequence[tuple[FloatArray, FloatArray]], place: int, settings: ProxyPoints) -> float:
    """Where gold is highest along one reward: the same fit in one dimension, of a lower degree where there are too few evaluations."""
    line_M1, gold_M = np.concatenate([points[:, [place]] for points, _ in tables]), np.concatenate([golds for _, golds in tables])
    bound = settings.density ** (1 / tables[0][0].shape[1])
    settings = settings.model_copy(update={"density": bound, "degree": min(settings.degree, len(gold_M) - 1)})
    return float(_summit(line_M1, gold_M, settings)[2][0])


def _summit(points_MN: FloatArray, gold_M: FloatArray, settings: ProxyPoints) -> tuple[Surface, float, FloatArray]:
    """The surface, the least density at which it is believed, and its highest believed place: on a grid, or at an evaluation."""
    surface = Surface.fitted(points_MN, gold_M, degree=settings.degree)
    places_QN = np.concatenate((surface.grid(), points_MN))
    density_Q = density(points_MN, places_QN)
    least = max(settings.density, settings.share * float(density_Q.max()))
    if not (density_Q >= least).any():
        raise EvaluationError(
            f"Got evaluations of a density of at most {density_Q.max():.3g} per unit of every reward, expected {least:.3g} somewhere: with "
            "rewards in other units the published bound means nothing. Write density=0 and share=0.05, a share of the highest."
        )
    height_Q = np.where(density_Q >= least, surface.at(places_QN), -np.inf)
    return surface, least, places_QN[int(height_Q.argmax())]


def _without_each(tables: Sequence[tuple[FloatArray, FloatArray]], settings: ProxyPoints) -> FloatArray:
    """How far the proxy points move when one run is left out, shape `(N, 2)`."""
    found: list[FloatArray] = []
    for left_out in range(len(tables)) if len(tables) > 1 else ():
        kept = [table for place, table in enumerate(tables) if place != left_out]
        points_MN, gold_M = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        with contextlib.suppress(EvaluationError):
            found.append(_summit(points_MN, gold_M, settings)[2])
    if not found or len(found) < len(tables):
        return np.full((tables[0][0].shape[1], 2), np.nan)
    return np.stack((np.min(found, axis=0), np.max(found, axis=0)), axis=1)
