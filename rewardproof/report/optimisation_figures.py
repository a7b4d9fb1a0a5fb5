"""Figures of optimisation against a reward model: gold, which is wanted, beside the proxy, which is optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewardproof.report.figure_style import COLOURS, LINES, MARKERS, MUTED, figure_style, legend_above, new_figure
from rewardproof.report.figures import require
from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rewardproof.evaluation import Hacking, PolicyHacking, StateSimilarity


def hacking_figure(methods: Mapping[str, Hacking]) -> Figure:
    """Gold and proxy against the root of the KL of best of n, bands over training seeds and prompts.

    Args:
        methods: Name of the method to how it fared.

    Returns:
        Two panels; gold is shown above a random answer's, so that methods part and prompts do not.

    Raises:
        EvaluationError: If there is no method.

    Example:
        >>> from rewardproof.evaluation import BestOfNRuns
        >>> runs = BestOfNRuns([[[0.0, 1.0, 2.0]] * 3], [[0.0, 1.0, 0.5]] * 3, [1, 2], ["a", "b", "c"])
        >>> [axes.get_title(loc="left") for axes in hacking_figure({"dense": runs.summary()}).axes]
        ['Gold: what is wanted', 'Proxy: what is optimised']
    """
    require(methods, "methods")
    with figure_style():
        figure = new_figure(6.6, 3.6)
        gold, proxy = _panels(figure)
        for i, (name, one) in enumerate(methods.items()):
            distances = [value**0.5 for value in one.kl]
            for axes, intervals in ((gold, one.gain), (proxy, one.proxy)):
                _band(axes, distances, intervals, index=i, name=name)
        gold.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.2)
        gold.set_ylabel("above a random answer")
        _distance_axes(figure, "√KL, upper bound, nats")
        legend_above(figure, gold)
    return figure


SPREAD = "standard deviations"
"""What proxies are counted in, where nothing else is said."""


def policy_figure(methods: Mapping[str, PolicyHacking], *, unit: str = SPREAD) -> Figure:
    """Gold and proxy against the root of the KL of trained policies, bands over runs and prompts.

    The bands of two runs can be many times what the lines move: they then end at the frame.

    Args:
        methods: Name of the method to how it fared; all optimised in one way, since distances of different ways do not compare.
        unit: What the proxy is counted in.

    Returns:
        Two panels, or the proxy's alone where nobody judged.

    Raises:
        EvaluationError: If there is no method.
    """
    require(methods, "methods")
    judged = all(one.gold for one in methods.values())
    with figure_style():
        figure = new_figure(6.6 if judged else 3.6, 3.6)
        gold, proxy = _panels(figure) if judged else (None, figure.subplots())
        for i, (name, one) in enumerate(methods.items()):
            for axes, intervals in ((gold, one.gain), (proxy, one.proxy)):
                if axes is not None:
                    _band(axes, one.distance, intervals, index=i, name=name, every=4)
        if gold is not None:
            gold.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.2)
            gold.set_ylabel("above the start")
        proxy.set_title("Proxy: what the reward says")  # not every policy optimises it: some learn from preferences
        proxy.set_ylabel(f"{unit} above the start")
        _distance_axes(figure, "square root of KL, nats")
        _cut_bands(proxy, [one.proxy for one in methods.values()])
        if gold is not None:
            _cut_bands(gold, [one.gain for one in methods.values()])
        legend_above(figure, proxy)
    return figure


def course_figure(records: Sequence[Mapping[str, Any]], *, unit: str = SPREAD) -> Figure:
    """A policy run over its updates: gold, proxy, KL and the length of answers.

    Args:
        records: As `PolicyRuns.table` gives them.
        unit: What the proxy is counted in.

    Returns:
        Four panels, or three where nobody judged.
    """
    panels = [
        ("gold", "Gold", "mean score"),
        ("proxy", "Proxy", f"{unit} above the start"),
        ("kl", "Distance", "KL, nats"),
        ("tokens", "Length", "tokens an answer"),
    ]
    drawn = [panel for panel in panels if records[0][panel[0]] is not None]
    with figure_style():
        figure = new_figure(2.5 * len(drawn), 2.9)
        for index, (axes, (name, title, label)) in enumerate(zip(figure.subplots(1, len(drawn)), drawn, strict=True)):
            steps = [record["step"] for record in records]
            values = [record[name] for record in records]
            if isinstance(values[0], Mapping):
                axes.fill_between(
                    steps, [one["low"] for one in values], [one["high"] for one in values], color=COLOURS[index], alpha=0.13, linewidth=0
                )
                values = [one["estimate"] for one in values]
            axes.plot(steps, values, color=COLOURS[index], marker=MARKERS[0])
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.set_xlabel("update")
    return figure


def similarity_figure(found: Sequence[StateSimilarity]) -> Figure:
    """How alike the policy's states are, within hacked answers, within the others and across, over the updates.

    Raises:
        EvaluationError: If there is no evaluation.
    """
    require(found, "evaluations")
    with figure_style():
        figure = new_figure(5.2, 3.4)
        axes = figure.subplots()
        for index, (kind, name) in enumerate((("marked", "hacked"), ("others", "normal"), ("across", "one of each"))):
            intervals = [getattr(one.similarity, kind) for one in found]
            _band(axes, [one.step for one in found], intervals, index=index, name=name)
        axes.set_title("Hidden states of answers to different prompts")
        axes.set_ylabel("cosine similarity")
        axes.set_xlabel("update")
        legend_above(figure, axes)
    return figure


def _panels(figure: Figure) -> tuple[Axes, Axes]:
    """The panels of gold and of the proxy, with their headings and scales."""
    gold, proxy = figure.subplots(1, 2)
    for axes, title, label in (
        (gold, "Gold: what is wanted", "mean gold score of the pick"),
        (proxy, "Proxy: what is optimised", "standard deviations above the mean"),
    ):
        axes.set_title(title)
        axes.set_ylabel(label)
    return gold, proxy


def _distance_axes(figure: Figure, label: str) -> None:
    for axes in figure.axes:
        axes.set_xlabel(label)
        axes.margins(x=0.03)


WIDEST = 2.0
"""Beyond the lines, in units of what they span, a frame has no more of the bands."""


def _cut_bands(axes: Axes, lines: Sequence[Sequence[Interval]]) -> None:
    """Keep lines legible under bands that are many times as wide."""
    values = [0.0, *(one.estimate for line in lines for one in line)]
    low, high = min(values), max(values)
    reach = WIDEST * (high - low)
    bottom, top = axes.get_ylim()
    if reach:
        axes.set_ylim(max(bottom, low - reach), min(top, high + reach))


def _band(
    axes: Axes,
    xs: Sequence[float],
    intervals: Sequence[Interval],
    *,
    index: int,
    name: str,
    zero: float = 0.0,
    unit: float = 1.0,
    every: int = 1,
) -> None:
    """A line with its band, in units about a zero."""
    estimate, low, high = (
        [(value - zero) / unit for value in values]
        for values in zip(*((one.estimate, one.low, one.high) for one in intervals), strict=True)
    )
    colour, line, marker = (kinds[index % len(kinds)] for kinds in (COLOURS, LINES, MARKERS))
    axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(xs, estimate, color=colour, linestyle=line, marker=marker, markevery=every, label=name)
