"""The figures of a report. Each function takes results, never files, and returns a matplotlib `Figure`; `save_figure` writes it."""

# Shapes: L layers, N experts.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.report.figure_style import COLOURS, HAIRLINE, INK, MARKERS, MUTED, figure_style, legend_above, new_figure
from rewardproof.statistics import Interval, Reliability, effective_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rewardproof.statistics.checks import Numbers


def accuracy_figure(models: Mapping[str, Mapping[str, Interval]], *, chance: float | None = 0.5) -> Figure:
    """Accuracy of every model on every part of the data, as dots with intervals.

    Args:
        models: Name of the model to its intervals by part, shares in [0, 1]; models may lack a part.
        chance: Accuracy of a coin, drawn as a line; `None` for no line.

    Returns:
        One panel; a row a part, a colour a model.

    Raises:
        EvaluationError: If there is no model or no part.

    Example:
        >>> figure = accuracy_figure({"dense": {"all": Interval(0.6, 0.55, 0.65, 100, 100)}})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['all']
    """
    parts = list(dict.fromkeys(part for by_part in models.values() for part in by_part))
    require(parts, "parts")
    step = min(0.24, 0.7 / len(models))
    with figure_style():
        figure = new_figure(6.2, 1.3 + len(parts) * max(0.42, 0.2 * len(models) + 0.14))
        axes = figure.subplots()
        for i, (name, by_part) in enumerate(models.items()):
            colour = COLOURS[i % len(COLOURS)]
            rows = np.asarray([parts.index(part) + (i - (len(models) - 1) / 2) * step for part in by_part])
            estimates = [100 * x.estimate for x in by_part.values()]
            known = [(row, x) for row, x in zip(rows, by_part.values(), strict=True) if x.known]
            axes.hlines([r for r, _ in known], [100 * x.low for _, x in known], [100 * x.high for _, x in known], color=colour, linewidth=2)
            axes.plot(estimates, rows, linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=7, color=colour, label=name)
        axes.set_yticks(range(len(parts)), parts, color=INK)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.set_xlabel("pairs ordered as the data does, %")
        axes.locator_params(axis="x", nbins=7, integer=True)
        if chance is not None:
            axes.axvline(100 * chance, color=MUTED, linestyle=":", linewidth=1.2, zorder=0, label="a coin")
        legend_above(figure, axes)
    return figure


def reliability_figure(table: Reliability) -> Figure:
    """Stated confidence against how often it was right, with the number of pairs below.

    Args:
        table: From `statistics.reliability`, or `AccuracyReport.calibration`.

    Returns:
        Two panels that share their horizontal axis.

    Raises:
        EvaluationError: If the table has no bins.

    Example:
        >>> from rewardproof.statistics import reliability
        >>> len(reliability_figure(reliability([0.6, 0.9], [1, 1], span=(0.5, 1.0))).axes)
        2
    """
    require(table.bins, "bins")
    low, high = (50, 100) if min(b.low for b in table.bins) >= 0.5 else (0, 100)
    with figure_style():
        figure = new_figure(4.6, 4.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        top.plot([low, high], [low, high], color=MUTED, linestyle=":", linewidth=1.2, label="calibrated")
        confidence, right = [100 * b.probability for b in table.bins], [100 * b.frequency for b in table.bins]
        top.plot(confidence, right, marker="o", markersize=6, color=COLOURS[0], label="this model")
        top.set_title(f"Off by {100 * table.error:.1f} points on average")
        top.set_ylabel("how often right, %")
        top.legend(loc="upper left")
        bottom.bar(
            [50 * (b.low + b.high) for b in table.bins],
            [b.n for b in table.bins],
            width=[92 * (b.high - b.low) for b in table.bins],
            color=COLOURS[0],
            alpha=0.35,
        )
        bottom.set_xlim(low, high)
        bottom.set_ylabel("pairs")
        bottom.set_xlabel("confidence in the favoured answer, %")
        figure.align_ylabels([top, bottom])
    return figure


def coefficients_figure(coefficients_LN: Numbers, layer_names: Sequence[str], *, expert_names: Sequence[str] | None = None) -> Figure:
    """Weight of every expert in the merged model, layer by layer.

    Args:
        coefficients_LN: Merging weights, a row a layer.
        layer_names: A name for each row.
        expert_names: A name for each column, numbers if absent.

    Returns:
        A heat map.

    Raises:
        EvaluationError: If names and rows do not match, or a weight is not finite.

    Example:
        >>> coefficients_figure([[0.5, 0.25, 0.25]], ["0"]).axes[0].get_title(loc="left")
        'Weight of each expert in the merged model'
    """
    values_LN = _matrix(coefficients_LN, layer_names)
    with figure_style():
        figure = new_figure(5.6, 1.9 + 0.15 * max(6, len(values_LN)))
        axes = figure.subplots()
        scale = {"cmap": "Blues", "vmin": min(0.0, values_LN.min())}
        _heat(axes, values_LN, layer_names=layer_names, expert_names=expert_names, label="weight", scale=scale)
        axes.set_title("Weight of each expert in the merged model")
    return figure


def routing_figure(load_LN: Numbers, layer_names: Sequence[str], *, expert_names: Sequence[str] | None = None) -> Figure:
    """How evenly the router spreads its tokens, layer by layer.

    Args:
        load_LN: Tokens (or probability mass) that each expert got, a row a layer; rows are normalised here.
        layer_names: A name for each row.
        expert_names: A name for each column, numbers if absent.

    Returns:
        A heat map of each expert's share as a multiple of the fair one, beside the effective number of experts.

    Raises:
        EvaluationError: If names and rows do not match, or a row is negative or all 0.

    Example:
        >>> len(routing_figure([[10, 10], [19, 1]], ["0", "1"]).axes)  # heat map, bars, colour scale
        3
    """
    from matplotlib.colors import LogNorm

    values_LN = _matrix(load_LN, layer_names)
    effective_L = effective_number(values_LN)
    n_experts = values_LN.shape[1]
    multiple_LN = n_experts * values_LN / values_LN.sum(axis=1, keepdims=True)
    with figure_style():
        figure = new_figure(6.6, 2.1 + 0.15 * max(6, len(values_LN)))
        heat, bars = figure.subplots(1, 2, width_ratios=[2.6, 1], sharey=True)
        scale, label = {"cmap": "RdBu_r", "norm": LogNorm(0.25, 4.0)}, "times its fair share of tokens"
        _heat(heat, np.clip(multiple_LN, 0.25, 4.0), layer_names=layer_names, expert_names=expert_names, label=label, scale=scale)
        heat.set_title("Load of each expert")
        bars.barh(range(len(values_LN)), effective_L, color=COLOURS[0], alpha=0.35, height=0.7)
        bars.axvline(n_experts, color=MUTED, linestyle=":", linewidth=1.2)
        bars.set_xlim(0, n_experts * 1.05)
        bars.set_xticks([0, n_experts])
        bars.grid(visible=False)
        bars.tick_params(labelleft=False)
        bars.set_title("Experts in effect")
        bars.set_xlabel("dotted: all alike")
    return figure


def regimes_figure(
    weights_RLN: Mapping[str, Numbers], information_L: Sequence[float], layer_names: Sequence[str], *, expert_names: Sequence[str]
) -> Figure:
    """Whether experts belong to regimes: the routed experts' mean weights for each regime's prompts, and what a route tells of the regime.

    Args:
        weights_RLN: For each regime by name, the routed experts' mean weights, a row a layer.
        information_L: For each layer, mutual information of route and regime as a share of the regimes' entropy.
        layer_names: A name for each layer.
        expert_names: A name for each routed expert.

    Returns:
        A heat map a regime, and bars of the information.

    Raises:
        EvaluationError: If names and rows do not match, or a weight is not finite.

    Example:
        >>> weights = {"helpful": [[0.5, 0.1]], "harmless": [[0.1, 0.5]]}
        >>> len(regimes_figure(weights, [1.0], ["0"], expert_names=["1", "2"]).axes)  # two heat maps, bars, two colour scales
        5
    """
    tables = {name: _matrix(weights_LN, layer_names) for name, weights_LN in weights_RLN.items()}
    highest = max(float(values_LN.max()) for values_LN in tables.values())
    with figure_style():
        figure = new_figure(2.6 + 2.4 * len(tables), 2.1 + 0.15 * max(6, len(layer_names)))
        *heats, bars = figure.subplots(1, len(tables) + 1, sharey=True)
        for axes, (name, values_LN) in zip(heats, tables.items(), strict=True):
            scale = {"cmap": "Blues", "vmin": 0.0, "vmax": highest or 1.0}
            _heat(axes, values_LN, layer_names=layer_names, expert_names=expert_names, label="mean weight", scale=scale)
            axes.set_title(name)
        bars.barh(range(len(layer_names)), information_L, color=COLOURS[0], alpha=0.35, height=0.7)
        bars.set_xlim(0, 1)
        bars.grid(visible=False)
        bars.tick_params(labelleft=False)
        bars.set_title("The route tells")
        bars.set_xlabel("share of the regimes' entropy")
    return figure


def training_figure(
    rows: Sequence[Mapping[str, Any]], *, loss: str = "loss", accuracy: str = "eval_accuracy", step: str = "step"
) -> Figure:
    """The loss and the held-out accuracy over the steps of training.

    Args:
        rows: The log's rows; a row may hold any of the keys, as the Trainer's do.
        loss: Key of the training loss.
        accuracy: Key of the held-out accuracy, a share in [0, 1].
        step: Key of the step.

    Returns:
        Two panels, or the loss alone where no accuracy was logged.

    Raises:
        EvaluationError: If no row has a loss.

    Example:
        >>> log = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6, "eval_accuracy": 0.55}]
        >>> [axes.get_title(loc="left") for axes in training_figure(log).axes]
        ['Training loss', 'Held-out accuracy']
    """
    losses, accuracies = ([(row[step], row[key]) for row in rows if key in row and step in row] for key in (loss, accuracy))
    require(losses, f"rows with {loss!r}")
    with figure_style():
        figure = new_figure(6.6 if accuracies else 4.6, 3.0)
        panels = np.atleast_1d(np.asarray(figure.subplots(1, 2 if accuracies else 1)))
        steps, values = np.asarray(losses, dtype=float).T
        window = max(1, len(values) // 20)
        panels[0].plot(steps, values, color=COLOURS[0], alpha=0.25 if window > 1 else 1.0, linewidth=1.2 if window > 1 else 2)
        if window > 1:
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            panels[0].plot(steps[window - 1 :], smooth, color=COLOURS[0])
        panels[0].set_title("Training loss")
        panels[0].set_ylabel("nats a pair")
        if accuracies:
            steps, shares = np.asarray(accuracies, dtype=float).T
            panels[1].plot(steps, 100 * shares, color=COLOURS[1], marker="o")
            panels[1].set_title("Held-out accuracy")
            panels[1].set_ylabel("pairs, %")
        for axes in panels:
            axes.set_xlabel("optimiser step")
            axes.margins(x=0.03)
    return figure


def require(items: Any, name: str) -> None:
    """Refuse to draw nothing.

    Raises:
        EvaluationError: There is no item.
    """
    if not len(items):
        raise EvaluationError(f"no {name} to draw; expected at least one. An empty figure would look like a result: leave it out.")


def _matrix(values: Numbers, layer_names: Sequence[str]) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != len(layer_names) or not np.isfinite(matrix).all():
        raise EvaluationError(
            f"values of shape {matrix.shape} with {len(layer_names)} layer names; expected finite numbers, a row a layer. "
            "Rows without names cannot be read: pass one name a row."
        )
    return matrix


def _heat(
    axes: Axes,
    values_LN: np.ndarray,
    *,
    layer_names: Sequence[str],
    expert_names: Sequence[str] | None,
    label: str,
    scale: Mapping[str, Any],
) -> None:
    image = axes.imshow(values_LN, aspect="auto", interpolation="nearest", **scale)
    every = -(-len(layer_names) // 16)
    axes.set_yticks(range(0, len(layer_names), every), layer_names[::every])
    axes.set_xticks(range(values_LN.shape[1]), expert_names or [str(i) for i in range(values_LN.shape[1])])
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(len(values_LN) - 1) + 0.5, -0.5, values_LN.shape[1] - 0.5, color="white", linewidth=1.2)
    axes.vlines(np.arange(values_LN.shape[1] - 1) + 0.5, -0.5, len(values_LN) - 0.5, color="white", linewidth=1.2)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, location="bottom", pad=0.03, aspect=40, label=label)
    if "norm" in scale:
        bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["¼ or less", "½", "1", "2", "4 or more"])
        bar.ax.minorticks_off()
    bar.outline.set_edgecolor(HAIRLINE)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
