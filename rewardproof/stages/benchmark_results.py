"""Benchmarks in an evaluation's report: one table with everything in it, one sentence, and what is not the whole benchmark said."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rewardproof.evaluation import AccuracyReport, BenchmarkScore
from rewardproof.report import Table, format_interval
from rewardproof.stages.training_report import accuracy_table

log = logging.getLogger(__name__)
COLUMNS = ("data", "score", "longest wins", "shortest wins", "rows")


def result_table(scores: Mapping[str, BenchmarkScore], plain: Mapping[str, AccuracyReport]) -> Table:
    """The benchmarks' numbers, and pair accuracy on what is no benchmark's; where none is, the table of accuracies."""
    if not scores:
        return accuracy_table(plain)
    rows: list[tuple[Any, ...]] = []
    for score in scores.values():
        for line in score.lines:
            label = f"{'· ' * line.depth}{line.label}" + ("" if line.depth else f", {score.number}{_part_of_it(score)}")
            lengths = (f"{100 * line.estimate(judge):.1f} %" for judge in ("longest", "shortest"))
            rows.append((label, line.interval(), *lengths, line.n))
    for source, report in plain.items():
        longest = 100 * report.length_only.estimate
        rows.append((f"{source}, pair accuracy", report.overall, f"{longest:.1f} %", f"{100 - longest:.1f} %", report.n_groups))
    return Table(COLUMNS, tuple(rows))


def result_sentence(scores: Mapping[str, BenchmarkScore], plain: Mapping[str, AccuracyReport]) -> str:
    """Every benchmark's number, and the accuracy on the first data set that is none's."""
    parts = [f"{score.title} {format_interval(score.lines[0].interval())}{_part_of_it(score)}" for score in scores.values()]
    for report in list(plain.values())[:1]:
        rule = f"longer answer wins: {format_interval(report.length_only)}"
        parts.insert(0, f"accuracy {format_interval(report.overall)} on {report.n_pairs} pairs ({rule})")
    return "; ".join(parts)


def warn_of_differences(scores: Mapping[str, BenchmarkScore]) -> None:
    """Say of which benchmarks other rows were judged than the whole."""
    for score in scores.values():
        if not score.complete:
            told = "; ".join(score.differences)
            log.warning("%s: its number is of what is there, which is not the whole benchmark and no more: %s", score.title, told)


def _part_of_it(score: BenchmarkScore) -> str:
    return "" if score.complete else " (of a part of it)"
