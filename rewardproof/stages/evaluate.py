"""`rewardproof evaluate MODEL DATA…`: pair accuracy beside the length rule, benchmarks by their own scores; or four scenarios."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rewardproof.artifacts import Progress, Report, RunDirectory, plain, refuse_inputs_inside, require_free, silent
from rewardproof.data import SCENARIOS, Group, Scenarios, cut_scenarios, merge_single_answers, read_groups, split_salt
from rewardproof.errors import ConfigError
from rewardproof.evaluation import AccuracyReport, BenchmarkScore, ScoredRow, accuracy_of, benchmark_of, judge_benchmarks
from rewardproof.report import Page, PageFigure, Section, Table, provenance_rows, reliability_figure, save_figure, write_page
from rewardproof.scoring import Judge
from rewardproof.stages.benchmark_results import result_sentence, result_table, warn_of_differences
from rewardproof.stages.evaluate_settings import Evaluate
from rewardproof.stages.judging import (
    FOLDER,
    JudgedSource,
    KeptRows,
    all_too_long,
    fitting_rewards,
    judged_source,
    row_counts,
    warn_of_lengths,
)
from rewardproof.stages.rewardbench_files import write_rewardbench_files
from rewardproof.stages.scenario_results import ScenarioResult, judged, scenario_headline, scenario_table
from rewardproof.stages.training_report import CHUNK, accuracy_table

__all__ = ["Evaluate", "run"]
log = logging.getLogger(__name__)


def run(
    config: Evaluate,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> tuple[Report, Table]:
    """Evaluate a model on one or more data sets.

    Args:
        config: What to evaluate on what.
        out: Run directory, or `None` to write nothing.
        overwrite: Delete an earlier run there.
        resume: Go on after the last whole chunk of rows that an interrupted run left there.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report, and the table to print.

    Raises:
        ConfigError: No data, or settings that contradict each other.
        CheckpointError: The run directory holds something and neither option was given, or an input lies in it.
        DataError: Data that cannot be read or holds nothing to evaluate, or a conversation longer than allowed under `fail`.
    """
    started = time.perf_counter()
    if not config.data:
        raise ConfigError("No data to evaluate on, expected at least one source; name files, folders or embedded:… after the model.")
    if out is None and resume:
        raise ConfigError("Got --resume without --out, expected the run directory to go on with: nothing else is kept. Name it with --out.")
    if out is not None:
        require_free(out, overwrite=overwrite, resume=resume)
        further = [config.implicit.reference] if config.implicit and config.implicit.reference else []
        refuse_inputs_inside(out, [config.model, *config.data, *further])
    directory = None if out is None else _Directory(out, config, overwrite=overwrite, resume=resume, started=started)
    model = config.load()
    if config.scenarios is None:
        found = _by_source(model, config, directory, progress)
    else:
        found = _by_scenario(model, config, config.scenarios, progress)
    if directory is None:
        return Report(Path(config.model), found.headline, plain({"headline": found.headline, **found.results})), found.table
    files = write_rewardbench_files(directory(), model, config, found.judged, found.benchmarks)
    report = directory().finish(found.headline, found.results | ({"result_files": files} if files else {}))
    _write_page(directory(), config, found, report)
    return report, found.table


class _Directory:
    """The run directory, made when there is something to put in it; at once where an interrupted run is gone on with."""

    def __init__(self, path: Path | str, config: Evaluate, *, overwrite: bool, resume: bool, started: float) -> None:
        self.resume = resume
        self._make = lambda: RunDirectory(path, config, overwrite=overwrite, resume=resume, started=started)
        self._made = self._make() if resume else None

    def __call__(self) -> RunDirectory:
        if self._made is None:
            self._made = self._make()
        return self._made

    def kept(self, number: int) -> KeptRows:
        """What is judged of a source, by its number."""
        return KeptRows(lambda: self().path / FOLDER / f"{number}.jsonl", resume=self.resume)


@dataclass(frozen=True, slots=True)
class _Found:
    """What an evaluation says: in one sentence, in numbers, and in one table; and the accuracies that it draws."""

    headline: str
    results: dict[str, Any]
    table: Table
    accuracies: dict[str, AccuracyReport]
    benchmarks: dict[str, BenchmarkScore] = field(default_factory=dict)
    judged: dict[str, list[ScoredRow]] = field(default_factory=dict)


def _by_source(model: Judge, config: Evaluate, directory: _Directory | None, progress: Progress) -> _Found:
    sources = {
        source: judged_source(model, config, source, KeptRows() if directory is None else directory.kept(number), progress)
        for number, source in enumerate(config.data)
    }
    reports = {source: accuracy_of(found.rows) for source, found in sources.items()}
    benchmarks = _of_parts(judge_benchmarks([row for found in sources.values() for row in found.rows]), config, sources)
    warn_of_differences(benchmarks)
    plain_reports = {
        source: report for source, report in reports.items() if any(benchmark_of(row) not in benchmarks for row in sources[source].rows)
    }
    results: dict[str, Any] = {
        "rows": {source: found.counts for source, found in sources.items()},
        "accuracy": {source: report.as_dict() for source, report in reports.items()},
        "benchmarks": {name: score.as_dict() for name, score in benchmarks.items()},
    }
    return _Found(
        result_sentence(benchmarks, plain_reports),
        results,
        result_table(benchmarks, plain_reports),
        reports,
        benchmarks,
        {source: found.rows for source, found in sources.items()},
    )


def _of_parts(scores: dict[str, BenchmarkScore], config: Evaluate, sources: Mapping[str, JudgedSource]) -> dict[str, BenchmarkScore]:
    """The benchmarks, each with what these settings leave out of it, whether or not its rows are counted anywhere."""
    told = [f"only the prompts that split={config.split} holds out"] if config.split else []
    told += [
        f"{source}: {count} rows dropped as too long"
        for source, found in sources.items()
        if (count := found.counts["dropped"].get("overlong", 0))
    ]
    return {name: replace(score, differences=(*score.differences, *told)) for name, score in scores.items()}


def _by_scenario(model: Judge, config: Evaluate, settings: Scenarios, progress: Progress) -> _Found:
    read = {source: _groups(config, source) for source in config.data}
    groups = [group for found, _ in read.values() for group in found]
    cut = cut_scenarios(groups, settings, fraction=config.split, salt=split_salt(config.split_seed))
    results: dict[str, ScenarioResult] = {}
    rows: dict[str, Any] = {source: counts for source, (_, counts) in read.items()} | {"scenarios": cut.counts}
    for name in SCENARIOS:
        part: Sequence[Group] = getattr(cut, name)
        kept, rewards, lengths = _scored(model, config, name, part, progress) if part else ([], [], Counter())
        results[name] = judged(kept, rewards)
        rows[name] = row_counts(len(part), {}, lengths)
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
    model: Judge, config: Evaluate, source: str, groups: Sequence[Group], progress: Progress
) -> tuple[list[Group], list[tuple[float, ...]], Counter[str]]:
    """The groups that fit, their rewards, and how many were dropped or truncated."""
    kept: list[Group] = []
    rewards: list[tuple[float, ...]] = []
    lengths: Counter[str] = Counter()
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        found = fitting_rewards(model, config, chunk)
        kept += [chunk[place] for place in found.places]
        rewards += found.rewards
        lengths.update(found.lengths)
        progress("scoring", start + len(chunk), len(groups))
    if not kept:
        raise all_too_long(model, config, source, len(groups))
    warn_of_lengths(source, lengths)
    return kept, rewards, lengths


def _write_page(directory: RunDirectory, config: Evaluate, found: _Found, report: Report) -> None:
    sections = [Section("Scenarios", table=found.table)] if config.scenarios is not None else []
    sections += [Section("Benchmarks", table=found.table)] if found.benchmarks else []
    sections.append(Section("Accuracy", table=accuracy_table(found.accuracies)))
    for number, (source, accuracy) in enumerate(found.accuracies.items()):
        figure = save_figure(reliability_figure(accuracy.calibration), directory.path, f"calibration-{number}")
        caption = "How often the preferred answer agrees with the data, by the model's own confidence."
        sections.append(Section(f"Calibration on {source}", figures=(PageFigure(figure.svg, caption, caption),)))
    verdict = report.headline[0].upper() + report.headline[1:] + "."
    page = Page("Evaluation", verdict, subtitle=config.model, sections=sections, provenance=provenance_rows(directory.path))
    write_page(directory.path / "report.html", page)
