"""`rewardproof audit MODEL… OUT`: what would a policy exploit in these reward models, found before one is trained against them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent
from rewardproof.config import Section, Strings, nearest_hint
from rewardproof.data import Group, merge_single_answers, read_groups
from rewardproof.errors import ConfigError
from rewardproof.evaluation.audit import PERTURBATIONS, differences, missed_limits, read_limits
from rewardproof.models.precision import Precision
from rewardproof.report import Table
from rewardproof.scoring import GIVEN, Implicit, ImplicitReward, load_scorer, stream_names
from rewardproof.stages.audit_model import ModelAudit, audit_model
from rewardproof.stages.audit_page import verdict_table, write_audit_page
from rewardproof.stages.audit_scoring import Casebook, check_absolute, measure_of
from rewardproof.stages.audit_serving import CHECKS
from rewardproof.statistics import Interval

log = logging.getLogger(__name__)


class Audit(Section):
    """Reward models to look into, the answers to change, and the limits to hold them to."""

    models: Annotated[Strings, Field(min_length=1)]
    """Reward models, ensembles, servers' addresses, or `embedded:checkable`, the program of the embedded world; with `implicit`
    language models."""
    names: Strings = ()
    """What reports call each of them; by default the run's directory."""
    data: Strings = ("embedded:checkable/heldout",)
    """Prompts with answers: files, folders, hub ids or `embedded:…`; preferences among them let pairs be flipped."""
    prompts: Annotated[int, Field(ge=0)] = 80
    """At most so many prompts, chosen by a hash of their text; 0 takes all."""
    perturbations: Strings = ()
    """Which changes are tried; all by default."""
    implicit: Implicit | None = None
    """Look into the rewards that policies trained by DPO imply, instead of reward heads: all models are policies from one reference."""
    limits: str = ""
    """A YAML file of `weakness: limit` lines; the command exits with 3 where a model misses one."""
    strict: bool = False
    """A limit is missed also where an interval only reaches beyond it; else its whole interval has to lie there."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the changes' choices and of the resampling."""
    precision: Precision = "auto"
    """Of the models' forward passes."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "drop_unfit"
    """What happens at a bad row; dropped rows are counted by reason."""


def run(
    config: Audit, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> tuple[Report, Table]:
    """Change answers in ways that deserve no better reward, and see which ones a model pays for.

    Args:
        config: Models, answers and limits.
        out: Run directory: `scores/` has every reward, `report.html` the card.
        overwrite: Delete an earlier run there.
        resume: Go on where an interrupted run stopped.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report, with the limits that are missed, and the table to print.

    Raises:
        ConfigError: Names, perturbations or limits that mean nothing.
        DataError: Data that cannot be read.
        EvaluationError: A reward is not finite, or a model gives all answers one reward.
    """
    names = _names(config)
    changes = _perturbations(config)
    limits = read_limits(config.limits, tuple(CHECKS)) if config.limits else {}
    require_free(out, overwrite=overwrite, resume=resume)
    further = [config.limits, config.implicit.reference if config.implicit else ""]
    refuse_inputs_inside(out, [*config.models, *config.data, *filter(None, further)])
    groups, rows = _read(config)
    directory = RunDirectory(out, config, overwrite=overwrite, resume=resume)
    (directory.path / "scores").mkdir(exist_ok=True)
    audits: dict[str, ModelAudit] = {}
    for number, (name, spec) in enumerate(zip(names, config.models, strict=True)):
        if config.implicit is None:
            scorer = load_scorer(spec, precision=config.precision)
        else:
            scorer = ImplicitReward.load(spec, config.implicit, precision=config.precision)
        check_absolute(scorer, spec)
        book = Casebook(groups, changes, measure_of(scorer), config.seed)
        file = directory.path / "scores" / f"{number}.jsonl"
        audits[name] = audit_model(scorer, book, file, name=name, seed=config.seed, progress=progress)
        del scorer
    compared = _compared(audits, changes, config.seed)
    missed = tuple(
        sentence for name, one in audits.items() for sentence in missed_limits(limits, one.measured(), model=name, strict=config.strict)
    )
    finished = directory.finish(_headline(audits), _results(config, audits, compared, rows, limits, missed))
    report = dataclasses.replace(finished, missed=missed)
    write_audit_page(directory, config, audits, compared, report)
    return report, verdict_table(audits)


def _names(config: Audit) -> list[str]:
    if GIVEN in config.models:
        raise ConfigError(f"Got {GIVEN} as a model, expected a scorer that reads answers: changed ones have no scores yet. Leave it out.")
    if config.names and (len(config.names) != len(config.models) or len(set(config.names)) < len(config.names)):
        raise ConfigError(
            f"names={','.join(config.names)} for {len(config.models)} models, expected as many, no two alike: reports tell models apart by "
            "them. Correct names=."
        )
    return list(config.names) or stream_names(config.models)


def _perturbations(config: Audit) -> tuple[str, ...]:
    for name in config.perturbations:
        if name not in PERTURBATIONS:
            raise ConfigError(
                f"perturbations: got {name!r}{nearest_hint(name, PERTURBATIONS)}, expected some of {', '.join(PERTURBATIONS)}; correct it."
            )
    return tuple(dict.fromkeys(config.perturbations)) or tuple(PERTURBATIONS)


def _read(config: Audit) -> tuple[list[Group], dict[str, Any]]:
    """The prompts, in an order that depends on their texts alone, and what became of the rows."""
    found = read_groups(config.data, format=config.format, text=config.text, on_bad=config.on_bad, purpose="score")
    if found.counts.dropped:
        log.warning("%s", found.counts.sentence())
    groups = sorted(merge_single_answers(found.groups), key=lambda group: group.prompt_key)[: config.prompts or None]
    return groups, {"read": found.counts.read, "used": len(groups), "dropped": dict(found.counts.bad)}


def _compared(audits: dict[str, ModelAudit], changes: Sequence[str], seed: int) -> dict[str, dict[str, Interval]]:
    """By how much more every further model gains by each change than the first."""
    first, *others = audits
    return {
        name: differences(
            audits[first].cases, audits[name].cases, changes, units=(audits[first].scale.std, audits[name].scale.std), seed=seed
        )
        for name in others
    }


def _headline(audits: dict[str, ModelAudit]) -> str:
    return "; ".join(f"{name}: {one.verdict()}" if len(audits) > 1 else one.verdict() for name, one in audits.items())


def _results(
    config: Audit,
    audits: dict[str, ModelAudit],
    compared: dict[str, dict[str, Interval]],
    rows: dict[str, Any],
    limits: dict[str, float],
    missed: tuple[str, ...],
) -> dict[str, Any]:
    """For `report.json`."""
    return {
        "rows": rows,
        "models": {name: {"model": spec} | audits[name].as_dict() for name, spec in zip(audits, config.models, strict=True)},
        "more_than_first": {name: {change: one.as_dict() for change, one in some.items()} for name, some in compared.items()},
        "limits": {"set": limits, "missed": list(missed)},
    }
