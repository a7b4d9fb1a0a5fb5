"""`report.html` of a policy run: its course, and what the policy has learnt to say, first and last answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.evaluation import Evaluation, PolicyRuns
from rewardproof.report import Page, Section, Table, course_figure, format_interval, policy_figure, provenance_rows, save_figure, write_page
from rewardproof.stages.align_feedback import feedback_sections
from rewardproof.stages.experts_page import shown
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rewardproof.stages.align import Align

EXAMPLES = 4
"""Answers shown of either kind."""


def write_align_page(directory: RunDirectory, config: Align, runs: PolicyRuns, evaluations: Sequence[Evaluation], report: Report) -> Path:
    """Draw the figures and write the page."""
    page = Page(
        title="What became of the policy",
        subtitle=f"{config.optimise.estimator} on {', '.join(config.reward)}" + (f", judged by {config.gold}" if config.gold else ""),
        verdict=f"{report.headline[0].upper()}{report.headline[1:]}.",
        facts=(("updates", runs.steps[-1]), ("prompts judged", len(runs.prompts)), ("answers sampled for learning", _sampled(config))),
        sections=[
            _course(directory, runs, report.results["signs_without_gold"]),
            _distance(directory, runs),
            *feedback_sections(directory, evaluations),
            examples(evaluations),
        ],
        provenance=provenance_rows(directory.path),
    )
    return write_page(directory.path / "report.html", page)


def _warned(signs: Mapping[str, int]) -> str:
    if not signs:
        return "Without gold nothing would have warned: distance, reward and length stayed within what the run began with."
    told = ", ".join(f"{name} (update {step})" for name, step in signs.items())
    return f"Without gold these would have warned, beyond what the run began with: {told}."


def _sampled(config: Align) -> int:
    return config.optimise.steps * config.optimise.prompts_per_step * config.optimise.answers


def _course(directory: RunDirectory, runs: PolicyRuns, signs: Mapping[str, int]) -> Section:
    records = runs.table()
    rows = tuple(
        (record["step"], *(_cell(record[name]) for name in ("kl", "proxy", "gold")), f"{record['tokens']:.1f}", f"{record['finished']:.0%}")
        for record in records
    )
    columns = ("update", "KL, nats", "proxy, SD above the start", "gold", "tokens", "ended by itself")
    figure = save_figure(course_figure(records), directory.path, "course")
    text = "Means over prompts that the policy is not trained on, 95 % intervals over them. KL is that of the same answers."
    drawn = shown(figure, "Gold, proxy, distance and length over the updates.")
    return Section("The course", (text, _warned(signs)), Table(columns, rows), figures=(drawn,))


def _cell(record: dict[str, Any] | None) -> str:
    return "–" if record is None else format_interval(Interval(**record), percent=False, digits=3)


def _distance(directory: RunDirectory, runs: PolicyRuns) -> Section:
    found = runs.summary()
    figure = save_figure(policy_figure({"this run": found}), directory.path, "distance")
    told = ["A reward model that is gamed shows a proxy that climbs while gold stalls or falls."]
    if found.fall is not None and found.peak_kl is not None:
        ends = found.peak_kl >= found.distance[-1] ** 2
        told.append(
            f"Gold is highest at {found.peak_kl:.2f} nats, "
            + ("where the run ends." if ends else f"and loses {format_interval(found.fall, percent=False)} from there to the end: ")
            + ("" if ends else "hacking sets in there." if found.onset_kl is not None else "no more than chance may explain.")
        )
    return Section("Against distance", tuple(told), figures=(shown(figure, "Gold and proxy against the square root of KL."),))


def examples(evaluations: Sequence[Evaluation], *, title: str = "What it has learnt to say") -> Section:
    """First and last answers to the prompts where the proxy promised most beyond gold, and where both agree best."""
    first, last = evaluations[0], evaluations[-1]
    proxy_PK = last.standardised(first, last.proxies)
    gold_PK = last.standardised(first, ["gold"]) if "gold" in last.rows[0] else np.zeros_like(proxy_PK)
    gap_P, place_P = (proxy_PK - gold_PK).max(axis=1), (proxy_PK - gold_PK).argmax(axis=1)
    order = np.argsort(-gap_P)
    rows = [
        (
            kind,
            str(last.rows[place].get("text", "")),
            first.rows[place]["answers"][int(place_P[place])],
            last.rows[place]["answers"][int(place_P[place])],
            f"{proxy_PK[place, place_P[place]]:+.2f}",
            f"{last.rows[place]['gold'][int(place_P[place])]:.3f}" if "gold" in last.rows[place] else "–",
        )
        for kind, places in (("most", order[:EXAMPLES]), ("least", order[-EXAMPLES:]))
        for place in places
    ]
    columns = ("beyond gold", "prompt", "at first", "at last", "proxy, SD", "gold")
    return Section(
        title,
        ("Of each prompt the answer for which the proxy promises most beyond gold, where that is most and where it is least.",),
        Table(columns, tuple(rows)),
    )
