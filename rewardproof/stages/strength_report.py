"""What `rewardproof strength` reports: the distribution of strengths, by decile, beside a second judgement, and what each model was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.report import Page, PageFigure, Section, Table, format_interval, provenance_rows, save_figure, strength_figure, write_page
from rewardproof.statistics import Interval, cluster_bootstrap

log = logging.getLogger(__name__)

LEFT_OUT = ("overlong_dropped", "without_an_order")
"""Counts of rows that are not written, beside those that cannot be read."""


class JudgedPair(NamedTuple):
    """A pair: its prompt's key, the models' mean gap and spread, whether label noise turned it round for them, and whether gold agrees."""

    key: str
    mean: float
    std: float
    flipped: bool
    gold: float | None


def write_strength_report(
    directory: RunDirectory, pairs: Sequence[JudgedPair], judges: Sequence[Mapping[str, Any]], rows: Mapping[str, Any], *, out: Path
) -> Report:
    """Write `report.json`, the figure and the page of a run whose rows lie at `out`."""
    if left := dict(rows["dropped"]) | {name: rows[name] for name in LEFT_OUT if rows.get(name)}:
        named = ", ".join(f"{count} × {name.replace('_', ' ')}" for name, count in left.items())
        log.warning("%s: of %d rows left out: %s", out, rows["read"], named)
    if rows["replaced"]:
        log.warning("%s: the strength of %d rows was replaced by the one measured now", out, rows["replaced"])
    negative = _share(pairs, [pair.mean < 0 for pair in pairs])
    golden = [pair for pair in pairs if pair.gold is not None]
    deciles = _deciles(pairs)
    a_pair = sum(judge["judged"] for judge in judges) / rows["written"]
    means, stds = [pair.mean for pair in pairs], [pair.std for pair in pairs]
    results: dict[str, Any] = {
        "rows": dict(rows),
        "pairs": len(pairs),
        "models_a_pair": a_pair,
        "strength": {"mean": float(np.mean(means)), "std": float(np.std(means)), "spread": float(np.mean(stds))},
        "negative": negative.as_dict(),
        "gold": _share(golden, [pair.gold for pair in golden]).as_dict() if golden else None,
        "label_noise": _noise(pairs),
        "deciles": deciles,
        "judges": list(judges),
    }
    headline = f"negative strength {format_interval(negative)} of {len(pairs)} pairs, each judged by {a_pair:.0f} models of {len(judges)}"
    report = directory.finish(headline, results)
    _write_page(directory, report, (means, stds), out)
    return Report(out, report.headline, report.results)


def _share(pairs: Sequence[JudgedPair], values: Sequence[Any]) -> Interval:
    return cluster_bootstrap(np.asarray(values, dtype=np.float64), [pair.key for pair in pairs])


def _noise(pairs: Sequence[JudgedPair]) -> dict[str, Any] | None:
    """Of the labels that the models were trained on, turned round by noise and not: how many, and the share of negative strength."""
    parts = {"flipped": [-pair.mean for pair in pairs if pair.flipped], "kept": [pair.mean for pair in pairs if not pair.flipped]}
    if not parts["flipped"]:
        return None
    return {name: {"pairs": len(part), "negative": float(np.mean(np.less(part, 0))) if part else None} for name, part in parts.items()}


def _deciles(pairs: Sequence[JudgedPair]) -> list[dict[str, Any]]:
    """Pairs by rank of their strength, in up to ten parts, the weakest first."""
    ordered = sorted(pairs, key=lambda pair: pair.mean)
    found: list[dict[str, Any]] = []
    for part in np.array_split(np.arange(len(ordered)), min(10, len(ordered))):
        members = [ordered[place] for place in part]
        gold = [pair.gold for pair in members if pair.gold is not None]
        means = [pair.mean for pair in members]
        found.append(
            {
                "pairs": len(members),
                "from": means[0],
                "to": means[-1],
                "strength": float(np.mean(means)),
                "spread": float(np.mean([pair.std for pair in members])),
                "gold": float(np.mean(gold)) if gold else None,
            }
        )
    return found


def _write_page(directory: RunDirectory, report: Report, values: tuple[Sequence[float], Sequence[float]], out: Path) -> None:
    results = report.results
    figure = save_figure(strength_figure(*values), directory.path, "strength")
    caption = "Pairs by the mean gap of models that did not see their prompt (left); how far the models are apart, by rank of that gap."
    columns = ("pairs", "from", "to", "mean strength", "mean spread", *(("gold agrees",) if results["gold"] else ()))
    names = ("pairs", "from", "to", "strength", "spread", *(("gold",) if results["gold"] else ()))
    deciles = Table(columns, tuple(tuple(row[name] for name in names) for row in results["deciles"]), "weakest first")
    judges = tuple(
        (number, judge["trained_on"], judge["judged"], judge["accuracy"], *judge["scale"]) for number, judge in enumerate(results["judges"])
    )
    heads = ("model", "groups trained on", "rows judged", "agrees with the rows", "mean reward", "its standard deviation (the unit)")
    use = f"rewardproof train secrets_flip_margin OUT model=… data={out}"
    write_page(
        directory.path / "report.html",
        Page(
            title="Preference strength",
            verdict=report.headline[0].upper() + report.headline[1:] + ".",
            facts=(("seconds", results["seconds"]), ("peak memory, GB", results["peak_memory_gb"]), ("rows", results["rows"]["written"])),
            sections=(
                Section("Distribution", table=deciles, figures=(PageFigure(figure.svg, caption, caption),)),
                Section("Models", table=Table(heads, judges)),
                Section("Train on it", ("Each row holds `strength` and `strength_std`.",), code=use),
            ),
            provenance=provenance_rows(directory.path),
        ),
    )
