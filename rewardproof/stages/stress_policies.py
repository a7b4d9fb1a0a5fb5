"""Policies in a stress test: one run a model and seed, judged on the same prompts, the runs of a method drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import Progress, RunDirectory
from rewardproof.config import load_recipe, parse
from rewardproof.errors import ConfigError
from rewardproof.evaluation import Evaluation, MeasuredLaw, PolicyHacking, PolicyRuns
from rewardproof.report import format_interval
from rewardproof.stages.align import GOLD, Align, check_settings, run_evaluations
from rewardproof.stages.align import run as run_align
from rewardproof.stages.align_against import against
from rewardproof.stages.study_settings import deep_merge
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rewardproof.stages.stress import Stress


@dataclass(slots=True)
class Policies:
    """What policies of one recipe found.

    Attributes:
        method: The recipe.
        hacking: By method of the reward models, each over the range of distances that its own runs covered.
        gain: Gold at the last evaluation less the first method's, where runs pair.
        matched_kl: The KL that all runs reached, nats.
        matched: There, by method: gold less the first method's, and what the proxy promises beyond gold.
        examples: The evaluations of each method's first run.
        laws: The fitted laws, with the start taken off and without.
    """

    method: str
    hacking: dict[str, PolicyHacking]
    gain: dict[str, Interval | None]
    matched_kl: float
    matched: dict[str, tuple[Interval | None, Interval | None]]
    examples: dict[str, list[Evaluation]]
    laws: dict[str, dict[str, MeasuredLaw]]

    def verdict(self) -> str:
        """Gold at the end, in words."""
        ends = {name: one.end_gold for name, one in self.hacking.items() if one.end_gold is not None}
        golds = ", ".join(f"{name} {format_interval(end, percent=False)}" for name, end in ends.items())
        falling = [name for name, one in self.hacking.items() if one.onset_kl is not None]
        return f"gold after {self.method}: {golds}; it falls on the way for {', '.join(falling) or 'none beyond chance'}"

    def results(self) -> dict[str, Any]:
        """For `report.json`."""
        there = {name: {"gain_over_first": _plain(gain), "gap": _plain(gap)} for name, (gain, gap) in self.matched.items()}
        return {
            name: {
                **one.as_dict(),
                "gain_over_first": _plain(self.gain.get(name)),
                "at_matched_kl": {"kl": self.matched_kl, **there[name]},
                "laws": {measure: law.as_dict() for measure, law in self.laws[name].items()},
            }
            for name, one in self.hacking.items()
        }


def plan(config: Stress, method: str) -> list[list[Align]]:
    """The policy runs of one recipe, a list of seeds a model.

    Raises:
        ConfigError: Settings that cannot mean anything.
    """
    recipe = load_recipe(method, verb="align")
    if "direct" in recipe:
        if config.kl is not None:
            raise ConfigError(
                f"Got kl={config.kl} with {method}, expected no penalty: by preferences, direct.beta keeps a policy near its start. "
                "Write direct.beta=, and run ways with a penalty apart."
            )
        way = {"direct": config.direct}
    else:
        way = {"optimise": deep_merge(config.optimise, {} if config.kl is None else {"kl": {"coefficient": config.kl}})}
    shared = {
        "policy": config.policy,
        "gold": config.gold,
        "prompts": list(config.policy_prompts),
        "text": config.text,
        "on_bad": config.on_bad,
        "evaluate": config.evaluate.model_dump(exclude_unset=True),
        "compute": {"precision": config.precision, "trunk_cache_gb": config.trunk_cache_gb},
        **way,
    }
    settings = deep_merge(deep_merge(recipe, shared), config.align.get(method, {}))
    runs = [
        [parse(Align, {**against(model, settings, key=f"align.{method}"), "seed": config.seed + seed}) for seed in range(config.seeds)]
        for model in config.models
    ]
    try:
        for one in runs[0]:
            check_settings(one)
    except ConfigError as error:
        raise ConfigError(f"methods={method}: {error} In stress, settings of one recipe are align.{method}.KEY=….") from error
    return runs


def policy_stress(
    method: str, runs: Sequence[Sequence[Align]], methods: Mapping[str, Sequence[int]], directory: RunDirectory, progress: Progress
) -> Policies:
    """Run what has not been run, and judge.

    Args:
        method: The recipe.
        runs: As `plan` made them.
        methods: Places of each method's models.
        directory: Where `policies/METHOD/MODEL-SEED` are.
        progress: Receives what is being done, how far, of how much.
    """
    total, done = sum(map(len, runs)), 0
    found: list[list[list[Evaluation]]] = []
    for place, seeds in enumerate(runs):
        found.append([])
        for seed, settings in enumerate(seeds):
            progress(f"{method} runs", done, total)
            folder = directory.path / "policies" / method / f"{place}-{seed}"
            run_align(settings, folder, resume=True, progress=progress)
            found[-1].append(run_evaluations(folder))
            done += 1
    together = {
        name: PolicyRuns(
            [evaluations for place in places for evaluations in found[place]],
            weights=runs[places[0]][0].weights,
            gold=GOLD,
            models=[place for place in places for _ in found[place]],
        )
        for name, places in methods.items()
    }
    first = next(iter(together))
    reached = min(one.reach for one in together.values())
    return Policies(
        method,
        {name: one.summary() for name, one in together.items()},
        {name: one.minus(together[first]) for name, one in together.items() if name != first},
        reached**2,
        {
            name: (None if name == first else one.minus(together[first], distance=reached), one.gap(reached))
            for name, one in together.items()
        },
        {name: found[places[0]][0] for name, places in methods.items()},
        {name: one.laws() for name, one in together.items()},
    )


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()
