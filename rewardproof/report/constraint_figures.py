"""Figures of constrained policies: values and thresholds, weights by the multipliers, and where proxy points lie as rewards correlate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.report.figure_style import COLOURS, INK, LINES, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rewardproof.evaluation import FoundProxyPoints

PAIRS = 6
"""Pairs of rewards drawn, at most."""
GRID = 61


def constraints_figure(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Each stream's value against its threshold over the updates, and below them what the multipliers made of it.

    Args:
        records: Of the log, one an update.
        names: Of the streams.

    Returns:
        A panel a stream, and one for the weights where there are multipliers.

    Raises:
        EvaluationError: If there is no update.
    """
    require(records, "updates")
    weighed = f"constraint/{names[0]}/weight" in records[0]
    steps = [record["step"] for record in records]
    with figure_style():
        figure = new_figure(max(5.2, 2.7 * len(names)), 5.2 if weighed else 2.9)
        grid = figure.add_gridspec(1 + weighed, len(names))
        for place, name in enumerate(names):
            axes, colour = figure.add_subplot(grid[0, place]), COLOURS[place % len(COLOURS)]
            axes.plot(steps, [record[f"constraint/{name}/value"] for record in records], color=colour, linestyle=LINES[0])
            axes.plot(steps, [record[f"constraint/{name}/threshold"] for record in records], color=MUTED, linestyle=":", linewidth=1.4)
            axes.set_title(name)
            axes.set_ylabel("mean score; dotted: threshold" if not place else "")
            axes.set_xlabel("" if weighed else "update")
        if weighed:
            below = figure.add_subplot(grid[1, :])
            _weights(below, records, names)
            legend_above(figure, below)
    return figure


def _weights(axes: Axes, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    steps = [record["step"] for record in records]
    axes.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.2)
    for place, name in enumerate(names):
        weights = [record[f"constraint/{name}/weight"] for record in records]
        axes.plot(steps, weights, color=COLOURS[place % len(COLOURS)], linestyle=LINES[place % len(LINES)], label=name)
    axes.plot(steps, [record["constraint/objective_weight"] for record in records], color=INK, linewidth=1.2, label="objective")
    axes.set_title("Weights by the multipliers")
    axes.set_ylabel("weight of the advantage")
    axes.set_xlabel("update")


def proxy_points_figure(found: FoundProxyPoints) -> Figure:
    """How the correlation of rewards moves the proxy points: gold over each two of them, the joint points against those of each alone.

    Args:
        found: The proxy points.

    Returns:
        A panel a pair, through the joint points where there are further rewards; or one with gold over the one reward.
    """
    pairs = list(combinations(range(len(found.names)), 2))[:PAIRS]
    with figure_style():
        columns = max(1, min(3, len(pairs)))
        rows = max(1, -(-len(pairs) // columns))
        figure = new_figure(max(5.2, 3.9 * columns), 3.9 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[max(1, len(pairs)) :]:
            axes.set_visible(False)
        for axes, (first, second) in zip(panels, pairs, strict=False):
            _pair(axes, found, first, second)
        if not pairs:
            _line(panels[0], found)
        legend_above(figure, panels[0], columns=3 if columns > 1 else 2)
    return figure


def _pair(axes: Axes, found: FoundProxyPoints, first: int, second: int) -> None:
    points_MN = found.points_MN
    xs, ys = (np.linspace(points_MN[:, place].min(), points_MN[:, place].max(), GRID) for place in (first, second))
    places_QN = np.tile(found.joint_N, (GRID * GRID, 1))
    places_QN[:, [first, second]] = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    heights = np.clip(found.believed(places_QN).reshape(GRID, GRID), found.gold_M.min(), max(found.gold_M.max(), found.gold))
    if np.isfinite(heights).any():
        axes.contourf(xs, ys, np.ma.masked_invalid(heights), levels=8, cmap="Blues", alpha=0.75)
    axes.scatter(points_MN[:, first], points_MN[:, second], s=9, color=INK, alpha=0.5, linewidth=0, label="evaluations")
    alone = found.alone_N[first], found.alone_N[second]
    axes.axvline(alone[0], color=COLOURS[4], linestyle=LINES[1], linewidth=1.2, label="best for one reward alone")
    axes.axhline(alone[1], color=COLOURS[4], linestyle=LINES[1], linewidth=1.2)
    joint = found.joint_N[first], found.joint_N[second]
    axes.annotate("", joint, alone, arrowprops={"arrowstyle": "->", "color": COLOURS[1]})
    axes.plot(*joint, marker="*", markersize=13, color=COLOURS[1], linestyle="", label="joint proxy points")
    axes.set_title(f"correlation {found.correlation_NN[first, second]:+.2f}")
    axes.set_xlabel(found.names[first])
    axes.set_ylabel(found.names[second])


def _line(axes: Axes, found: FoundProxyPoints) -> None:
    xs = np.linspace(found.points_MN.min(), found.points_MN.max(), GRID * 3)
    axes.plot(xs, found.believed(xs[:, None]), color=COLOURS[0])
    axes.scatter(found.points_MN[:, 0], found.gold_M, s=9, color=INK, alpha=0.5, linewidth=0, label="evaluations")
    axes.axvline(found.joint_N[0], color=COLOURS[1], linestyle=LINES[1], linewidth=1.2, label="proxy point")
    axes.set_xlabel(found.names[0])
    axes.set_ylabel("gold")
