"""What a page shows of experts: routing, coefficients and divergence, as tables and figures; shared by train, merge and demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewardproof.artifacts import Report, RunDirectory, plain
from rewardproof.report import (
    Page,
    PageFigure,
    SavedFigure,
    Section,
    Table,
    coefficients_figure,
    provenance_rows,
    regimes_figure,
    routing_figure,
    save_figure,
    write_page,
)


def shown(figure: SavedFigure, caption: str) -> PageFigure:
    """A saved figure on a page, its caption also for readers who cannot see it."""
    return PageFigure(figure.svg, caption, caption)


def experts_sections(directory: RunDirectory, summary: Mapping[str, Any], *, of_whom: str = "") -> list[Section]:
    """Sections on a mixture: how far its experts parted, its routing where that was measured, and its coefficients where it was merged.

    Args:
        directory: Where figures are saved.
        summary: What `merge_mixture` reported, or a mixture's `routing` and `divergence`.
        of_whom: Ending of the headings, where a run has several mixtures.
    """
    summary = plain(summary)
    layers = [f"layer {entry['layer']}" for entry in summary["divergence"]]
    experts = [f"expert {number + 1}" for number in range(len(summary["divergence"][0]["cosine"]))]
    suffix = of_whom.strip().replace(" ", "-")
    figures: tuple[PageFigure, ...] = ()
    if "routing" in summary:
        loads = np.array([entry["load"] for entry in summary["routing"].values()])
        figure = save_figure(routing_figure(loads, layers, expert_names=experts), directory.path, f"routing{suffix and '-'}{suffix}")
        figures = (shown(figure, "Share of tokens that each routed expert gets, by layer."),)
    sections = [Section(f"Experts{of_whom}", _told(summary), table=_divergence_table(summary), figures=figures)]
    if "coefficients" in summary:
        values = np.array(list(summary["coefficients"].values()))
        names = ["shared", *experts]
        figure = save_figure(
            coefficients_figure(values, layers, expert_names=names), directory.path, f"coefficients{suffix and '-'}{suffix}"
        )
        rows = tuple((layer, *(f"{value:.3f}" for value in row)) for layer, row in zip(layers, values, strict=True))
        sections.append(
            Section(
                f"Merge coefficients{of_whom}",
                _learned(summary),
                table=Table(("layer", *names), rows),
                figures=(shown(figure, "Coefficient of every expert in the merged block, by layer."),),
            )
        )
    return sections


def specialists_section(directory: RunDirectory, summary: Mapping[str, Any], *, of_whom: str = "") -> Section:
    """Section on how far experts became specialists, from `specialisation_summary`."""
    summary = plain(summary)
    layers = [f"layer {layer}" for layer in summary["parted"]]
    experts = [f"expert {number + 1}" for number in range(len(next(iter(summary["parted"].values()))))]
    rows = tuple((layer, *(f"{value:.4f}" for value in row)) for layer, row in zip(layers, summary["parted"].values(), strict=True))
    figures: tuple[PageFigure, ...] = ()
    if "regime_weights" in summary:
        weights = {regime: list(by_layer.values()) for regime, by_layer in summary["regime_weights"].items()}
        drawn = regimes_figure(weights, list(summary["regime_information"].values()), layers, expert_names=experts)
        suffix = of_whom.strip().replace(" ", "-")
        saved = save_figure(drawn, directory.path, f"regimes{suffix and '-'}{suffix}")
        figures = (
            shown(saved, "Mean weight of every routed expert on the prompts of each subset, and what a prompt's expert tells of it."),
        )
    return Section(f"Specialists{of_whom}", _alone(summary), table=Table(("distance over way", *experts), rows), figures=figures)


def _alone(summary: Mapping[str, Any]) -> tuple[str, ...]:
    told = (
        "How far each routed expert is from the shared one for how far that one moved in training; where the shared one takes no part, "
        "the routed experts' mean stands for it."
    )
    if "alone" not in summary:
        return (told,)
    accuracy = ", ".join(f"{entry['estimate']:.1%}" for entry in summary["alone"]["accuracy"])
    least = summary["alone"]["smallest_correlation"]
    said = "" if least is None else f"; the rewards of two of them correlate {least:.4f} at least"
    return (told, f"Each routed expert computing every token alone has a held-out accuracy of {accuracy}{said}.")


def write_merge_page(directory: RunDirectory, report: Report, summary: Mapping[str, Any]) -> None:
    """The `report.html` of a merge."""
    page = Page(
        title="Merged reward model",
        verdict=report.headline[0].upper() + report.headline[1:] + ".",
        sections=[*experts_sections(directory, summary), _memory_section(report)],
        provenance=provenance_rows(directory.path),
    )
    write_page(directory.path / "report.html", page)


def _memory_section(report: Report) -> Section:
    rows = (("the mixture's weights on disk", report.results["mixture_gb"]), ("peak of this merge", report.results["peak_memory_gb"]))
    return Section("Memory", table=Table(("memory", "GB"), rows))


def _told(summary: Mapping[str, Any]) -> tuple[str, ...]:
    cosine = min(min(entry["cosine"]) for entry in summary["divergence"])
    distance = max(max(entry["relative_distance"]) for entry in summary["divergence"])
    told = f"The smallest cosine of an expert to the shared one is {cosine:.6f}, the largest distance {distance:.2%} of its norm."
    held = summary.get("held_out")
    if not held:
        return (told,)
    correlation = "are constant on one side" if held["correlation"] is None else f"correlate {held['correlation']:.4f}"
    compared = (
        f"On held-out answers the rewards of mixture and merged model {correlation}; accuracy is "
        f"{held['mixture_accuracy']['estimate']:.1%} before and {held['merged_accuracy']['estimate']:.1%} after merging, the spread of "
        f"rewards {held['mixture_reward_std']:.3f} and {held['merged_reward_std']:.3f}."
    )
    return (told, compared)


def _learned(summary: Mapping[str, Any]) -> tuple[str, ...]:
    learning = summary.get("learning")
    if not learning or learning["loss_before"] is None:
        return (f"Coefficients by {summary['method']}; nothing was learned.",)
    return (
        f"Learned for {learning['steps']} steps from the routing mass; kept at step {learning['best_step']}, where the loss on the second "
        f"held-out part was {learning['loss_after']:.5f} against {learning['loss_before']:.5f} at the start.",
    )


def _divergence_table(summary: Mapping[str, Any]) -> Table:
    names = ["layer", "smallest cosine", "largest distance"]
    rows = [
        [f"layer {entry['layer']}", f"{min(entry['cosine']):.6f}", f"{max(entry['relative_distance']):.5f}"]
        for entry in summary["divergence"]
    ]
    if "routing" in summary:
        names += ["shared weight", "entropy, nats"]
        for row, entry in zip(rows, summary["routing"].values(), strict=True):
            row += [f"{entry['weights'][0]:.3f}", f"{entry['entropy']:.3f}"]
    return Table(tuple(names), tuple(tuple(row) for row in rows))
