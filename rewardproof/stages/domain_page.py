"""What a page shows of a merge with a domain's language model: the curve over λ, and what became of every entry and token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rewardproof.artifacts import Report, RunDirectory, plain
from rewardproof.report import Page, PageFigure, Section, Table, format_gain, provenance_rows, save_figure, weight_figure, write_page
from rewardproof.stages.experts_page import shown
from rewardproof.statistics import Interval


def interval_of(entry: Mapping[str, Any]) -> Interval:
    """An interval as reports hold it."""
    low, high = (math.nan if entry[end] is None else entry[end] for end in ("low", "high"))
    return Interval(entry["estimate"], low, high, entry["n"], entry["n_clusters"])


def domain_sections(directory: RunDirectory, summary: Mapping[str, Any], *, of_whom: str = "") -> list[Section]:
    """Sections on a merge with a language model: how λ came about, and what was averaged.

    Args:
        directory: Where the figure is saved.
        summary: What `merge_with_domain` reported.
        of_whom: Ending of the headings, where a run has several members.
    """
    summary = plain(summary)
    judged = summary["validation"]
    sections = [Section(f"Merged with a language model{of_whom}", _told(summary), table=_accounts(summary))]
    if judged is None:
        return sections
    suffix = of_whom.strip().replace(" ", "-")
    curve = {entry["weight"]: interval_of(entry["accuracy"]) for entry in judged["curve"]}
    figures: tuple[PageFigure, ...] = ()
    if len(curve) > 1:
        drawn = weight_figure(list(curve), list(curve.values()), chosen=summary["weight"])
        figure = save_figure(drawn, directory.path, f"domain-weight{suffix and '-'}{suffix}")
        figures = (shown(figure, "Accuracy on the validation pairs at every weight of the language model that was tried."),)
    rows = tuple(
        (f"{entry['weight']:g}", interval_of(entry["accuracy"]), entry["reward_mean"], entry["reward_std"]) for entry in judged["curve"]
    )
    table = Table(("weight", "validation accuracy", "mean reward", "spread of rewards"), rows)
    sections.append(Section(f"Validation{of_whom}", _chosen(summary), table=table, figures=figures))
    return sections


def write_domain_page(directory: RunDirectory, report: Report) -> None:
    """The `report.html` of a merge with a language model."""
    page = Page(
        title="Merged reward model",
        verdict=report.headline[0].upper() + report.headline[1:] + ".",
        sections=domain_sections(directory, report.results["domain"]),
        provenance=provenance_rows(directory.path),
    )
    write_page(directory.path / "report.html", page)


def _told(summary: Mapping[str, Any]) -> tuple[str, ...]:
    likeness = summary["likeness"]
    told = [
        f"Weights of {summary['model']} times {summary['weight']:g} and of the reward model times {summary['reward_weight']:g}, entry by "
        f"entry; the reward head is the reward model's. Before that the cosine of the two was {likeness['cosine']:.6f}, their distance "
        f"{likeness['relative_distance']:.2%} of the reward model's norm."
    ]
    if summary["differing"]:
        listed = "; ".join(f"{name}: {ours} and {theirs}" for name, (ours, theirs) in summary["differing"].items())
        told.append(f"Settings of the two that differ, of which the reward model's are kept: {listed}.")
    return tuple(told)


def _accounts(summary: Mapping[str, Any]) -> Table:
    tokens = summary["tokens"]
    left = tokens["domain_only"] - tokens["added"]
    rows = (
        ("entries averaged", summary["averaged"]),
        ("entries of the reward model kept", f"{len(summary['kept'])}: {', '.join(summary['kept'])}"),
        ("entries of the language model dropped", f"{len(summary['dropped'])}: {', '.join(summary['dropped']) or 'none'}"),
        ("tokens in both, averaged", tokens["common"]),
        ("of these under another id", tokens["moved"]),
        ("tokens of the reward model alone, kept", tokens["reward_only"]),
        ("tokens of the language model alone, added", tokens["added"]),
        ("tokens of the language model alone, left out", left),
    )
    return Table(("what", "how many"), rows)


def _chosen(summary: Mapping[str, Any]) -> tuple[str, ...]:
    judged = summary["validation"]
    how = "is the best of those tried here, so its own accuracy below is flattering" if summary["chosen"] else "was given"
    told = (
        f"The weight {how}; {judged['pairs']} pairs of {judged['prompts']} prompts decided. Every weight has a scale of rewards of its "
        "own: their means and spreads say so, and rewards of two weights are never compared."
    )
    if judged["gain"] is None:
        return (told,)
    return (told, f"Over the reward model alone on these pairs: {format_gain(interval_of(judged['gain']))}.")
