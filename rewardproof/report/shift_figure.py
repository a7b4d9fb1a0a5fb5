"""The figure of an audit: how far each change moves the reward, one row a change, one mark a model."""

# M models.
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rewardproof.report.figure_style import COLOURS, INK, MARKERS, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAULT = COLOURS[1]
"""Colour of what should not be."""
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
                offset = (number - (len(models) - 1) / 2) * 0.62 / len(models)
                placed = [(place + offset, row[model]) for place, row in enumerate(rows.values()) if model in row]
                _draw(axes, placed, number, model, beyond=wrong[0] if wrong is not None and len(models) == 1 else math.inf)
            axes.set_yticks(range(len(rows)), list(rows), color=INK)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", visible=True)
            axes.axvline(0, color=MUTED, linewidth=1, zorder=0)
        if wrong is not None:
            _tint(list(panels), *wrong)
        panels[-1].set_xlabel(label)
        if len(models) > 1:
            legend_above(figure, panels[0])
    return figure


def _draw(axes: Axes, placed: Sequence[tuple[float, Interval]], number: int, model: str, *, beyond: float) -> None:
    """One model's shifts; those that lie beyond a bound by their whole interval in the colour of the fault."""
    marker = MARKERS[number % len(MARKERS)]
    for faulty in (False, True):
        some = [(place, shift) for place, shift in placed if (shift.known and shift.low > beyond) == faulty]
        colour = FAULT if faulty else COLOURS[number % len(COLOURS)]
        known = [(place, shift) for place, shift in some if shift.known]
        axes.hlines([y for y, _ in known], [x.low for _, x in known], [x.high for _, x in known], color=colour, linewidth=2.2)
        axes.plot(
            [x.estimate for _, x in some], [y for y, _ in some], marker, markersize=6, color=colour, label=f"_{model}" if faulty else model
        )


def _tint(panels: Sequence[Axes], bound: float, name: str) -> None:
    """Tint what lies beyond a bound, and say what it is."""
    low, high = panels[0].get_xlim()
    high = max(high, bound + 0.1 * (high - low))
    for axes in panels:
        axes.axvspan(bound, high, color=FAULT, alpha=0.07, linewidth=0, zorder=-1)
        axes.set_xlim(low, high)
    panels[-1].annotate(name, (1, 0), (-6, 6), xycoords="axes fraction", textcoords="offset points", ha="right", va="bottom", color=FAULT)
