"""`rewardproof evaluate MODEL DATA…`: pair accuracy with its interval, by subset, beside the length rule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rewardproof.artifacts import Report, RunDirectory, plain, require_free
from rewardproof.config import Section, Strings
from rewardproof.data import Group, read_groups, split_by_prompt
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import AccuracyReport
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import Page, PageFigure, Table, format_interval, reliability_figure, save_figure, write_page
from rewardproof.report import Section as PageSection
from rewardproof.stages.training_report import accuracy_of, accuracy_table, provenance_rows

log = logging.getLogger(__name__)


class Evaluate(Section):
    """Accuracy of a reward model on preferences."""

    model: str
    """The reward model: a directory or a hub id."""
    data: Strings
    """Preferences: files, folders, hub ids or `embedded:…`; each is reported by itself."""
    split: float = 0.0
    """Only the prompts that training with the same `split` holds out; 0 evaluates all."""
    precision: Precision = "auto"
    """Of the forward pass."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "drop_unfit"
    """What happens at a bad row; dropped rows are counted by reason."""


def run(
    config: Evaluate,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> tuple[Report, Table]:
    """Evaluate a model on one or more data sets.

    Args:
        config: What to evaluate on what.
        out: Run directory, or `None` to write nothing.
        overwrite: Delete an earlier run there.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report, and the table to print.
    """
    if not config.data:
        raise ConfigError("No data to evaluate on, expected at least one source; name files, folders or embedded:… after the model.")
    if out is not None:
        require_free(out, overwrite=overwrite, resume=False)
    model = RewardModel.load(config.model, precision=config.precision)
    reports: dict[str, AccuracyReport] = {}
    rows: dict[str, Any] = {}
    for source in config.data:
        groups, counts = _groups(config, source)
        rows[source] = counts
        reports[source] = accuracy_of(model, groups, progress)
    first = next(iter(reports.values()))
    headline = (
        f"accuracy {format_interval(first.overall)} on {first.n_pairs} pairs (longer answer wins: {format_interval(first.length_only)})"
    )
    results = {"rows": rows, "accuracy": {source: report.as_dict() for source, report in reports.items()}}
    table = accuracy_table(reports)
    if out is None:
        return Report(Path(config.model), headline, plain({"headline": headline, **results})), table
    directory = RunDirectory(out, config, overwrite=overwrite)
    report = directory.finish(headline, results)
    _write_page(directory, config, reports, report)
    return report, table


def _groups(config: Evaluate, source: str) -> tuple[tuple[Group, ...], dict[str, Any]]:
    found = read_groups(source, format=config.format, on_bad=config.on_bad, purpose="train")
    if found.counts.dropped:
        log.warning("%s: %s", source, found.counts.sentence())
    groups = found.groups
    if config.split:
        groups = tuple(split_by_prompt(groups, fraction=config.split)[1])
        if not groups:
            raise DataError(f"{source}: split={config.split} holds out none of its {len(found.groups)} groups; expected some. Raise split.")
    return groups, {"read": found.counts.read, "used": len(groups), "dropped": dict(found.counts.bad)}


def _write_page(directory: RunDirectory, config: Evaluate, reports: dict[str, AccuracyReport], report: Report) -> None:
    sections = [PageSection("Accuracy", table=accuracy_table(reports))]
    for number, (source, accuracy) in enumerate(reports.items()):
        figure = save_figure(reliability_figure(accuracy.calibration), directory.path, f"calibration-{number}")
        caption = "How often the preferred answer agrees with the data, by the model's own confidence."
        sections.append(PageSection(f"Calibration on {source}", figures=(PageFigure(figure.svg, caption, caption),)))
    verdict = report.headline[0].upper() + report.headline[1:] + "."
    page = Page("Evaluation", verdict, subtitle=config.model, sections=sections, provenance=provenance_rows(directory))
    write_page(directory.path / "report.html", page)
