"""`report.html` of a stress test: the curves, the table, and picks side by side, so that a person sees what a model has learned to like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import RunDirectory
from rewardproof.report import (
    Page,
    Section,
    Table,
    format_gain,
    format_interval,
    hacking_figure,
    heat_maps,
    policy_figure,
    provenance_rows,
    save_figure,
    write_page,
)
from rewardproof.stages.align_page import examples
from rewardproof.stages.experts_page import shown
from rewardproof.stages.law_tables import law_sections

if TYPE_CHECKING:
    from rewardproof.stages.stress import Stress
    from rewardproof.stages.stress_best_of_n import BestOfN
    from rewardproof.stages.stress_policies import Policies


def write_stress_page(
    directory: RunDirectory, config: Stress, picks: BestOfN | None, policies: Mapping[str, Policies], headline: str
) -> Path:
    """Draw the figures and write the page."""
    facts: list[tuple[str, int]] = [("reward models", len(config.models))]
    sections: list[Section] = []
    if picks is not None:
        smallest = next(iter(picks.hacking.values())).pool
        facts += [("prompts with pools", len(picks.pools.groups)), ("answers to each, at least", smallest)]
        sections += [_compared(picks), _curves(directory, picks), *_examples(picks)]
    for found in policies.values():
        facts.append((f"{found.method} runs", len(config.models) * config.seeds))
        sections += _of_policies(directory, config, found)
    page = Page(
        title="Does optimising against it still help?",
        subtitle=f"{', '.join(config.methods)}; judged by {config.gold}",
        verdict=f"{headline[0].upper()}{headline[1:]}.",
        facts=tuple(facts),
        sections=sections,
        provenance=provenance_rows(directory.path),
    )
    return write_page(directory.path / "report.html", page)


def _compared(found: BestOfN) -> Section:
    rows: list[tuple[Any, ...]] = []
    for name, one in found.hacking.items():
        gain = found.gain.get(name)
        rows.append(
            (
                name,
                one.n_seeds,
                _number(one.gold[-1]),
                "–" if gain is None else _number(gain),
                _number(one.fall),
                _number(one.gap),
                one.peak_n,
                f"{one.kl[one.ns.index(one.peak_n)]:.2f}",
                f"{one.lengths[0]:.0f} → {one.lengths[-1]:.0f}",
            )
        )
    first_name, first = next(iter(found.hacking.items()))
    rows.append(("a random answer", "–", _number(first.random_gold), *["–"] * 6))
    rows.append(("gold's own choice", "–", f"{first.ceiling[-1]:.3f}", *["–"] * 6))
    columns = (
        "method", "seeds", f"gold of best of {first.ns[-1]}", f"gain over {first_name}", "lost since the peak",
        "promised beyond gold, SD", "peak at n", "KL at peak, nats", "characters",
    )  # fmt: skip
    text = (
        "Intervals are 95 %, over training seeds and prompts. What is lost since the peak is a little overstated, since the peak is chosen "
        "on the same prompts. The KL of best of n is an upper bound, and no axis to compare with a trained policy's."
    )
    return Section("The result", (text,), Table(columns, tuple(rows)))


def _curves(directory: RunDirectory, found: BestOfN) -> Section:
    figure = save_figure(hacking_figure(found.hacking), directory.path, "best-of-n")
    laws = []
    for name, one in found.hacking.items():
        if one.law is not None and one.law_range is not None:
            (a_low, a_high), (b_low, b_high) = one.law_range.alpha, one.law_range.beta
            laws.append(
                f"{name}: α {one.law.alpha:.3f} [{a_low:.3f}, {a_high:.3f}], β {one.law.beta:.3f} [{b_low:.3f}, {b_high:.3f}], "
                f"R² {one.law.r_squared:.2f}, peak inside the measured range in {one.law_range.bends:.0%} of resamples."
            )
    told = ["A model that is gamed shows a proxy that climbs while gold stalls or falls."]
    if laws:
        told.append("Fitted law of best of n, gold above its start = d (α − β d) with d = √KL: " + " ".join(laws))
    return Section("Optimised against", told, figures=(shown(figure, "Gold and proxy score of the pick against the square root of KL."),))


def _examples(found: BestOfN) -> list[Section]:
    sections = []
    for name, places in found.methods.items():
        picks = found.picks[name]
        rows = [
            (pick.kind, pick.group.prompt_text, pick.group.answer_texts[0], f"{pick.promised:+.2f}", f"{pick.gold:.3f}")
            for pick in picks.shown
        ]
        table = Table(("", "prompt", f"what {name} likes best", "proxy, SD", "gold"), tuple(rows))
        told = [f"Among all answers of a pool; first seed of {len(places)}."]
        words = [
            (f"{pick.kind}: {pick.group.prompt_text}", pick.group.answer_texts[0], pick.tokens)
            for pick in picks.shown
            if pick.tokens is not None
        ]
        if words:
            told.append(
                "Below the table, each piece is coloured by how far it moves the score of what stands there so far. A reward model is "
                "trained on whole answers; what it says before their end may be noise."
            )
        maps = heat_maps(words, mean=picks.scale.mean, std=picks.scale.std, unit="standard deviations over all answers")
        sections.append(Section(f"What {name} picks", told, table, heat_maps=maps))
    return sections


def _of_policies(directory: RunDirectory, config: Stress, found: Policies) -> list[Section]:
    rows: list[tuple[Any, ...]] = []
    for name, one in found.hacking.items():
        gain = found.gain.get(name)
        gain_there, gap = found.matched[name]
        cells = [one.start_gold, one.peak_gold, one.end_gold, one.fall, gap]
        start, peak, end, fall, promised = ("–" if cell is None else _number(cell) for cell in cells)
        gains = ("–" if cell is None else format_gain(cell) for cell in (gain, gain_there))
        kls = ("–" if kl is None else f"{kl:.2f}" for kl in (one.peak_kl, one.onset_kl, one.end_kl))
        tokens = f"{one.tokens[0]:.0f} → {one.tokens[1]:.0f}"
        rows.append((name, one.n_runs, start, peak, end, *gains, fall, promised, *kls, tokens))
    first, there = next(iter(found.hacking)), f"at KL {found.matched_kl:.1f}"
    columns = (
        "method", "runs", "gold at first", "gold at peak", "gold at last", f"gain over {first}", f"gain {there}", "lost since the peak",
        f"promised beyond gold {there}, SD", "KL at peak, nats", "falls from KL, nats", "KL at last, nats", "tokens",
    )  # fmt: skip
    figure = save_figure(policy_figure(found.hacking), directory.path, found.method)
    how = "exact at every token" if next(iter(found.hacking.values())).kl_estimator == "exact" else "the mean log-ratio (k1)"
    text = (
        "Intervals are 95 %, over runs and prompts. A method's curve is smoothed, and ends where its run that went least far ends; a "
        f"reward counts in standard deviations over the first policy's answers. KL is that of the policy, over an answer: {how}."
    )
    caption = "Gold and proxy of the policy's answers against the square root of KL."
    table = Section(f"Policies by {found.method}", (text,), Table(columns, tuple(rows)), figures=(shown(figure, caption),))
    said = [examples(evaluations, title=f"What {found.method} against {name} says") for name, evaluations in found.examples.items()]
    laws = {f"{name}: {measure}": law for name, fitted in found.laws.items() for measure, law in fitted.items()}
    return [table, *law_sections(laws), *said]


def _number(interval: Any) -> str:
    return format_interval(interval, percent=False, digits=3)
