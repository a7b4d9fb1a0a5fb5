"""What a training run shows: the accuracy table, figures of training, routing and coefficients, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewardproof.artifacts import Report, RunDirectory, plain
from rewardproof.data import Group
from rewardproof.evaluation import AccuracyReport, pair_accuracy
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import (
    Page,
    PageFigure,
    SavedFigure,
    Section,
    Table,
    coefficients_figure,
    reliability_figure,
    routing_figure,
    save_figure,
    training_figure,
    write_page,
)
from rewardproof.stages.members import Member

CHUNK = 256
"""Groups scored between two signs of progress."""


def scored(model: RewardModel, groups: Sequence[Group], progress: Callable[[str, int, int], None]) -> list[tuple[float, ...]]:
    """Rewards of all groups, with progress."""
    rewards: list[tuple[float, ...]] = []
    for start in range(0, len(groups), CHUNK):
        rewards += model.score(groups[start : start + CHUNK])
        progress("scoring", len(rewards), len(groups))
    return rewards


def accuracy_of(model: RewardModel, groups: Sequence[Group], progress: Callable[[str, int, int], None]) -> AccuracyReport:
    """Pair accuracy of a model on groups."""
    return pair_accuracy(groups, scored(model, groups, progress))


def accuracy_table(reports: Mapping[str, AccuracyReport]) -> Table:
    """One row a data set or model, and one a subset of it, beside the length rule on the same pairs."""
    rows: list[tuple[Any, ...]] = []
    for name, report in reports.items():
        rows.append((name, report.overall, report.length_only, report.n_pairs, round(report.ece, 3), report.length_correlation))
        for subset, interval in report.by_subset.items():
            rows.append((f"· {subset}", interval, report.length_only_by_subset.get(subset), interval.n, None, None))
    return Table(("data", "pair accuracy", "longer answer wins", "pairs", "calibration error", "length correlation"), tuple(rows))


def write_training_report(directory: RunDirectory, report: Report, accuracy: AccuracyReport | None, members: Sequence[Member]) -> None:
    """Draw the figures of a run and write `report.html`."""
    sections: list[Section] = []
    if accuracy is not None:
        figure = save_figure(reliability_figure(accuracy.calibration), directory.path, "calibration")
        sections.append(
            Section(
                "Held-out preferences",
                table=accuracy_table({"held out": accuracy}),
                figures=(_shown(figure, "How often the preferred answer agrees with the data, by the model's own confidence."),),
            )
        )
    records = _records(directory)
    if any("loss" in record for record in records):
        figure = save_figure(training_figure(records, accuracy="pair/accuracy"), directory.path, "training")
        sections.append(Section("Training", figures=(_shown(figure, "Loss and pair accuracy on the training steps."),)))
    for number, member in enumerate(members):
        sections += _merge_sections(directory, plain(member.summary), "" if len(members) == 1 else f" of member {number}")
    load = (
        "from transformers import AutoModelForSequenceClassification\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{directory.path}/model")'
    )
    sections.append(Section("Load it", ("The delivered model is a stock checkpoint.",), code=load))
    write_page(
        directory.path / "report.html",
        Page(
            title="Reward model",
            verdict=report.headline[0].upper() + report.headline[1:] + ".",
            facts=(
                ("seconds", report.results["seconds"]),
                ("peak memory, GB", report.results["peak_memory_gb"]),
                ("parameters", report.results["parameters"]),
            ),
            sections=sections,
            provenance=provenance_rows(directory),
        ),
    )


def provenance_rows(directory: RunDirectory) -> tuple[tuple[str, str], ...]:
    """The page's footer: what it takes to make the run again."""
    import json

    found = json.loads((directory.path / "provenance.json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (("command", found["command"]), ("commit", str(found["commit"])), ("versions", versions), ("started", found["started"]))


def _records(directory: RunDirectory) -> list[dict[str, Any]]:
    import json

    file = directory.path / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line.get("phase") in {"training", "mixture"}]


def _shown(figure: SavedFigure, caption: str) -> PageFigure:
    return PageFigure(figure.svg, caption, caption)


def _merge_sections(directory: RunDirectory, summary: Mapping[str, Any], of_whom: str) -> list[Section]:
    found = summary.get("merge") or summary.get("mixture") or {}
    if "routing" not in found:
        return []
    routing, name = found["routing"], of_whom.strip().replace(" ", "-") or "experts"
    layers = [f"layer {layer}" for layer in routing]
    loads = np.array([entry["load"] for entry in routing.values()])
    figures = [
        _shown(
            save_figure(
                routing_figure(loads, layers, expert_names=[f"expert {number + 1}" for number in range(loads.shape[1])]),
                directory.path,
                f"routing-{name}",
            ),
            "Share of tokens that each routed expert gets.",
        )
    ]
    if "coefficients" in found:
        values = np.array(list(found["coefficients"].values()))
        names = ["shared", *[f"expert {number}" for number in range(1, values.shape[1])]]
        figure = save_figure(coefficients_figure(values, layers, expert_names=names), directory.path, f"coefficients-{name}")
        figures.append(_shown(figure, "Coefficient of every expert in the merged block, by layer."))
    rows = tuple(
        (
            f"layer {entry['layer']}",
            f"{min(entry['cosine']):.6f}",
            f"{max(entry['relative_distance']):.5f}",
            f"{routing[str(entry['layer'])]['weights'][0]:.3f}",
            f"{routing[str(entry['layer'])]['entropy']:.3f}",
        )
        for entry in found["divergence"]
    )
    table = Table(("layer", "smallest cosine to shared", "largest distance to shared", "mean shared weight", "routing entropy, nats"), rows)
    text = []
    if found.get("held_out"):
        held = found["held_out"]
        correlation = "not at all (one of them gives all the same)" if held["correlation"] is None else f"{held['correlation']:.4f}"
        text.append(
            f"On held-out answers the merged model's rewards correlate {correlation} with the mixture's; accuracy "
            f"{held['mixture_accuracy']['estimate']:.1%} before and {held['merged_accuracy']['estimate']:.1%} after merging."
        )
    return [Section(f"Experts{of_whom}", tuple(text), table=table, figures=tuple(figures))]
