"""The figure of preference strength: how it is distributed, and where the models disagree."""

# P pairs, B bins of them.
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewardproof.report.figure_style import COLOURS, MUTED, figure_style, new_figure
from rewardproof.report.figures import require
from rewardproof.statistics.checks import Numbers, finite, same_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS, POINTS, LEAST = 50, 100, 4
"""Bars of the histogram, points of the other panel at most, and pairs behind a point at least."""


def strength_figure(mean_P: Numbers, std_P: Numbers) -> Figure:
    """Histogram of the pairs' mean gap, and the standard deviation over the models against the rank of that mean.

    Args:
        mean_P: Each pair's mean gap over the models.
        std_P: Its standard deviation.

    Returns:
        Two panels; in the second, pairs of neighbouring rank are averaged.

    Raises:
        EvaluationError: If there are no pairs, a value is not finite, or the lengths differ.

    Example:
        >>> [axes.get_title(loc="left") for axes in strength_figure([-1.0, 0.5, 2.0], [0.4, 0.2, 0.5]).axes]
        ['67 % of the labels are shared', 'Disagreement of the models']
    """
    require(mean_P, "pairs")
    means, stds = finite(mean_P, "mean gaps"), finite(std_P, "standard deviations")
    same_length(means, stds, "mean gaps and standard deviations")
    order = np.argsort(means, kind="stable")
    bins = np.array_split(np.arange(len(order)), min(POINTS, -(-len(order) // LEAST)))
    width = (float(np.ptp(means)) or 1.0) / BARS
    edges = width * np.arange(np.floor(means.min() / width), np.ceil(means.max() / width) + 2)  # 0 is one of them
    with figure_style():
        figure = new_figure(7.4, 3.2)
        left, right = figure.subplots(1, 2)
        for colour, part in ((COLOURS[1], means[means < 0]), (COLOURS[0], means[means >= 0])):
            left.hist(part, bins=edges, color=colour, alpha=0.6)
        left.axvline(0, color=MUTED, linestyle=":", linewidth=1.2)
        left.set_title(f"{100 * float(np.mean(means > 0)):.0f} % of the labels are shared")
        left.set_xlabel("mean gap, in the models' units")
        left.set_ylabel("pairs")
        ranks = [100 * (part.mean() + 0.5) / len(order) for part in bins]
        right.plot(ranks, [stds[order[part]].mean() for part in bins], color=COLOURS[0], marker="o", markersize=3, linestyle="none")
        right.set_xlim(-2, 102)
        right.set_ylim(bottom=0)
        right.set_title("Disagreement of the models")
        right.set_xlabel("rank of the mean gap, %")
        right.set_ylabel("standard deviation of the gap")
    return figure
