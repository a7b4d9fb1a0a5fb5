"""`rewardproof evaluate MODEL DATA…`: pair accuracy with its interval, by subset, beside the length rule; or four scenarios."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, plain, refuse_inputs_inside, require_free, silent
from rewardproof.config import Section, Strings
from rewardproof.data import SCENARIOS, Group, Scenarios, cut_scenarios, merge_single_answers, read_groups, split_by_prompt, split_salt
from rewardproof.data.encoding import Overlong
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import AccuracyReport, pair_accuracy
from rewardproof.models.precision import Precision
from rewardproof.report import Page, PageFigure, Table, format_interval, provenance_rows, reliability_figure, save_figure, write_page
from rewardproof.report import Section as PageSection
from rewardproof.scoring import AnyModel, load_model
from rewardproof.stages.scenario_results import ScenarioResult, judged, scenario_headline, scenario_table
from rewardproof.stages.training_report import CHUNK, accuracy_table

log = logging.getLogger(__name__)


class Evaluate(Section):
    """Accuracy of a reward model on preferences."""

    model: str
    """The reward model: a directory or a hub id."""
    data: Strings
    """Preferences: files, folders, hub ids or `embedded:…`; each is reported by itself."""
    split: float = 0.0
    """Only the prompts that training with the same `split` holds out; 0 evaluates all."""
    split_seed: int = 0
    """Which of the possible splits, as in training."""
    scenarios: Scenarios | None = None
    """Judge by all data together, cut by prompt and by the answers' sources into four scenarios, as training with the same keys was."""
    precision: Precision = "auto"
    """Of the forward pass."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "drop_unfit"
    """What happens at a bad row; dropped rows are counted by reason."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Longest conversation, in tokens; 0 is the model's own limit, which models with rotary positions do not have."""
    overlong: Overlong = "fail"
    """What happens at a longer conversation: stop, leave its group out, or score it with its prompt shortened from the beginning."""


def run(
    config: Evaluate,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[Report, Table]:
    """Evaluate a model on one or more data sets.

    Args:
        config: What to evaluate on what.
        out: Run directory, or `None` to write nothing.
        overwrite: Delete an earlier run there.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report, and the table to print.

    Raises:
        DataError: Data that cannot be read or holds nothing to evaluate, or a conversation longer than allowed under `fail`.
    """
    started = time.perf_counter()
    if not config.data:
        raise ConfigError("No data to evaluate on, expected at least one source; name files, folders or embedded:… after the model.")
    if out is not None:
        require_free(out, overwrite=overwrite, resume=False)
        refuse_inputs_inside(out, [config.model, *config.data])
    model = load_model(config.model, precision=config.precision)
    found = _by_source(model, config, progress) if config.scenarios is None else _by_scenario(model, config, config.scenarios, progress)
    if out is None:
        return Report(Path(config.model), found.headline, plain({"headline": found.headline, **found.results})), found.table
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    report = directory.finish(found.headline, found.results)
    _write_page(directory, config, found, report)
    return report, found.table


@dataclass(frozen=True, slots=True)
class _Found:
    """What an evaluation says: in one sentence, in numbers, and in one table; and the accuracies that it draws."""

    headline: str
    results: dict[str, Any]
    table: Table
    accuracies: dict[str, AccuracyReport]


def _by_source(model: AnyModel, config: Evaluate, progress: Progress) -> _Found:
    reports: dict[str, AccuracyReport] = {}
    rows: dict[str, Any] = {}
    for source in config.data:
        groups, counts = _groups(config, source)
        if config.split:
            held_out = split_by_prompt(groups, fraction=config.split, salt=split_salt(config.split_seed))[1]
            if not held_out:
                raise DataError(f"{source}: split={config.split} holds out none of its {len(groups)} groups; expected some. Raise split.")
            groups = held_out
        kept, rewards, lengths = _scored(model, config, source, groups, progress)
        reports[source] = pair_accuracy(kept, rewards)
        rows[source] = _with_lengths(counts | {"used": len(groups)}, lengths)
    first = next(iter(reports.values()))
    headline = (
        f"accuracy {format_interval(first.overall)} on {first.n_pairs} pairs (longer answer wins: {format_interval(first.length_only)})"
    )
    results = {"rows": rows, "accuracy": {source: report.as_dict() for source, report in reports.items()}}
    return _Found(headline, results, accuracy_table(reports), reports)


def _by_scenario(model: AnyModel, config: Evaluate, settings: Scenarios, progress: Progress) -> _Found:
    read = {source: _groups(config, source) for source in config.data}
    groups = [group for found, _ in read.values() for group in found]
    cut = cut_scenarios(groups, settings, fraction=config.split, salt=split_salt(config.split_seed))
    results: dict[str, ScenarioResult] = {}
    rows: dict[str, Any] = {source: counts for source, (_, counts) in read.items()} | {"scenarios": cut.counts}
    for name in SCENARIOS:
        part: Sequence[Group] = getattr(cut, name)
        kept, rewards, lengths = _scored(model, config, name, part, progress) if part else ([], [], Counter())
        results[name] = judged(kept, rewards)
        rows[name] = _with_lengths({"used": len(part), "dropped": {}}, lengths)
    accuracies = {name: result.accuracy for name, result in results.items() if result.accuracy is not None}
    values = {
        "rows": rows,
        "accuracy": {name: report.as_dict() for name, report in accuracies.items()},
        "kendall": {name: None if result.ranks is None else result.ranks.as_dict() for name, result in results.items()},
    }
    return _Found(scenario_headline(results), values, scenario_table(results), accuracies)


def _groups(config: Evaluate, source: str) -> tuple[list[Group], dict[str, Any]]:
    found = read_groups(source, format=config.format, on_bad=config.on_bad, purpose="train", text=config.text)
    if found.counts.dropped:
        log.warning("%s: %s", source, found.counts.sentence())
    groups = merge_single_answers(found.groups)
    return groups, {"read": found.counts.read, "used": len(groups), "dropped": dict(found.counts.bad)}


def _scored(
    model: AnyModel, config: Evaluate, source: str, groups: Sequence[Group], progress: Progress
) -> tuple[list[Group], list[tuple[float, ...]], Counter[str]]:
    """The groups that fit, their rewards, and how many were dropped or truncated."""
    kept: list[Group] = []
    rewards: list[tuple[float, ...]] = []
    lengths: Counter[str] = Counter()
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        encoded, found = model.encode(chunk, max_length=config.max_length, overlong=config.overlong)
        fitting = [chunk[entry.index] for entry in encoded]
        rewards += model.score_encoded(encoded, origins=[group.origin for group in fitting])
        kept += fitting
        lengths.update(found)
        progress("scoring", start + len(chunk), len(groups))
    if not kept:
        raise DataError(
            f"{source}: all {len(groups)} groups are longer than {config.max_length or model.longest} tokens and were dropped; expected at "
            "least one that fits, because accuracy needs pairs. Raise max_length, or pass overlong=truncate_prompt."
        )
    if lengths:
        log.warning("%s: %s", source, ", ".join(f"{count} × {what}" for what, count in lengths.items()))
    return kept, rewards, lengths


def _with_lengths(counts: dict[str, Any], lengths: Counter[str]) -> dict[str, Any]:
    overlong = lengths["overlong_dropped"]
    dropped = counts["dropped"] | ({"overlong": overlong} if overlong else {})
    return counts | {"used": counts["used"] - overlong, "dropped": dropped, "prompt_truncated": lengths["overlong_prompt_truncated"]}


def _write_page(directory: RunDirectory, config: Evaluate, found: _Found, report: Report) -> None:
    sections = [PageSection("Scenarios", table=found.table)] if config.scenarios is not None else []
    sections.append(PageSection("Accuracy", table=accuracy_table(found.accuracies)))
    for number, (source, accuracy) in enumerate(found.accuracies.items()):
        figure = save_figure(reliability_figure(accuracy.calibration), directory.path, f"calibration-{number}")
        caption = "How often the preferred answer agrees with the data, by the model's own confidence."
        sections.append(PageSection(f"Calibration on {source}", figures=(PageFigure(figure.svg, caption, caption),)))
    verdict = report.headline[0].upper() + report.headline[1:] + "."
    page = Page("Evaluation", verdict, subtitle=config.model, sections=sections, provenance=provenance_rows(directory.path))
    write_page(directory.path / "report.html", page)
