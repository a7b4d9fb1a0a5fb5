"""Is a reward model gamed by a policy? Proxy and gold against the distance from the initial policy, over runs and prompts."""

# Shapes: S runs, E evaluations of a run, P prompts, K answers, G distances of the curve.

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.evaluation.in_text import KEY, as_text, of_text
from rewardproof.evaluation.law import LawRange, MeasuredLaw, law_with_range
from rewardproof.evaluation.win_rate import win_rate
from rewardproof.statistics import GoldLaw, Interval, crossed_interval, local_linear
from rewardproof.statistics.checks import FloatArray

POINTS = 17
"""Distances at which a curve is drawn."""
IMPLICIT = "proxy/implicit"
"""Column of the reward that a policy itself stands for; 0 for every answer at the start, so that it keeps its own unit."""
BANDWIDTH = 0.15
"""Of its smoothing, as a share of the curve's length."""
EVALUATIONS = "evaluations"
"""Folder of a policy run's evaluations."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a policy: a row a prompt, a list entry an answer, as `evaluate_policy` makes them."""

    step: int
    rows: tuple[Mapping[str, Any], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Keys of the prompts."""
        return tuple(row["prompt"] for row in self.rows)

    @property
    def proxies(self) -> tuple[str, ...]:
        """Columns of the rewards, in their order; what they are called differs from reward model to reward model."""
        return tuple(name for name in self.rows[0] if name.startswith("proxy/"))

    def table(self, name: str) -> FloatArray:
        """One quantity by prompt and answer, shape `(P, K)`."""
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def standardised(self, first: Evaluation, names: Sequence[str]) -> FloatArray:
        """Scores in standard deviations of the first evaluation's, about their mean, summed over the named columns, shape `(P, K)`."""
        return np.sum([(self.table(name) - first.table(name).mean()) / (first.table(name).std() or 1.0) for name in names], axis=0)


def read_evaluation(file: Path) -> Evaluation:
    """The evaluation in `evaluations/STEP.jsonl`."""
    return Evaluation(int(file.stem), tuple(json.loads(line) for line in file.read_text().splitlines()))


def run_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of a policy run, by step."""
    return [read_evaluation(file) for file in sorted((folder / EVALUATIONS).glob("*.jsonl"))]


@dataclass(frozen=True, slots=True)
class PolicyHacking:
    """How a reward model fares while policies optimise against it; intervals are over runs and prompts.

    Gold has its own units, the proxy standard deviations over the initial policy's answers. Curves are smoothed by local lines, up to
    where the run that went least far ends.

    Attributes:
        distance: Square roots of KL, nats.
        proxy: Proxy above its start at each.
        gold: Gold at each; empty where nobody judged.
        gain: The same above the initial policy's, prompt by prompt.
        start_gold: Gold of the initial policy.
        end_gold: Gold at the last evaluation, wherever that is.
        peak_gold: Gold at the curve's highest; `None` without gold. Chosen on the same prompts, which overstates it a little.
        peak_kl: KL there.
        fall: Gold there less gold at the curve's end, overstated likewise.
        gap: Standard deviations that the proxy promises at the curve's end, less those that gold delivers; `None` of an implicit reward.
        onset_kl: `peak_kl` where gold falls from it beyond chance, else `None`.
        end_kl: KL at the last evaluation, mean over runs.
        kl_estimator: How KL is measured: `exact` at every token of the policy's answers, `k1` from their log-ratios; empty in old rows.
        tokens: Mean answer length at the first and the last evaluation.
        law: Gold above its start against distance; `None` where there are too few points.
        law_range: Its ranges.
        n_runs: Runs.
        n_prompts: Prompts.
    """

    distance: tuple[float, ...]
    proxy: tuple[Interval, ...]
    gold: tuple[Interval, ...]
    gain: tuple[Interval, ...]
    start_gold: Interval | None
    end_gold: Interval | None
    peak_gold: Interval | None
    peak_kl: float | None
    fall: Interval | None
    gap: Interval | None
    onset_kl: float | None
    end_kl: float
    kl_estimator: str
    tokens: tuple[float, float]
    law: GoldLaw | None
    law_range: LawRange | None
    n_runs: int
    n_prompts: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        for name in ("proxy", "gold", "gain"):
            values[name] = [interval.as_dict() for interval in getattr(self, name)]
        for name in ("start_gold", "end_gold", "peak_gold", "fall", "gap"):
            one = getattr(self, name)
            values[name] = None if one is None else one.as_dict()
        if self.law is not None:
            values["law"]["peak"] = self.law.peak
        return values


class PolicyRuns:
    """Evaluations of one method's runs: reward-model seeds and policy seeds, judged on the same prompts.

    KL is the sum over an answer's tokens of the exact divergence where that was measured, else the answer's log-ratio (k1): one mean.
    """

    def __init__(
        self,
        runs: Sequence[Sequence[Evaluation]],
        *,
        weights: Sequence[float] = (),
        gold: str = "gold",
        models: Sequence[int] = (),
    ) -> None:
        """Gather runs.

        Args:
            runs: The evaluations of each, by step; the first is of the initial policy.
            weights: Of the rewards; 1 each where left out.
            gold: Name of gold's column; empty where nobody judged.
            models: Which runs are against one reward model: they share its faults, and count as one draw where there are several models.

        Raises:
            EvaluationError: There is no evaluation, or runs are judged on different prompts or at different steps.
        """
        if not runs or not all(runs):
            raise EvaluationError("Got a policy run without evaluations, expected the initial policy's at least; run align again.")
        self.steps, self.prompts = tuple(one.step for one in runs[0]), runs[0][0].prompts
        for run in runs:
            if tuple(one.step for one in run) != self.steps or any(one.prompts != self.prompts for one in run):
                raise _different()
        self.kl_estimator = "exact" if "kl_exact" in runs[0][0].rows[0] else "k1"
        self.kl_SEP = self._tables(runs, "kl_exact" if self.kl_estimator == "exact" else "kl").mean(axis=-1)
        self.tokens_SE = self._tables(runs, "tokens").mean(axis=(-1, -2))
        self.finished_SE = self._tables(runs, "finished").mean(axis=(-1, -2))
        proxies = [
            np.array([[one.table(run[0].proxies[place]) for one in run] for run in runs]) for place in range(len(runs[0][0].proxies))
        ]
        self.implicit = runs[0][0].proxies == (IMPLICIT,)
        if self.implicit:
            self.proxy_SEP = proxies[0].mean(axis=-1)
        else:
            standard = [_standardised(scores_SEPK) for scores_SEPK in proxies]
            weights = tuple(weights) or (1.0,) * len(proxies)
            self.proxy_SEP = _standardised(np.einsum("w,wsepk->sepk", np.array(weights), np.stack(standard))).mean(axis=-1)
        self.models = _models(models, len(runs))
        golds = self._tables(runs, gold) if gold else None
        self.gold_SEP = None if golds is None else golds.mean(axis=-1)
        self.wins_SEP = None if golds is None else win_rate(golds, golds[:, :1])
        self.gold_unit = 1.0 if golds is None else float(golds[:, 0].std()) or 1.0

    @property
    def proxy_name(self) -> str:
        """What the proxy is."""
        return "implicit reward" if self.implicit else "proxy"

    @property
    def proxy_unit(self) -> str:
        """What it is counted in."""
        return "β nats" if self.implicit else "standard deviations"

    def stored(self) -> dict[str, Any]:
        """Plain values from which `joined` makes the same runs, to five digits: rows of numbers as text, one an evaluation."""
        tables = {
            "kl": self.kl_SEP,
            "proxy": self.proxy_SEP,
            "gold": self.gold_SEP,
            "wins": self.wins_SEP,
            "tokens": self.tokens_SE,
            "finished": self.finished_SE,
        }
        return {
            "steps": list(self.steps),
            "prompts": " ".join(key[:KEY] for key in self.prompts),
            "gold_unit": self.gold_unit,
            "implicit": self.implicit,
            "kl_estimator": self.kl_estimator,
            **{name: None if table is None else [as_text(run) for run in table] for name, table in tables.items()},
        }

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Any]], *, models: Sequence[int] = ()) -> PolicyRuns:
        """Runs that `stored` gave, those of all parts together.

        Args:
            parts: As `stored` gave them.
            models: As for the constructor, one a run of any part.

        Raises:
            EvaluationError: They are of different prompts or steps.
        """
        made = cls.__new__(cls)
        made.steps, made.prompts = tuple(parts[0]["steps"]), tuple(parts[0]["prompts"].split())
        if any((tuple(part["steps"]), tuple(part["prompts"].split())) != (made.steps, made.prompts) for part in parts):
            raise _different()
        kl, proxy, tokens, finished = (
            np.array([of_text(run) for part in parts for run in part[name]]) for name in ("kl", "proxy", "tokens", "finished")
        )
        made.kl_SEP, made.proxy_SEP, made.tokens_SE, made.finished_SE = kl, proxy, tokens[..., 0], finished[..., 0]
        judged = all(part["gold"] is not None for part in parts)
        made.gold_SEP = np.array([of_text(run) for part in parts for run in part["gold"]]) if judged else None
        compared = all(part.get("wins") is not None for part in parts)
        made.wins_SEP = np.array([of_text(run) for part in parts for run in part["wins"]]) if compared else None
        made.implicit = any(part.get("implicit", False) for part in parts)
        estimators = {part.get("kl_estimator", "") for part in parts}
        made.kl_estimator = estimators.pop() if len(estimators) == 1 else "mixed"
        made.gold_unit = float(np.sqrt(np.mean([part["gold_unit"] ** 2 for part in parts])))
        made.models = _models(models, len(kl))
        return made

    @staticmethod
    def _tables(runs: Sequence[Sequence[Evaluation]], name: str) -> FloatArray:
        return np.array([[one.table(name) for one in run] for run in runs])

    @property
    def distance_SE(self) -> FloatArray:
        """Square root of the mean KL at each evaluation; a mean log-ratio that chance made negative counts as 0."""
        return np.sqrt(np.maximum(self.kl_SEP.mean(axis=-1), 0.0))

    @property
    def reach(self) -> float:
        """Distance up to which all runs went."""
        return float(self.distance_SE.max(axis=1).min())

    def table(self) -> list[dict[str, Any]]:
        """A record an evaluation: means over runs, prompts and answers with their intervals."""
        return [
            {
                "step": step,
                "kl": self._interval(self.kl_SEP[:, place]).as_dict(),
                "proxy": self._interval(self.proxy_SEP[:, place]).as_dict(),
                "gold": None if self.gold_SEP is None else self._interval(self.gold_SEP[:, place]).as_dict(),
                "tokens": float(self.tokens_SE[:, place].mean()),
                "finished": float(self.finished_SE[:, place].mean()),
            }
            for place, step in enumerate(self.steps)
        ]

    def gain(self) -> tuple[Interval, Interval | None]:
        """Proxy and gold at the last evaluation less those at the first, on the same prompts."""
        gold = None if self.gold_SEP is None else self._interval(self.gold_SEP[:, -1] - self.gold_SEP[:, 0])
        return self._interval(self.proxy_SEP[:, -1] - self.proxy_SEP[:, 0]), gold

    def minus(self, other: PolicyRuns, *, distance: float | None = None) -> Interval | None:
        """Gold less another method's, run by run on the same prompts; `None` where runs do not pair.

        Args:
            other: The other method's runs.
            distance: Where on both curves; by default at the last evaluation, however far each has gone by then.
        """
        if self.gold_SEP is None or other.gold_SEP is None or len(self.gold_SEP) != len(other.gold_SEP) or self.prompts != other.prompts:
            return None
        if distance is None:
            return self._interval(self.gold_SEP[:, -1] - other.gold_SEP[:, -1])
        return self._interval(self._on_curve(self.gold_SEP, distance) - other._on_curve(other.gold_SEP, distance))

    def gap(self, distance: float) -> Interval | None:
        """Standard deviations that the proxy promises at a distance, less those that gold delivers; `None` of an implicit reward."""
        if self.gold_SEP is None or self.implicit:
            return None
        promised_SP = self._on_curve(self.proxy_SEP - self.proxy_SEP[:, :1], distance)
        return self._interval(promised_SP - (self._on_curve(self.gold_SEP, distance) - self.gold_SEP[:, 0]) / self.gold_unit)

    def _on_curve(self, table_SEP: FloatArray, distance: float) -> FloatArray:
        """A quantity on each run's smoothed curve at one distance, shape `(S, P)`."""
        return self._curve(table_SEP, np.array([distance]))[:, :, 0]

    def _curve(self, table_SEP: FloatArray, grid_G: FloatArray) -> FloatArray:
        """A quantity on each run's smoothed curve, shape `(S, P, G)`; the last of the distances sets how wide it is smoothed."""
        width = BANDWIDTH * (grid_G[-1] or 1.0)
        weights_SGE = np.stack([local_linear(row, grid_G, width) for row in self.distance_SE])
        return np.einsum("sge,sep->spg", weights_SGE, table_SEP)

    def laws(self, *, seed: int = 0) -> dict[str, MeasuredLaw]:
        """The law of RL fitted to gold and to the win rate over the initial policy's answers, above their start and as they are.

        The law says 0 at the start, where the win rate is a half: what is fitted as it is has a wrong intercept, and is told beside the
        other because it is what is published. Left out where too few points can be used.
        """
        measured, kl_SPE = {"gold": self.gold_SEP, "win rate": self.wins_SEP}, self.kl_SEP.transpose(0, 2, 1)
        found = {
            f"{name}, {'above its start' if above else 'as it is'}": law_with_range(
                kl_SPE, table.transpose(0, 2, 1), self.prompts, "rl", seed=seed, models=self.models, above_start=above
            )
            for name, table in measured.items()
            if table is not None
            for above in (True, False)
        }
        return {name: one for name, one in found.items() if one.law is not None}

    def summary(self, *, seed: int = 0) -> PolicyHacking:
        """Curves up to where the run that went least far ends, losses and the law, with intervals.

        Args:
            seed: Of the resampling behind the law's ranges.
        """
        grid_G = np.linspace(0.0, self.reach, POINTS)
        proxy_SPG = self._curve(self.proxy_SEP - self.proxy_SEP[:, :1], grid_G)
        gold_SPG = None if self.gold_SEP is None else self._curve(self.gold_SEP, grid_G)
        of_gold = self._of_gold(grid_G, gold_SPG, seed)
        return PolicyHacking(
            distance=tuple(grid_G.tolist()),
            proxy=tuple(self._interval(proxy_SPG[:, :, place]) for place in range(POINTS)),
            end_kl=float(self.kl_SEP[:, -1].mean()),
            kl_estimator=self.kl_estimator,
            tokens=(float(self.tokens_SE[:, 0].mean()), float(self.tokens_SE[:, -1].mean())),
            n_runs=len(self.kl_SEP),
            n_prompts=len(self.prompts),
            **of_gold,
        )

    def _of_gold(self, grid_G: FloatArray, gold_SPG: FloatArray | None, seed: int) -> dict[str, Any]:
        names = ("start_gold", "end_gold", "peak_gold", "peak_kl", "fall", "gap", "onset_kl", "law", "law_range")
        if gold_SPG is None or self.gold_SEP is None:
            return {"gold": (), "gain": (), **dict.fromkeys(names)}
        peak = int(gold_SPG.mean(axis=(0, 1)).argmax())
        fall = self._interval(gold_SPG[:, :, peak] - gold_SPG[:, :, -1])
        peak_kl = float(grid_G[peak] ** 2)
        kl_SPE, gold_SPE = self.kl_SEP.transpose(0, 2, 1), self.gold_SEP.transpose(0, 2, 1)
        law, ranges = law_with_range(kl_SPE, gold_SPE, self.prompts, "rl", seed=seed, models=self.models)
        return {
            "gold": tuple(self._interval(gold_SPG[:, :, place]) for place in range(POINTS)),
            "gain": tuple(self._interval(gold_SPG[:, :, place] - self.gold_SEP[:, 0]) for place in range(POINTS)),
            "start_gold": self._interval(self.gold_SEP[:, 0]),
            "end_gold": self._interval(self.gold_SEP[:, -1]),
            "peak_gold": self._interval(gold_SPG[:, :, peak]),
            "peak_kl": peak_kl,
            "fall": fall,
            "gap": self.gap(float(grid_G[-1])),
            "onset_kl": peak_kl if fall.low > 0 else None,
            "law": law,
            "law_range": ranges,
        }

    def _interval(self, value_SP: FloatArray) -> Interval:
        runs, prompts = np.indices(value_SP.shape)
        return crossed_interval(
            value_SP.ravel(), [self.models[run] for run in runs.ravel()], [self.prompts[place] for place in prompts.ravel()]
        )


def _models(given: Sequence[int], n_runs: int) -> tuple[int, ...]:
    """Which reward model each run is against, where there are several; else every run is a draw of its own."""
    return tuple(given) if len(set(given)) > 1 else tuple(range(n_runs))


def _different() -> EvaluationError:
    return EvaluationError(
        "Got policy runs that were judged on different prompts or after different numbers of updates, expected the same: their curves "
        "could not be averaged. Give runs of the same settings."
    )


def _standardised(scores_SEPK: FloatArray) -> FloatArray:
    """Scores in standard deviations of the initial policy's, about their mean, run by run."""
    first_S = scores_SEPK[:, 0].reshape(len(scores_SEPK), -1)
    mean_S, std_S = first_S.mean(axis=1), first_S.std(axis=1)
    if not (std_S > 0).all():
        raise EvaluationError(
            "Got a reward that is the same for all answers of the initial policy, expected scores that differ: it has no unit. Check it."
        )
    shape = (-1, 1, 1, 1)
    return (scores_SEPK - mean_S.reshape(shape)) / std_S.reshape(shape)
