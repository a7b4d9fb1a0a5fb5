"""Constrained RLHF in a policy run: whose thresholds, what rewards by them, and what the report says of multipliers and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.artifacts import LOG, RunDirectory
from rewardproof.data import Group
from rewardproof.errors import ConfigError
from rewardproof.evaluation import FoundProxyPoints
from rewardproof.policy.constraints import PREFIX, Thresholds, check_constraints, refuse_other_names
from rewardproof.policy.lagrangian import ConstrainedAnswers
from rewardproof.policy.rewards import RewardSource, ScoredAnswers
from rewardproof.policy.satisficing import NearThresholds
from rewardproof.policy.threshold_search import ThresholdSearch
from rewardproof.report import Section, Table, constraints_figure, save_figure
from rewardproof.scoring import Scale, method_names, stream_names
from rewardproof.stages.experts_page import shown
from rewardproof.stages.proxy_points import found_in, proxy_points_section

if TYPE_CHECKING:
    from rewardproof.stages.align import Align

Rows = Sequence[Mapping[str, Any]]


def check(config: Align) -> None:
    """Refuse constraints that cannot mean anything, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    settings = config.constrained
    if settings is None:
        if config.proxy_points is not None:
            raise ConfigError(
                "proxy_points without constrained, expected both: they are its thresholds. Take the recipe xi_ppo, or drop them."
            )
        return
    check_constraints(settings, config.optimise)
    learns = [key for key in ("feedback", "cooper", "metarm") if getattr(config, key) is not None]
    if learns:
        raise ConfigError(
            f"Got {learns[0]} with constrained, expected one of them: a reward that learns with the policy has no value that a threshold "
            "could be meant for. Drop one."
        )
    names = stream_names(config.reward)
    if len(set(method_names(config.reward))) < len(names):
        raise ConfigError(
            f"Got the rewards {', '.join(config.reward)}, of which several have one name, expected different ones: thresholds are by name, "
            "and a number by position would change hands with the order. Keep the models in directories of different names."
        )
    sources = {
        "constrained.thresholds": bool(settings.thresholds),
        "proxy_points.runs": config.proxy_points is not None and bool(config.proxy_points.runs),
        "constrained.search": settings.search is not None,
    }
    given = [name for name, is_given in sources.items() if is_given]
    if len(given) != 1:
        raise ConfigError(
            f"Got {' and '.join(given) or 'none'} of {', '.join(sources)}, expected one: a value can be held to one threshold. Write "
            f"constrained.thresholds={{{names[0]}: 0.5}}, or the directories of earlier runs as proxy_points.runs=."
        )
    if settings.thresholds:
        refuse_other_names(settings.thresholds, names)
    if settings.search is not None and not config.gold:
        raise ConfigError("constrained.search without gold, expected who judges: thresholds are scored by gold. Give gold=.")


def proxy_points(config: Align, judged: Sequence[Group]) -> FoundProxyPoints | None:
    """The proxy points in the earlier runs that the recipe names, if any.

    Raises:
        ConfigError: They are of other rewards, or were found on prompts that this run is judged on.
        EvaluationError: None can be found.
    """
    if config.proxy_points is None:
        return None
    found = found_in(config.proxy_points)
    refuse_other_names(found.thresholds, stream_names(config.reward), key="proxy_points")
    shared = sum(group.prompt_key in found.prompts for group in judged)
    if shared:
        raise ConfigError(
            f"proxy_points.runs were judged on {shared} of the {len(judged)} prompts that this run is judged on, expected others: "
            "thresholds chosen on them would make its gold look better than it is. Give eval_prompts that the runs did not see."
        )
    return found


def units(config: Align, scales: Mapping[str, Scale]) -> Mapping[str, Scale]:
    """Zero and unit of each reward: those of the initial policy's answers, or the scorer's own where constraints are meant in them."""
    if config.constrained is None or config.constrained.units == "spread":
        return scales
    return dict.fromkeys(scales, Scale(0.0, 1.0))


def source(
    config: Align, scored: ScoredAnswers, scales: Mapping[str, Scale], points: FoundProxyPoints | None, validated: Callable[[], Rows]
) -> RewardSource:
    """Who rewards under constraints.

    Args:
        config: The resolved recipe.
        scored: Judges the answers.
        scales: Zero and unit of each reward, over the initial policy's answers.
        points: The proxy points, where they are the thresholds.
        validated: Gives the scorers' numbers, `proxy/NAME`, of the initial policy's answers to the prompts that thresholds are sought on.
    """
    settings = config.constrained
    assert settings is not None
    thresholds = Thresholds(settings.thresholds if points is None else points.thresholds, units(config, scales))
    if settings.sense == "near":
        return NearThresholds(scored, thresholds)
    if settings.search is None:
        return ConstrainedAnswers(scored, settings, thresholds)
    rows = validated()
    start = {name: Scale.of([row[f"proxy/{name}"] for row in rows], name=name) for name in scored.names}
    search = ThresholdSearch(
        settings.search, start, sense=settings.sense, steps=config.optimise.steps, in_spread=settings.units == "spread"
    )
    return ConstrainedAnswers(scored, settings, replace(thresholds, values=search.thresholds), search=search)


def scored(source: RewardSource, validated: Callable[[], Rows]) -> dict[str, Any] | None:
    """Score the thresholds of a search that have had their time; gives the record of the trial.

    Args:
        source: Who rewards.
        validated: Gives gold of the policy's answers to the prompts that thresholds are sought on.
    """
    search = source.search if isinstance(source, ConstrainedAnswers) else None
    if search is None or not search.due:
        return None
    return search.tell(float(np.mean([row["gold"] for row in validated()])))


def results(log: Path, points: FoundProxyPoints | None) -> dict[str, Any]:
    """For `report.json`: what became of values and multipliers; empty without constraints."""
    records, trials = _records(log)
    if not records:
        return {}
    keys = [key for key in records[-1] if key.startswith(PREFIX)]
    half = records[len(records) // 2 :]
    found: dict[str, Any] = {
        "at_last": {key.removeprefix(PREFIX): records[-1][key] for key in keys},
        "mean_of_second_half": {key.removeprefix(PREFIX): float(np.mean([record[key] for record in half])) for key in keys},
    }
    if points is not None:
        found["proxy_points"] = points.as_dict()
    if trials:
        found |= {"trials": trials, "best": max(trials, key=lambda trial: trial["score"])}
    return {"constrained": found}


def sections(directory: RunDirectory, config: Align, points: FoundProxyPoints | None) -> list[Section]:
    """Values against thresholds and the multipliers over the updates; the search's trials; the proxy points."""
    records, trials = _records(directory.path / LOG)
    if not records:
        return []
    names = stream_names(config.reward)
    figure = save_figure(constraints_figure(records, names), directory.path, "constraints")
    last = records[-1]
    rows = tuple(
        (name, *(f"{last[f'{PREFIX}{name}/{key}']:.4g}" if f"{PREFIX}{name}/{key}" in last else "–" for key in COLUMNS)) for name in names
    )
    text = (
        "Means over the episodes of an update, in the scorers' own units, beside what they shall come to. Multipliers need not settle, "
        "their averages do."
    )
    caption = "Each reward's value and its threshold over the updates, and the weights that the multipliers give."
    sections = [Section("Under constraints", (text,), Table(("reward", *COLUMNS), rows), figures=(shown(figure, caption),))]
    if trials:
        sections.append(_search_section(trials, names))
    if points is not None:
        sections.append(proxy_points_section(directory, points))
    return sections


COLUMNS = ("value", "threshold", "multiplier", "weight")


def _search_section(trials: Rows, names: Sequence[str]) -> Section:
    best = max(trials, key=lambda trial: trial["score"])
    rows = tuple(
        (
            trial["step"],
            *(f"{trial['thresholds'][name]:.4g}" for name in names),
            "yes" if trial["reached"] else "no",
            trial["updates"],
            f"{trial['score']:.4f}" + (" (best)" if trial is best else ""),
        )
        for trial in trials
    )
    text = (
        "Thresholds that were tried on the way, the policy never set back: scored once they were reached or their share of the run was "
        "spent, on prompts that the policy neither learns nor is judged on."
    )
    return Section("Thresholds sought", (text,), Table(("update", *names, "reached", "updates", "gold"), rows))


def _records(log: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The log's updates under constraints, and the trials of a search."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    updates = [record for record in found if record["phase"] == "optimising" and any(key.startswith(PREFIX) for key in record)]
    return updates, [record for record in found if record["phase"] == "searching"]
