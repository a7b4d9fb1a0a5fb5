"""The figure of a head of factors: how much each of the strongest adds to the rewards' spread, and what its activation goes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewardproof.report.figure_style import COLOURS, MARKERS, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def factors_figure(factors: Sequence[Mapping[str, Any]], *, length_correlation: float | None = None) -> Figure:
    """The strongest factors, a row each.

    Args:
        factors: `number`, `share`, `length_correlation` and `reward_correlation` of each; a correlation may be `None`.
        length_correlation: Of the reward itself and the answers' length, drawn as a line; `None` for no line.

    Returns:
        Bars of the shares beside dots of the correlations.

    Raises:
        EvaluationError: If there is no factor.

    Example:
        >>> one = {"number": 7, "share": 0.2, "length_correlation": 0.1, "reward_correlation": 0.9}
        >>> [axes.get_title(loc="left") for axes in factors_figure([one]).axes]
        ['Share of the spread', 'What it goes with']
    """
    require(factors, "factors")
    rows = range(len(factors))
    with figure_style():
        figure = new_figure(6.6, 1.6 + 0.36 * max(3, len(factors)))
        bars, dots = figure.subplots(1, 2, width_ratios=[1, 1.5], sharey=True)
        bars.barh(rows, [100 * factor["share"] for factor in factors], color=COLOURS[0], alpha=0.35, height=0.7)
        bars.set_yticks(rows, [f"factor {factor['number']}" for factor in factors])
        bars.set_ylim(len(factors) - 0.5, -0.5)
        bars.grid(visible=False)
        bars.set_title("Share of the spread")
        bars.set_xlabel("of all factors', %")
        for place, (name, key) in enumerate((("reward", "reward_correlation"), ("length", "length_correlation"))):
            known = [(factor[key], row) for row, factor in zip(rows, factors, strict=True) if factor[key] is not None]
            dots.plot(
                [value for value, _ in known],
                [row for _, row in known],
                linestyle="none",
                marker=MARKERS[place],
                markersize=7,
                color=COLOURS[place],
                label=name,
            )
        dots.axvline(0, color=MUTED, linewidth=0.8)
        if length_correlation is not None:
            dots.axvline(length_correlation, color=COLOURS[1], linestyle=":", linewidth=1.2, label="reward with length")
        dots.set_xlim(-1.05, 1.05)
        dots.grid(axis="y", visible=False)
        dots.grid(axis="x", visible=True)
        dots.set_title("What it goes with")
        dots.set_xlabel("correlation with its activation")
        legend_above(figure, dots)
    return figure
