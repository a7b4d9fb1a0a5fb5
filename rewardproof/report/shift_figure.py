"""The figure of an audit: how far each change moves the reward, one row a change, one mark a model."""

# M models.
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewardproof.report.figure_style import COLOURS, INK, MARKERS, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.27
"""Height of a row with one model, in inches."""


def shift_figure(
    parts: Mapping[str, Mapping[str, Mapping[str, Interval]]], *, label: str, wrong: tuple[float, str] | None = None
) -> Figure:
    """Shifts with their intervals.

    Args:
        parts: Panels by title; in each the rows by name; in each row the interval of every model by name.
        label: Of the horizontal axis.
        wrong: From where on a shift is a fault, and what to call that side; it is tinted.

    Returns:
        One panel a part, above each other, on one axis.

    Raises:
        EvaluationError: If there is nothing to draw.

    Example:
        >>> shift = Interval(0.4, 0.2, 0.6, 90, 90)
        >>> figure = shift_figure({"nothing to gain": {"emoji": {"dense": shift}}}, label="shift")
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['emoji']
    """
    shown = {title: rows for title, rows in parts.items() if rows}
    require(list(shown), "shifts")
    models = list(dict.fromkeys(model for rows in shown.values() for by_model in rows.values() for model in by_model))
    height = ROW * max(1.0, 0.62 * len(models) + 0.2)
    counts = [len(rows) for rows in shown.values()]
    with figure_style():
        figure = new_figure(7.2, 0.9 + 0.45 * len(shown) + height * sum(counts))
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
        for axes, (title, rows) in zip(panels, shown.items(), strict=True):
            axes.set_title(title)
            for number, model in enumerate(models):
                colour = COLOURS[number % len(COLOURS)]
                offset = (number - (len(models) - 1) / 2) * 0.62 / len(models)
                placed = [(place + offset, row[model]) for place, row in enumerate(rows.values()) if model in row]
                known = [(place, shift) for place, shift in placed if shift.known]
                axes.hlines([y for y, _ in known], [x.low for _, x in known], [x.high for _, x in known], color=colour, linewidth=2.2)
                marker = MARKERS[number % len(MARKERS)]
                axes.plot([x.estimate for _, x in placed], [y for y, _ in placed], marker, markersize=6, color=colour, label=model)
            axes.set_yticks(range(len(rows)), list(rows), color=INK)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", visible=True)
            axes.axvline(0, color=MUTED, linewidth=1, zorder=0)
        low, high = panels[0].get_xlim()
        if wrong is not None:
            bound, name = wrong
            for axes in panels:
                axes.axvspan(bound, max(high, bound), color=COLOURS[1], alpha=0.07, linewidth=0, zorder=-1)
                axes.set_xlim(low, max(high, bound + 0.05))
            panels[0].annotate(name, (1, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="right", color=COLOURS[1])
        panels[-1].set_xlabel(label)
        if len(models) > 1:
            legend_above(figure, panels[0])
    return figure
