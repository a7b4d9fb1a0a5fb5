"""One cell of a study: train, or do something with what another cell left; judge what comes out, and make its row."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rewardproof.artifacts import Progress, RunDirectory, plain, provenance, write_whole
from rewardproof.config import Section, dump_yaml, parse
from rewardproof.evaluation import pair_accuracy, pair_outcomes
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import Merge
from rewardproof.models.checkpoints import load_reward_model, load_tokenizer
from rewardproof.models.precision import default_device, resolve_precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import format_interval
from rewardproof.scoring import AnyModel, ModelEnsemble
from rewardproof.stages.member_context import MemberContext
from rewardproof.stages.members import average_members
from rewardproof.stages.study_judging import best_of_n_found, members_of, policies_found, recombine, run_policies
from rewardproof.stages.study_plan import PLACEHOLDER, Cell
from rewardproof.stages.train import prepared_for
from rewardproof.stages.train import run as run_train
from rewardproof.stages.training_report import scored
from rewardproof.stages.weighing import Weighing, merge_mixture

Settings = TypeVar("Settings", bound=Section)
KEPT = ("parameters", "forward_gflops", "precision", "rows", "mixture", "merge", "best_of_n")
"""What of a report goes into the row as it is."""
BULKY = ("model", "reward", "rewards", "moe", "members", "member_scores", "checkpoints")
"""What of a run is deleted once nothing needs it any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study runs.

    Attributes:
        out: Its directory.
        study: Its name.
        paths: What `$NAME` stands for here.
        progress: Receives what is being done, how far, of how much.
    """

    out: Path
    study: str
    paths: Mapping[str, str]
    progress: Progress

    def resolved(self, config: Settings) -> Settings:
        """The configuration with this machine's paths."""
        known = {**self.paths, "OUT": str(self.out)}
        values = _replaced(config.model_dump(mode="json"), lambda text: PLACEHOLDER.sub(lambda found: known[found[1]], text))
        return parse(type(config), values)

    def anonymous(self, value: Any) -> Any:
        """Plain values with `$NAME` where a path of this machine stood."""
        for name, path in sorted({**self.paths, "OUT": str(self.out)}.items(), key=lambda entry: -len(entry[1])):
            pattern = re.compile(rf"(?<![\w.$-]){re.escape(path)}(?![\w-])")
            value = _replaced(value, lambda text, pattern=pattern, name=name: pattern.sub(f"${name}", text))
        return value


def _replaced(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _replaced(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(entry, change) for entry in value]
    return value


@dataclass(frozen=True, slots=True)
class Found:
    """What a cell found: its row, and the held-out pairs that the row's outcomes are of; policies are judged on none."""

    row: dict[str, Any]
    pairs: dict[str, Any] | None = None


def run_cell(cell: Cell, place: Place) -> Found:
    """Run a cell, or go on with what an interrupted study left of it, and make its row.

    A run that has ended is not run again; one that has not starts anew, so that its seconds are those of one go.
    """
    gc.collect()
    measured = _forget_peak_memory()
    folder = cell.folder(place.out)
    if not finished(cell, place) or (cell.pools and not _model(cell, place).is_dir()):
        make(cell, place)
    if cell.align is not None:
        found = policies_found(folder, cell.align, cell.runs)
        return Found(place.anonymous(plain({"study": place.study, **_head(cell, found.pop("headline")), **found, **_tail(cell)})))
    report = json.loads((folder / "report.json").read_text())
    outcomes = json.loads((folder / "held_out.json").read_text())
    pools = {name: place.resolved(pool) for name, pool in cell.pools.items()}
    kept = cell.folder(place.out, cell.of if cell.combine else "") / "member_scores"
    picks = best_of_n_found(_model(cell, place), place.resolved(cell.config), pools, kept=kept)
    return _found(cell, place, (report if measured else report | {"peak_memory_gb": None}) | picks, outcomes)


def make(cell: Cell, place: Place) -> None:
    """Make what a cell delivers: anew, but for policies of an interrupted study, which go on."""
    folder = cell.folder(place.out)
    if cell.align is not None:
        run_policies(cell.align, cell.runs, folder, place.resolved, place.progress)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        if cell.of:
            _judge_again(cell, place)
        else:
            run_train(place.resolved(cell.config), folder, progress=place.progress)
    if cell.of:
        write_whole(folder / "cell.yaml", yaml.safe_dump(cell.settings(), sort_keys=False))


def drop_models(cell: Cell, out: Path) -> None:
    """Delete the weights of a cell's run; each folder disappears at once, so that half of one is never mistaken for a model."""
    folder = cell.folder(out)
    for bulky in [part / name for part in (folder, *folder.glob("[0-9]*")) for name in BULKY]:
        name = bulky.name
        going = bulky.with_name(f"{name}.deleted")
        shutil.rmtree(going, ignore_errors=True)
        if bulky.is_dir():
            shutil.rmtree(bulky.rename(going))


def needed(cell: Cell, parent: str, out: Path) -> Path:
    """The model of another method that the cell starts from, or the policies that its thresholds are found in."""
    if parent in cell.points:
        return cell.folder(out, parent)
    return cell.folder(out, parent) / ("moe" if cell.takes_mixture and parent == cell.of else "model")


def _model(cell: Cell, place: Place) -> Path:
    """What the cell delivers."""
    return cell.folder(place.out) / "model"


def finished(cell: Cell, place: Place) -> bool:
    """Whether the cell's run has ended, with these settings."""
    folder = cell.folder(place.out)
    if cell.of:
        written = folder / "cell.yaml"
        return written.is_file() and yaml.safe_load(written.read_text()) == cell.settings()
    if not (folder / "report.json").is_file():
        return False
    return (folder / "config.yaml").read_text() == dump_yaml(place.resolved(cell.config))


def _judge_again(cell: Cell, place: Place) -> None:
    """Judge what another method left, as it is, folded or combined in another way, on the same held-out pairs."""
    config, folder = place.resolved(cell.config), cell.folder(place.out)
    spec = needed(cell, cell.of, place.out)
    members = [entry.model for entry in members_of(spec).members] if cell.of_ensemble else []
    tokenizer = load_tokenizer(members[0] if members else str(spec))
    prepared = prepared_for(config, tokenizer)
    directory = RunDirectory(folder, config)
    results: dict[str, Any] = {"rows": prepared.rows}
    context = MemberContext(config, prepared, tokenizer, directory, False, place.progress)
    if cell.combine is not None:
        recombine(spec, cell.combine, _model(cell, place))
        judge: AnyModel = ModelEnsemble.load(_model(cell, place), precision=config.compute.precision)
    else:
        loaded = [load_reward_model(one)[0].to(default_device()) for one in members or [str(spec)]]  # pyright: ignore[reportArgumentType]
        judge = context.reward_model(average_members(loaded))
        if cell.merge is not None:
            results["merge"] = _merged(cell.merge, judge, context)
        elif not members:
            results["mixture"] = {"divergence": expert_divergence(judge.model)}
        judge.save(_model(cell, place), dtype=config.compute.weights_dtype)
    results |= {"precision": resolve_precision(config.compute.precision, default_device()), "parameters": judge.parameters}
    rewards = scored(judge, prepared.held_out_tokens, place.progress)
    accuracy = pair_accuracy(prepared.held_out, rewards)
    directory.write_json("held_out.json", pair_outcomes(prepared.held_out, rewards))
    directory.finish(f"held-out accuracy {format_interval(accuracy.overall)}", {**results, "accuracy": accuracy.as_dict()})


def _merged(merge: Merge, mixture: RewardModel, context: MemberContext) -> dict[str, Any]:
    """Fold a mixture in place."""
    folder = context.directory.path / "checkpoints"
    work = Weighing(
        merge,
        prepared=context.prepared,
        compute=context.config.compute,
        folder=folder,
        seed=context.config.seed,
        record=context.directory.log,
        progress=context.progress,
    )
    found = merge_mixture(mixture, work)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _found(cell: Cell, place: Place, report: Mapping[str, Any], outcomes: dict[str, Any]) -> Found:
    correct = outcomes.pop("correct")
    pairs = plain(
        {
            "prompts": " ".join(outcomes["prompts"]),
            "subsets": _runs(outcomes["subsets"]),
            "sizes": _runs(outcomes["sizes"]),
            "longer": outcomes["longer"],
        }
    )
    name = digest(pairs)
    if any(categories := outcomes.get("categories", ())):  # a name of pairs is older than their categories
        pairs["categories"] = _runs(categories)
    accuracy = dict(report["accuracy"])
    accuracy.pop("calibration", None)
    row = {
        "study": place.study,
        **_head(cell, report["headline"]),
        "accuracy": accuracy,
        "pairs": name,
        "correct": correct,
        "training": _training(cell, place, report),
        "seconds": report["seconds"],
        "peak_memory_gb": report["peak_memory_gb"],
        **{key: report[key] for key in KEPT if key in report},
        **_members(report),
        **_tail(cell),
    }
    return Found(place.anonymous(plain(row)), pairs)


def _head(cell: Cell, headline: str) -> dict[str, Any]:
    return {"setting": cell.setting, "method": cell.method, "seed": cell.seed, "headline": headline}


def _tail(cell: Cell) -> dict[str, Any]:
    seeds = {"seed": cell.config.seed, "split_seed": cell.config.split_seed}
    return {"config": cell.settings(), "provenance": {**provenance(), **seeds}}


def _members(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the members report of their training and merging; of a single one, directly."""
    members = [_without_answers(member) for member in report.get("members", [])]
    return dict(members[0]) if len(members) == 1 else {"members": members} if members else {}


def _without_answers(member: Mapping[str, Any]) -> dict[str, Any]:
    """A member's summary without the answers that its factors respond to: rows are published, and their data is not."""
    if "factors" not in member:
        return dict(member)
    factors = member["factors"]
    strongest = [{name: value for name, value in one.items() if name not in ("highest", "lowest")} for one in factors["strongest"]]
    return {**member, "factors": {**factors, "strongest": strongest}}


def digest(pairs: Mapping[str, Any]) -> str:
    """A name for a set of held-out pairs: equal pairs have equal names."""
    return hashlib.sha256(json.dumps(pairs, sort_keys=True).encode()).hexdigest()[:12]


def _runs(values: list[Any]) -> list[list[Any]]:
    """Run lengths: `[[value, how many], …]`.

    Example:
        >>> _runs(["a", "a", "b"])
        [['a', 2], ['b', 1]]
    """
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _training(cell: Cell, place: Place, report: Mapping[str, Any]) -> dict[str, Any]:
    """Cost of all optimisation behind the row: of reused members, of the mixture's own run and of its coefficients."""
    totals: dict[str, Any] = {"seconds": 0.0, "steps": 0, "tokens": 0.0, "trainable_parameters": 0, "tflops": 0.0}
    for parent in (cell.of,) if cell.of else cell.parents:
        before = json.loads((place.out / "cells" / f"{cell.setting}--{parent}--{cell.seed}.json").read_text())["training"]
        for key in totals:
            totals[key] = max(totals[key], before[key]) if key == "trainable_parameters" else totals[key] + before.get(key, 0.0)
    for phase in _phases([report.get("members", []), report.get("merge", {})]):
        totals["seconds"] += phase["seconds"]
        totals["steps"] += phase["steps"]
        totals["tflops"] += phase.get("tflops", 0.0)
        totals["tokens"] += phase.get("tokens", phase["seconds"] * phase.get("tokens_per_second", 0.0))
        totals["trainable_parameters"] = max(totals["trainable_parameters"], phase.get("trainable_parameters", 0))
    speed = totals["tokens"] / totals["seconds"] if totals["seconds"] else 0.0
    rounded = {"seconds": round(totals["seconds"], 1), "tokens": round(totals["tokens"]), "tflops": float(f"{totals['tflops']:.4g}")}
    return {**totals, **rounded, "tokens_per_second": round(speed, 1)}


def _phases(summary: Any) -> Iterator[Mapping[str, Any]]:
    """Every optimisation behind what is delivered, wherever a report tells of it: dense, mixture, branches, coefficients.

    Example:
        >>> ran = {"seconds": 1.0, "steps": 2}
        >>> len(list(_phases([{"base": ran, "experts": {"logic": ran}, "baseline": ran}])))
        2
    """
    if isinstance(summary, Mapping) and {"seconds", "steps"} <= set(summary):
        yield summary
    elif isinstance(summary, Mapping | list):
        own = [entry for name, entry in summary.items() if name != "baseline"] if isinstance(summary, Mapping) else summary
        for entry in own:
            yield from _phases(entry)


def _forget_peak_memory() -> bool:
    """Start to measure the peak anew, where the system can; whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
