"""`report.html` of a policy run: its course, and what the policy has learnt to say, first and last answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.data import Group, Message
from rewardproof.evaluation import Evaluation, PolicyRuns
from rewardproof.report import (
    Page,
    Section,
    Table,
    course_figure,
    format_interval,
    heat_maps,
    policy_figure,
    provenance_rows,
    save_figure,
    write_page,
)
from rewardproof.scoring import Scale, Scorer, reads_tokens
from rewardproof.stages.align_direct import direct_section
from rewardproof.stages.experts_page import shown
from rewardproof.stages.law_tables import law_sections
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rewardproof.stages.align import Align

EXAMPLES = 4
"""Answers shown of either kind."""


@dataclass(frozen=True, slots=True)
class Pick:
    """An answer worth showing.

    Attributes:
        kind: Whether the proxy promises `most` beyond gold or `least`.
        prompt: Place of the prompt.
        answer: Place of the answer.
        proxy: What it promises, standard deviations.
    """

    kind: str
    prompt: int
    answer: int
    proxy: float


def write_align_page(
    directory: RunDirectory,
    config: Align,
    runs: PolicyRuns,
    evaluations: Sequence[Evaluation],
    report: Report,
    *,
    constraints: Sequence[Section] = (),
    more: Sequence[Section] = (),
) -> Path:
    """Draw the figures and write the page; `constraints` come after the course, `more` sections last."""
    course = _course(directory, config, runs, report.results["signs_without_gold"])
    learnt = [direct_section(directory, evaluations)] if config.direct else []
    judges = f"judged by {config.gold}" if config.gold else "judged by nobody"
    page = Page(
        title="What became of the policy",
        subtitle=f"{config.direct.name} on preferences, {judges}"
        if config.direct
        else f"{config.optimise.estimator} on {', '.join(config.reward)}, {judges}",
        verdict=f"{report.headline[0].upper()}{report.headline[1:]}.",
        facts=(("updates", runs.steps[-1]), ("prompts judged", len(runs.prompts)), _learnt_from(config, runs)),
        sections=[
            course,
            *learnt,
            *constraints,
            _distance(directory, runs),
            *law_sections(runs.laws(seed=config.seed)),
            examples(evaluations),
            *more,
        ],
        provenance=provenance_rows(directory.path),
    )
    return write_page(directory.path / "report.html", page)


def _warned(signs: Mapping[str, int]) -> str:
    if not signs:
        return "Without gold nothing would have warned: distance, reward and length stayed within what the run began with."
    told = ", ".join(f"{name} (update {step})" for name, step in signs.items())
    return f"Without gold these would have warned, beyond what the run began with: {told}."


def _learnt_from(config: Align, runs: PolicyRuns) -> tuple[str, int]:
    if config.direct is not None:
        return "prompts' preferences met", runs.steps[-1] * config.direct.groups_per_step
    return "answers sampled for learning", config.optimise.steps * config.optimise.prompts_per_step * config.optimise.answers


def _course(directory: RunDirectory, config: Align, runs: PolicyRuns, signs: Mapping[str, int]) -> Section:
    records = runs.table()
    rows = tuple(
        (record["step"], *(_cell(record[name]) for name in ("kl", "proxy", "gold")), f"{record['tokens']:.1f}", f"{record['finished']:.0%}")
        for record in records
    )
    columns = ("update", "KL, nats", f"{runs.proxy_name}, {runs.proxy_unit} above the start", "gold", "tokens", "ended by itself")
    figure = save_figure(course_figure(records, unit=runs.proxy_unit), directory.path, "course")
    text = "Means over prompts that the policy is not trained on, 95 % intervals over them. KL is that of the same answers."
    drawn = shown(figure, "Gold, proxy, distance and length over the updates.")
    warned = "An update samples no answers, so nothing was watched on the way that could have warned." if config.direct else _warned(signs)
    return Section("The course", (text, warned), Table(columns, rows), figures=(drawn,))


def _cell(record: dict[str, Any] | None) -> str:
    return "–" if record is None else format_interval(Interval(**record), percent=False, digits=3)


def _distance(directory: RunDirectory, runs: PolicyRuns) -> Section:
    found = runs.summary()
    figure = save_figure(policy_figure({"this run": found}, unit=runs.proxy_unit), directory.path, "distance")
    told = ["A reward model that is gamed shows a proxy that climbs while gold stalls or falls."]
    if found.fall is not None and found.peak_kl is not None:
        ends = found.peak_kl >= found.distance[-1] ** 2
        told.append(
            f"Gold is highest at {found.peak_kl:.2f} nats, "
            + ("where the run ends." if ends else f"and loses {format_interval(found.fall, percent=False)} from there to the end: ")
            + ("" if ends else "hacking sets in there." if found.onset_kl is not None else "no more than chance may explain.")
        )
    return Section("Against distance", tuple(told), figures=(shown(figure, "Gold and proxy against the square root of KL."),))


def picked(evaluations: Sequence[Evaluation]) -> list[Pick]:
    """Of each prompt the last answer that promises most beyond gold, where that is most and where it is least."""
    first, last = evaluations[0], evaluations[-1]
    proxy_PK = last.standardised(first, last.proxies)
    gold_PK = last.standardised(first, ["gold"]) if "gold" in last.rows[0] else np.zeros_like(proxy_PK)
    gap_P, place_P = (proxy_PK - gold_PK).max(axis=1), (proxy_PK - gold_PK).argmax(axis=1)
    order = np.argsort(-gap_P)
    return [
        Pick(kind, int(prompt), int(place_P[prompt]), float(proxy_PK[prompt, place_P[prompt]]))
        for kind, prompts in (("most", order[:EXAMPLES]), ("least", order[-EXAMPLES:]))
        for prompt in prompts
    ]


def examples(evaluations: Sequence[Evaluation], *, title: str = "What it has learnt to say") -> Section:
    """First and last answers to the prompts where the proxy promised most beyond gold, and where both agree best."""
    first, last = evaluations[0], evaluations[-1]
    rows = [
        (
            pick.kind,
            str(last.rows[pick.prompt].get("text", "")),
            first.rows[pick.prompt]["answers"][pick.answer],
            last.rows[pick.prompt]["answers"][pick.answer],
            f"{pick.proxy:+.2f}",
            f"{last.rows[pick.prompt]['gold'][pick.answer]:.3f}" if "gold" in last.rows[pick.prompt] else "–",
        )
        for pick in picked(evaluations)
    ]
    columns = ("beyond gold", "prompt", "at first", "at last", "proxy, SD", "gold")
    return Section(
        title,
        ("Of each prompt the answer for which the proxy promises most beyond gold, where that is most and where it is least.",),
        Table(columns, tuple(rows)),
    )


def token_maps(
    scorers: Mapping[str, Scorer], scales: Mapping[str, Scale], prompts: Sequence[Group], evaluations: Sequence[Evaluation]
) -> list[Section]:
    """The last answers that `examples` shows, with what each of their tokens adds to the score, by each reward that can say.

    Args:
        scorers: By the name of their stream.
        scales: Zero and unit of each.
        prompts: Those of the evaluations' rows, in order.
        evaluations: The run's.
    """
    picks, rows = picked(evaluations), evaluations[-1].rows
    texts = [rows[pick.prompt]["answers"][pick.answer] for pick in picks]
    groups = [
        replace(prompts[pick.prompt], answers=((Message("assistant", text),),), scores=None)
        for pick, text in zip(picks, texts, strict=True)
    ]
    sections: list[Section] = []
    for name, scorer in scorers.items():
        if not reads_tokens(scorer):
            continue
        answers = [
            (f"{pick.kind} beyond gold: {group.prompt_text}", text, found)
            for pick, group, text, (found,) in zip(picks, groups, texts, scorer.score_tokens(groups), strict=True)
        ]
        scale = scales[name]
        maps = heat_maps(answers, mean=scale.mean, std=scale.std, unit="standard deviations over the first answers")
        text = (
            f"Its last answers again, as {name} reads them: how far each piece moves the score of what stands there so far. A reward model "
            "is trained on whole answers; what it says before the end may be noise."
        )
        sections.append(Section(f"Where {name} sees it", (text,), heat_maps=maps))
    return sections
