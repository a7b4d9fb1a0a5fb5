"""Thresholds sought inside one run: a stretch of training for each point of Nelder and Mead's search, the policy never set back."""

# N streams.
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewardproof.losses import Sense
from rewardproof.policy.constraints import Search
from rewardproof.scoring import Scale
from rewardproof.statistics import NelderMead
from rewardproof.statistics.checks import FloatArray


class ThresholdSearch:
    """Which thresholds hold now, when they have had their time, and which come next.

    Thresholds hold until every value is at its own, or their share of the run is spent; then they are scored, by whoever can, and `tell`
    moves on. Ones that have been scored, up to the tolerance, are not tried again. Once the simplex is no larger than that the best hold.
    """

    def __init__(self, settings: Search, start: Mapping[str, Scale], *, sense: Sense, steps: int, in_spread: bool = False) -> None:
        """Begin at the initial policy.

        Args:
            settings: How to seek.
            start: Mean and spread of each stream's scores over the initial policy's answers. Their order says nothing.
            sense: What a value does that is at its threshold.
            steps: Updates of the whole run.
            in_spread: Whether the tolerance counts in these spreads: a share of a threshold means nothing where a score's zero does not.
        """
        self.settings, self.sense = settings, sense
        self.names = tuple(sorted(start))
        self.cap = max(1, math.ceil(settings.cap * steps - 1e-9))
        first_N = np.array([start[name].mean for name in self.names])
        self._simplex = first_N + np.vstack([np.zeros(len(first_N)), np.diag([settings.step * start[name].std for name in self.names])])
        self._spread_N = np.array([start[name].std for name in self.names]) if in_spread else None
        self._begin()

    def _begin(self) -> None:
        self._moves = NelderMead(self._simplex.copy())
        self._told: list[float] = []
        self.trials: list[dict[str, Any]] = []
        self.spent = 0
        self.reached = False
        self.ended = False

    @property
    def thresholds(self) -> dict[str, float]:
        """Those to be reached now, by name."""
        best = self.best
        return dict(best["thresholds"]) if self.ended and best is not None else self._named(self._moves.asked_N)

    @property
    def best(self) -> dict[str, Any] | None:
        """The trial of the highest score so far."""
        return max(self.trials, key=lambda trial: trial["score"], default=None)

    @property
    def due(self) -> bool:
        """Whether the thresholds of the moment are to be scored."""
        return not self.ended and (self.reached or self.spent >= self.cap)

    def observe(self, values: Mapping[str, float]) -> None:
        """Take one update's values, by name."""
        self.spent += 1
        values_N, asked_N = np.array([values[name] for name in self.names]), self._moves.asked_N
        if self.sense != "equal":
            values_N = (np.minimum if self.sense == "at_least" else np.maximum)(values_N, asked_N)
        self.reached = self._near(values_N, asked_N)

    def tell(self, score: float) -> dict[str, Any]:
        """What the thresholds of the moment are worth; gives the record of their trial, and moves on to ones that are not known yet."""
        trial = {"thresholds": self.thresholds, "score": float(score), "updates": self.spent, "reached": self.reached}
        self.trials.append(trial)
        self.spent, self.reached = 0, False
        self._answer(float(score))
        # A whole shrinkage answered by what is known brings nothing new, nor would the next.
        for _ in range(2 * (len(self.names) + 2)):
            known = self._known(self._moves.asked_N)
            if known is None or self._small():
                break
            self._answer(known)
        self.ended = self._small() or self._known(self._moves.asked_N) is not None
        return trial

    def _answer(self, score: float) -> None:
        self._told.append(score)
        self._moves.tell(score)

    def _known(self, point_N: FloatArray) -> float | None:
        return next((trial["score"] for trial in self.trials if self._near(point_N, self._placed(trial["thresholds"]))), None)

    def _small(self) -> bool:
        best_N = self._moves.best.point_N
        return len(self._told) > len(self.names) and all(self._near(vertex.point_N, best_N) for vertex in self._moves.vertices)

    def _near(self, point_N: FloatArray, to_N: FloatArray) -> bool:
        own_N = np.abs(to_N) if self.settings.relative else np.ones_like(to_N)
        allowed_N = self.settings.tolerance * (own_N if self._spread_N is None else self._spread_N)
        return bool((np.abs(point_N - to_N) <= allowed_N).all())

    def _named(self, point_N: FloatArray | Sequence[float]) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.names, point_N, strict=True)}

    def _placed(self, thresholds: Mapping[str, float]) -> FloatArray:
        return np.array([thresholds[name] for name in self.names])

    def state(self) -> Mapping[str, Any]:
        """Where it began and what it has been told, from which it finds back to where it is."""
        return {
            "simplex": self._simplex.tolist(), "spread": None if self._spread_N is None else self._spread_N.tolist(),
            "told": list(self._told), "trials": list(self.trials), "spent": self.spent, "reached": self.reached, "ended": self.ended,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state; the start too, which another machine may not measure to the same bit."""
        self._simplex = np.array(state["simplex"])
        self._spread_N = None if state["spread"] is None else np.array(state["spread"])
        self._begin()
        for score in state["told"]:
            self._answer(score)
        self.trials, self.spent = list(state["trials"]), state["spent"]
        self.reached, self.ended = state["reached"], state["ended"]
