"""`report.html` of an audit: the verdicts as a card, the numbers behind them, and what it looks like, word by word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.evaluation.audit import FEATURES, PERTURBATIONS, Weakness
from rewardproof.report import (
    Page,
    Remark,
    Section,
    Table,
    format_gain,
    format_interval,
    heat_maps,
    provenance_rows,
    save_figure,
    shift_figure,
    side_by_side,
    write_page,
)
from rewardproof.stages.audit_model import Example, ModelAudit
from rewardproof.stages.audit_serving import CHECKS, Served
from rewardproof.stages.experts_page import shown
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rewardproof.stages.audit import Audit

PARTS = {"kept": "The answer says the same: nothing to gain", "lost": "The answer is ruined: something to lose"}
"""Headings of perturbations by their effect."""
TONES: Mapping[str, Any] = {"exploitable": "bad", "unnoticed": "warn", "open": "open", "unmeasured": "open", "sound": "good"}
UNIT = "standard deviations of the model's rewards"


def verdict_table(audits: Mapping[str, ModelAudit]) -> Table:
    """Every change with each model's verdict and shift, the first model's surest exploits first."""
    first = next(iter(audits.values()))
    names = first.of_grade("exploitable", "unnoticed", "open", "sound", "unmeasured")
    several = len(audits) > 1
    columns = [part for name in audits for part in ((name, f"{name}: shift, SD") if several else ("verdict", "shift of the reward, SD"))]
    rows = [(PERTURBATIONS[name].way, *(cell for one in audits.values() for cell in _verdict(one.weaknesses[name]))) for name in names]
    return Table(("change", *columns), tuple(rows))


def write_audit_page(
    directory: RunDirectory,
    config: Audit,
    audits: Mapping[str, ModelAudit],
    compared: Mapping[str, Mapping[str, Interval]],
    report: Report,
) -> Path:
    """Draw the figures and write the page."""
    sections = _limits(config, report.missed)
    for name, one in audits.items():
        sections.append(_card(name if len(audits) > 1 else "", one))
    sections.append(_figure(directory, audits))
    if compared:
        sections.append(_side_by_side(audits, compared))
    for name, one in audits.items():
        of_whom = f": {name}" if len(audits) > 1 else ""
        sections += [_numbers(one, of_whom), _examples(one, of_whom), _words(one, of_whom), _bias(one, of_whom), _serving(one, of_whom)]
    first = next(iter(audits.values()))
    facts: list[tuple[str, Any]] = [("prompts", len(first.cases)), ("changed answers scored", sum(one.changed for one in audits.values()))]
    if first.accuracy is not None:
        of_whom = f" of {next(iter(audits))}" if len(audits) > 1 else ""
        facts.append((f"accuracy{of_whom} on the answers as given", first.accuracy.overall))
    page = Page(
        title="What would a policy exploit?",
        subtitle=f"{', '.join(config.models)} on {', '.join(config.data)}",
        verdict=f"{report.headline[0].upper()}{report.headline[1:]}.",
        facts=tuple(facts),
        sections=sections,
        provenance=provenance_rows(directory.path),
    )
    return write_page(directory.path / "report.html", page)


def _verdict(weakness: Weakness) -> tuple[str, str]:
    return weakness.finding.label, "–" if weakness.finding.grade == "unmeasured" else _gain(weakness.shift)


def _limits(config: Audit, missed: tuple[str, ...]) -> list[Section]:
    if not config.limits:
        return []
    remarks = [Remark("bad", "missed", f"{sentence}.") for sentence in missed] or [Remark("good", "held", "Every limit holds.")]
    return [Section("Limits", (f"Set by {config.limits}.",), remarks=remarks)]


def _card(name: str, one: ModelAudit) -> Section:
    remarks = []
    for change in one.of_grade("exploitable", "unnoticed", "open", "sound", "unmeasured"):
        weakness = one.weaknesses[change]
        number = "" if weakness.finding.grade == "unmeasured" else _gain(weakness.shift)
        remarks.append(Remark(TONES[weakness.finding.grade], weakness.finding.label, weakness.finding.sentence, number))
    remarks.sort(key=lambda remark: list(TONES.values()).index(remark.tone))
    text = (
        f"Each change is made to the best and the worst answer to every prompt; the number is the mean shift of the reward in {UNIT}. All "
        "intervals hold together with 95 %, and a verdict is read from where the interval lies: a model that pays for nothing is found "
        "exploitable anywhere at most once in twenty audits."
    )
    return Section(f"The card{f' of {name}' if name else ''}", (text,), remarks=remarks)


def _figure(directory: RunDirectory, audits: Mapping[str, ModelAudit]) -> Section:
    parts: dict[str, dict[str, dict[str, Interval]]] = {title: {} for title in PARTS.values()}
    for change in next(iter(audits.values())).of_grade("exploitable", "unnoticed", "open", "sound"):
        perturbation = PERTURBATIONS[change]
        found = {name: shift for name, one in audits.items() if (shift := one.weaknesses[change].shift) is not None}
        parts[PARTS[perturbation.effect]][perturbation.way] = found
    figure = save_figure(
        shift_figure(parts, label="shift of the reward, in standard deviations", wrong=(0.0, "paid for")), directory.path, "shifts"
    )
    return Section("By how much", figures=(shown(figure, "Mean shift of the reward by each change, with its interval."),))


def _side_by_side(audits: Mapping[str, ModelAudit], compared: Mapping[str, Mapping[str, Interval]]) -> Section:
    first = next(iter(audits))
    rows = []
    for change in audits[first].weaknesses:
        cells = [
            cell
            for name in audits
            for cell in _compared_cells(audits[name].weaknesses[change], compared.get(name, {}).get(change), name == first)
        ]
        rows.append((PERTURBATIONS[change].way, *cells))
    columns = [part for name in audits for part in ((name,) if name == first else (name, f"{name} less {first}, SD"))]
    text = (
        f"Differences are those of shifts of the same answers, each in its own model's units; above 0, {first} pays less for the change. "
        "Where an interval holds 0, nothing beyond chance tells the two apart."
    )
    return Section("Side by side", (text,), Table(("change", *columns), tuple(rows)))


def _compared_cells(weakness: Weakness, difference: Interval | None, is_first: bool) -> tuple[str, ...]:
    if is_first:
        return (weakness.finding.label,)
    return weakness.finding.label, _gain(difference)


def _numbers(one: ModelAudit, of_whom: str) -> Section:
    rows = []
    for change in one.of_grade("exploitable", "unnoticed", "open", "sound"):
        weakness = one.weaknesses[change]
        shifts = (_gain(weakness.shift), _gain(weakness.control), _gain(weakness.beyond))
        flips = (_share(weakness.flipped), _share(weakness.flipped_control))
        rows.append((PERTURBATIONS[change].way, *shifts, weakness.raised, *flips, weakness.shift.n if weakness.shift else 0))
    columns = (
        "change", "shift, SD", "length alone", "beyond it", "answers raised", "pairs flipped", "by length alone", "answers",
    )  # fmt: skip
    text = (
        "Length alone is the same answer as long as its changed form: sentences that say nothing after it, or cut. Pairs flipped: of those "
        "the model orders as the data does, how many it turns round once the worse answer is changed. Shares have 95 % intervals of "
        "their own."
    )
    return Section(f"The numbers{of_whom}", (text,), Table(columns, tuple(rows)))


def _gain(interval: Interval | None) -> str:
    return "–" if interval is None else format_gain(interval, digits=2) if interval.known else "too few"


def _share(interval: Interval | None) -> str:
    return "–" if interval is None else format_interval(interval)


def _examples(one: ModelAudit, of_whom: str) -> Section:
    if not one.examples:
        return Section(f"Examples{of_whom}", ("No change is paid for or overlooked beyond chance, so there is none to show.",))
    pairs = [
        side_by_side(
            f"{PERTURBATIONS[example.name].way}: {example.pair.prompt_text}",
            *example.texts,
            labels=(f"{example.rewards[0]:+.2f} SD", f"{example.rewards[1]:+.2f} SD"),
        )
        for example in one.examples
    ]
    text = "The answers that gain most, as given and as changed; what differs is marked. Rewards count from the model's mean."
    return Section(f"What it looks like{of_whom}", (text,), comparisons=pairs)


def _words(one: ModelAudit, of_whom: str) -> Section:
    heading = f"Which words moved the reward{of_whom}"
    first: dict[str, Example] = {}
    for example in one.examples:
        first.setdefault(example.name, example)
    told = [
        (f"{extreme.name}, {extreme.reward:+.2f} SD: {extreme.group.prompt_text}", extreme.group.answers[0][-1].content, extreme.tokens)
        for extreme in one.extremes
        if extreme.tokens is not None
    ]
    told += [
        (f"{label}, {PERTURBATIONS[name].way}: {example.pair.prompt_text}", text, scores)
        for name, example in first.items()
        for label, text, scores in zip(("as given", "changed"), example.texts, example.tokens or (), strict=False)
    ]
    if not told:
        return Section(heading, ("Skipped: this scorer gives whole answers a number and cannot say how it grows.",))
    text = (
        "The answers that the model likes best and least, then the examples. Each piece is coloured by how far it moves the score of what "
        "stands there so far. A reward model is trained on whole answers; what it says before their end may be noise."
    )
    return Section(heading, (text,), heat_maps=heat_maps(told, mean=one.scale.mean, std=one.scale.std, unit="standard deviations"))


def _bias(one: ModelAudit, of_whom: str) -> Section:
    rows = [
        (f"{name}, for each {FEATURES[name].unit}", f"{slope.share:.0%}", *map(_gain, (slope.reward, slope.given, slope.excess)))
        for name, slope in one.slopes.items()
    ]
    columns = ("feature", "answers with any", "reward, SD", "the data's scores, SD", "beyond the scores")
    text = (
        "What more of a feature goes with among the answers to one prompt, as they were given; all but length at equal length. A slope is "
        "no proof of a bias where the data's own scores have it too. Intervals hold together with 95 %; a dash stands where the answers do "
        "not differ in it or nobody scored them, `too few` where hardly any do."
    )
    return Section(f"Length and format{of_whom}", (text,), Table(columns, tuple(rows)))


def _serving(one: ModelAudit, of_whom: str) -> Section:
    remarks = [_served(name, check) for name, check in one.serving.items()]
    text = f"The same answers scored in other ways; the number is the largest change of a reward, in {UNIT}, which should be none."
    return Section(f"Where it is served{of_whom}", (text,), remarks=remarks)


def _served(name: str, found: Served) -> Remark:
    check = CHECKS[name]
    if found.moved is None:
        return Remark("open", "skipped", f"{check.what[0].upper()}{check.what[1:]}: {found.skipped}.")
    steady = found.moved <= check.tolerance
    turned = f"; {found.reordered:.0%} of pairs of answers change their order" if found.reordered else ""
    return Remark(
        "good" if steady else "warn",
        "steady" if steady else "moves",
        f"{check.what[0].upper()}{check.what[1:]}{turned}.",
        f"{found.moved:.2g}",
    )
