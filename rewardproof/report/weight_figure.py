"""Accuracy against the weight of one of two merged models: where the summit lies, and how flat it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewardproof.report.figure_style import COLOURS, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def weight_figure(weights: Sequence[float], accuracies: Sequence[Interval], *, chosen: float) -> Figure:
    """Accuracy at every weight that was tried, with its interval as a band, and the weight that was chosen.

    Args:
        weights: Weights in any order.
        accuracies: Accuracy at each, a share in [0, 1].
        chosen: The weight of the model that was delivered.

    Returns:
        One panel.

    Raises:
        EvaluationError: If nothing was tried.

    Example:
        >>> figure = weight_figure([0.0, 1.0], [Interval(0.6, 0.5, 0.7, 90, 90), Interval(0.5, 0.4, 0.6, 90, 90)], chosen=0.0)
        >>> figure.axes[0].get_xlabel()
        'weight of the language model'
    """
    require(weights, "weights")
    points = sorted(zip(weights, accuracies, strict=True), key=lambda point: point[0])
    places = [weight for weight, _ in points]
    known = [(weight, interval) for weight, interval in points if interval.known]
    with figure_style():
        figure = new_figure(5.6, 3.4)
        axes = figure.subplots()
        lows, highs = [100 * interval.low for _, interval in known], [100 * interval.high for _, interval in known]
        axes.fill_between([weight for weight, _ in known], lows, highs, color=COLOURS[0], alpha=0.18, linewidth=0)
        axes.plot(places, [100 * interval.estimate for _, interval in points], color=COLOURS[0], marker="o", label="merged model")
        axes.axvline(chosen, color=MUTED, linestyle=":", linewidth=1.2, label="delivered")
        axes.set_xlabel("weight of the language model")
        axes.set_ylabel("validation pairs in order, %")
        axes.margins(x=0.03)
        legend_above(figure, axes)
    return figure
