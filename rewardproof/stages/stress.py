"""`rewardproof stress MODEL… OUT gold=…`: optimise against each reward model, and see whether what is wanted rises along.

Every model picks among the same answers; gold, which none of them has seen, judges the picks. Scores are kept as they come, so that an
interrupted run goes on, and so that curves can be drawn again without a model.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent, writing
from rewardproof.config import Integers, Section, Strings
from rewardproof.data import Group, read_groups
from rewardproof.errors import ConfigError, DataError, EvaluationError
from rewardproof.evaluation import BestOfNRuns, Hacking
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import select_layers
from rewardproof.scoring import ModelEnsemble, Scorer, load_scorer, method_names
from rewardproof.statistics import Interval

CHUNK = 16
"""Pools scored and kept together; an interruption loses no more."""
Pools = list[tuple[float, ...]]


class Stress(Section):
    """Reward models to optimise against, the answers to pick from, and who judges the picks."""

    models: Strings
    """Reward models or ensembles: directories or hub ids."""
    names: Strings = ()
    """What reports call each of them; models of one name are training seeds of one method. By default the run's directory, less a number at
    its end."""
    gold: str = "embedded:checkable"
    """Who judges: `embedded:checkable`, `scores` (those of the data), a reward model, an ensemble, or a server's address."""
    pool: Strings = ("embedded:checkable/pool64",)
    """Prompts with many answers each: files, folders, hub ids or `embedded:…`."""
    methods: Strings = ("bon",)
    """How to optimise: `bon`, best of n."""
    n: Integers = ()
    """Values of n; by default the powers of two below the smallest pool."""
    prompts: Annotated[int, Field(ge=0)] = 0
    """At most so many prompts, chosen by a hash of their text; 0 takes all."""
    layers: str = "all"
    """Layers in which the models differ, as they were trained (`all`, or `top:K`): those below are computed once for all."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for the activations of the layers below; 0 runs every model whole."""
    precision: Precision = "auto"
    """Of the models' forward passes."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop"] = "fail"
    """Stop at a row that cannot be scored, or leave it out and count it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the resampling behind the law's ranges."""


@dataclass(slots=True)
class Stressed:
    """What a run found.

    Attributes:
        pools: Prompts with their answers.
        gold: Gold scores.
        scores: Scores by model, in the order of `Stress.models`.
        methods: Places of each method's models.
        hacking: By method.
        gain: Gold at the largest n less the first method's, where seeds pair.
        seconds: Scoring time by model.
    """

    pools: tuple[Group, ...]
    gold: Pools
    scores: list[Pools]
    methods: dict[str, list[int]]
    hacking: dict[str, Hacking]
    gain: dict[str, Interval | None]
    seconds: list[float]


def run(config: Stress, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Report:
    """Score the pools with every model and gold, let each model pick, and judge the picks.

    Args:
        config: Models, pools and gold.
        out: Run directory: `scores/` has every score, `report.html` the curves.
        overwrite: Delete an earlier run there.
        resume: Go on after the last scores that an interrupted run kept.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; its headline compares gold at the largest n.

    Raises:
        ConfigError: Names or methods that mean nothing.
        DataError: Pools that cannot be read, or have too few answers.
        EvaluationError: A score is not finite, or a model gives all answers the same one.
    """
    from rewardproof.stages.stress_page import write_stress_page

    methods = _methods(config)
    require_free(out, overwrite=overwrite, resume=resume)
    refuse_inputs_inside(out, [*config.models, *config.pool, config.gold])
    found = read_groups(config.pool, format=config.format, text=config.text, on_bad=config.on_bad, purpose="score")
    pools = tuple(sorted(found.groups, key=lambda group: group.prompt_key)[: config.prompts or None])
    ns = _sizes(config, pools)
    directory = RunDirectory(out, config, overwrite=overwrite, resume=resume)
    gold, _ = _scored(directory, "gold", config.gold, pools, config, progress)
    scores: list[Pools] = []
    seconds: list[float] = []
    for number, spec in enumerate(config.models):
        made, spent = _scored(directory, str(number), spec, pools, config, progress)
        scores.append(made)
        seconds.append(spent)
    keys = [group.prompt_key for group in pools]
    runs = {name: BestOfNRuns([scores[place] for place in places], gold, ns, keys) for name, places in methods.items()}
    first = next(iter(runs))
    gain = {name: made.minus(runs[first]) for name, made in runs.items() if name != first}
    hacking = {name: made.summary(seed=config.seed) for name, made in runs.items()}
    stressed = Stressed(pools, gold, scores, methods, hacking, gain, seconds)
    report = directory.finish(_verdict(stressed), _results(stressed, found.counts.read, dict(found.counts.bad)))
    write_stress_page(directory, config, stressed, report.headline)
    return report


def _methods(config: Stress) -> dict[str, list[int]]:
    """Places of the models of each method, in order of appearance."""
    if unknown := [name for name in config.methods if name != "bon"]:
        raise ConfigError(f"methods={','.join(unknown)}: expected bon (best of n), the way to optimise that there is; write methods=bon.")
    if config.names and len(config.names) != len(config.models):
        raise ConfigError(f"names has {len(config.names)} entries for {len(config.models)} models, expected one each; correct names=.")
    names = list(config.names) or method_names(config.models)
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places


def _sizes(config: Stress, pools: Sequence[Group]) -> tuple[int, ...]:
    smallest = min(pools, key=lambda group: len(group.answers))
    count = len(smallest.answers)
    sizes = config.n or tuple(2**power for power in range(20) if 2**power < count)
    if count < 2 or max(sizes) >= count:
        raise DataError(
            f"{smallest.origin or smallest.id} has {count} answers for n up to {max(sizes, default=1)}, expected more answers than "
            "the largest n: at n = N one answer a prompt decides and the variance explodes. Give larger pools, or lower n."
        )
    return tuple(sizes)


def _scored(
    directory: RunDirectory, name: str, spec: str, pools: Sequence[Group], config: Stress, progress: Progress
) -> tuple[Pools, float]:
    """Scores of all pools by one scorer, from `scores/NAME.jsonl` as far as they are there, and the seconds that this call spent."""
    file = directory.path / "scores" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    kept = _kept(file, pools)
    started = time.perf_counter()
    if len(kept) < len(pools):
        scorer = _loaded(spec, config)
        with writing(file), file.open("a") as stream:
            for start in range(len(kept), len(pools), CHUNK):
                chunk = pools[start : start + CHUNK]
                made = scorer.score(chunk)
                stream.write(
                    "".join(json.dumps({"prompt": group.prompt_key, "scores": row}) + "\n" for group, row in zip(chunk, made, strict=True))
                )
                stream.flush()
                kept += made
                progress(f"scoring with {spec}", len(kept), len(pools))
        if retries := getattr(scorer, "retries", 0):
            directory.log({"phase": "scoring", "scorer": spec, "retries": retries})
    return kept, time.perf_counter() - started


def _kept(file: Path, pools: Sequence[Group]) -> Pools:
    """Scores that an interrupted run wrote whole; what was cut off is removed.

    Raises:
        EvaluationError: They are of other pools.
    """
    if not file.exists():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        file.write_bytes(b"".join(whole))
    rows = [json.loads(line) for line in whole]
    if len(rows) > len(pools) or any(
        row["prompt"] != group.prompt_key or len(row["scores"]) != len(group.answers) for row, group in zip(rows, pools, strict=False)
    ):
        raise EvaluationError(
            f"{file} holds scores of other pools than those read now, expected the same: the data has changed since. Restore it, or pass "
            "--overwrite to start again."
        )
    return [tuple(row["scores"]) for row in rows]


def _loaded(spec: str, config: Stress) -> Scorer:
    scorer = load_scorer(spec, precision=config.precision)
    models = [scorer] if isinstance(scorer, RewardModel) else list(scorer.models.values()) if isinstance(scorer, ModelEnsemble) else []
    for model in models:
        first = select_layers(config.layers, model.model.config.num_hidden_layers).start if config.layers != "all" else 0
        model.share_trunk(first, limit_gb=config.trunk_cache_gb)
    return scorer


def _verdict(found: Stressed) -> str:
    def shown(interval: Interval) -> str:
        return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

    n = next(iter(found.hacking.values())).ns[-1]
    golds = ", ".join(f"{name} {shown(one.gold[-1])}" for name, one in found.hacking.items())
    falling = [name for name, one in found.hacking.items() if one.fall.low > 0]
    first = next(iter(found.hacking))
    parted = [name for name, gain in found.gain.items() if gain is not None and (gain.low > 0 or gain.high < 0)]
    verdict = f"gold of the best of {n}: {golds} on {len(found.pools)} prompts; "
    verdict += f"gold falls beyond its peak for {', '.join(falling)}" if falling else "gold falls beyond chance for none"
    if found.gain:
        verdict += f"; different from {first} beyond chance: {', '.join(parted) or 'none'}"
    return verdict


def _results(found: Stressed, read: int, dropped: dict[str, int]) -> dict[str, Any]:
    return {
        "rows": {"read": read, "used": len(found.pools), "dropped": dropped},
        "answers": dict(sorted(Counter(len(group.answers) for group in found.pools).items())),
        "methods": {
            name: {
                **one.as_dict(),
                "gain_over_first": gain.as_dict() if (gain := found.gain.get(name)) is not None else None,
                "scoring_seconds": [round(found.seconds[place], 2) for place in found.methods[name]],
            }
            for name, one in found.hacking.items()
        },
    }
