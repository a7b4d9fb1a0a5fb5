"""Best of n in a stress test: every model picks among the same answers; gold, which none of them has seen, judges the picks.

Scores are kept as they come, so that an interrupted run goes on, and so that curves can be drawn again without a model.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import Progress, RunDirectory, silent, writing
from rewardproof.data import Group
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import BestOfNRuns, Hacking
from rewardproof.models.precision import Precision
from rewardproof.report import format_interval
from rewardproof.scoring import RetryCount, Scorer, kept_retries, load_scorer, share_trunks
from rewardproof.stages.stress_picks import Picks, picks_of
from rewardproof.stages.stress_pools import Pools, whole_rows
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rewardproof.stages.stress import Stress

CHUNK = 16
"""Pools scored and kept together; an interruption loses no more."""
Scores = list[tuple[float, ...]]


@dataclass(slots=True)
class BestOfN:
    """What best of n found.

    Attributes:
        pools: Prompts with their answers.
        picks: Of each method's first model.
        methods: Places of each method's models.
        hacking: By method.
        gain: Gold at the largest n less the first method's, where seeds pair.
        seconds: Scoring time by model.
        retries: Requests repeated, by scorer; those without any are left out.
    """

    pools: Pools
    picks: dict[str, Picks]
    methods: Mapping[str, Sequence[int]]
    hacking: dict[str, Hacking]
    gain: dict[str, Interval | None]
    seconds: list[float]
    retries: dict[str, int]

    def verdict(self) -> str:
        """Gold at the largest n, in words."""
        n = next(iter(self.hacking.values())).ns[-1]
        golds = ", ".join(f"{name} {format_interval(one.gold[-1], percent=False)}" for name, one in self.hacking.items())
        falling = [name for name, one in self.hacking.items() if one.fall.low > 0]
        first = next(iter(self.hacking))
        parted = [name for name, gain in self.gain.items() if gain is not None and (gain.low > 0 or gain.high < 0)]
        verdict = f"gold of the best of {n}: {golds} on {len(self.pools.groups)} prompts; "
        verdict += f"gold falls beyond its peak for {', '.join(falling)}" if falling else "gold falls beyond chance for none"
        if self.gain:
            verdict += f"; different from {first} beyond chance: {', '.join(parted) or 'none'}"
        return verdict

    def results(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            "rows": self.pools.rows,
            "retries": self.retries,
            "answers": dict(sorted(Counter(len(group.answers) for group in self.pools.groups).items())),
            "methods": {
                name: {
                    **one.as_dict(),
                    "gain_over_first": gain.as_dict() if (gain := self.gain.get(name)) is not None else None,
                    "scoring_seconds": [round(self.seconds[place], 2) for place in self.methods[name]],
                }
                for name, one in self.hacking.items()
            },
        }


def best_of_n_stress(
    config: Stress, pools: Pools, methods: Mapping[str, Sequence[int]], directory: RunDirectory, progress: Progress
) -> BestOfN:
    """Score the pools with gold and every model, let each model pick, and judge the picks.

    Raises:
        EvaluationError: A score is not finite, or a model gives all answers the same one.
    """
    gold, _ = _scored(directory, "gold", config.gold, _loading(config.gold, config), pools.groups, progress)
    scores: list[Scores] = []
    seconds: list[float] = []
    picks: dict[str, Picks] = {}
    first_of = {places[0]: method for method, places in methods.items()}
    for place, (name, spec) in enumerate(_numbered(config.models)):
        scorer = _loading(spec, config)
        made, spent = _scored(directory, name, spec, scorer, pools.groups, progress)
        scores.append(made)
        seconds.append(spent)
        if place in first_of:
            words = directory.path / "scores" / f"{name}.words.json"
            picks[first_of[place]] = picks_of(pools.groups, made, gold, scorer, words, name=spec)
    keys = [group.prompt_key for group in pools.groups]
    runs = {
        name: BestOfNRuns([scores[place] for place in places], gold, pools.ns, keys, lengths=pools.lengths)
        for name, places in methods.items()
    }
    first = next(iter(runs))
    gain = {name: made.minus(runs[first]) for name, made in runs.items() if name != first}
    hacking = {name: made.summary(seed=config.seed) for name, made in runs.items()}
    asked = {spec: kept_retries(directory.path / _retries_name(name)) for name, spec in (("gold", config.gold), *_numbered(config.models))}
    return BestOfN(pools, picks, methods, hacking, gain, seconds, {spec: count for spec, count in asked.items() if count})


def _numbered(models: Sequence[str]) -> list[tuple[str, str]]:
    return [(str(number), spec) for number, spec in enumerate(models)]


def _retries_name(name: str) -> str:
    return f"scores/{name}.retries"


def _loading(spec: str, config: Stress) -> Callable[[], Scorer]:
    """Gives a scorer, loaded when it is first asked for."""
    return cache(partial(sharing_trunk, spec, precision=config.precision, layers=config.layers, limit_gb=config.trunk_cache_gb))


def _scored(
    directory: RunDirectory, name: str, spec: str, scorer: Callable[[], Scorer], pools: Sequence[Group], progress: Progress
) -> tuple[Scores, float]:
    """Scores of all pools by one scorer, from `scores/NAME.jsonl` as far as they are there, and the seconds that this call spent."""
    file = directory.path / "scores" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    kept = _kept(file, pools)
    started = time.perf_counter()
    if len(kept) < len(pools):
        with RetryCount(directory, _retries_name(name), [scorer()]).following(progress) as told:
            kept = score_pools(scorer(), file, pools, progress=lambda _, done, total: told(f"scoring with {spec}", done, total))
    return kept, time.perf_counter() - started


def score_pools(scorer: Scorer, file: Path, pools: Sequence[Group], *, progress: Progress = silent) -> Scores:
    """Scores of all pools, written to a file as they come; those that an interrupted run wrote there are taken as they are.

    Raises:
        EvaluationError: The file has scores of other pools.
    """
    kept = _kept(file, pools)
    with writing(file), file.open("a") as stream:
        for start in range(len(kept), len(pools), CHUNK):
            chunk = pools[start : start + CHUNK]
            made = scorer.score(chunk)
            rows = ({"prompt": group.prompt_key, "scores": row} for group, row in zip(chunk, made, strict=True))
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
            stream.flush()
            kept += made
            progress("scoring", len(kept), len(pools))
    return kept


def _kept(file: Path, pools: Sequence[Group]) -> Scores:
    """Scores that an interrupted run wrote whole.

    Raises:
        EvaluationError: They are of other pools.
    """
    rows = whole_rows(file)
    if len(rows) > len(pools) or any(
        row["prompt"] != group.prompt_key or len(row["scores"]) != len(group.answers) for row, group in zip(rows, pools, strict=False)
    ):
        raise EvaluationError(
            f"{file} holds scores of other pools than those read now, expected the same: the data has changed since. Restore it, or pass "
            "--overwrite to start again."
        )
    return [tuple(row["scores"]) for row in rows]


def sharing_trunk(spec: str, *, precision: Precision, layers: str, limit_gb: float) -> Scorer:
    """A scorer whose layers below those that `layers` names are computed once for all models that have them in common."""
    scorer = load_scorer(spec, precision=precision)
    share_trunks(scorer, layers, limit_gb=limit_gb)
    return scorer
