"""The one look of all figures, and how a figure becomes files.

Quiet: no box, no tick marks, hairline grid on the value axis, words instead of symbols. Colours are Okabe and Ito's, told apart by
readers with any colour vision; line style or marker tells them apart once more in print.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, HAIRLINE, PLATE = "#1f2933", "#66707a", "#e3e6e8", "#ffffff"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), "-", "-", "-")

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": HAIRLINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.wspace": 0.08,
    "figure.facecolor": PLATE,
    "axes.facecolor": PLATE,
    "svg.fonttype": "path",
    "svg.hashsalt": "rewardproof",
}


@dataclass(frozen=True, slots=True)
class SavedFigure:
    """Where a figure was written."""

    svg: Path
    png: Path


@contextmanager
def figure_style() -> Iterator[None]:
    """Every figure is made and saved under this; matplotlib's own settings are untouched outside it.

    Example:
        >>> with figure_style():
        ...     figure = new_figure(4, 3)
        >>> figure.get_size_inches().tolist()
        [4.0, 3.0]
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn by Agg and known to no window system.

    Example:
        >>> type(new_figure(4, 3).canvas).__name__
        'FigureCanvasAgg'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_above(figure: Figure, axes: Axes, *, columns: int = 4) -> None:
    """One legend for all panels, above them and out of the data's way; none for a single unnamed line.

    Example:
        >>> figure = new_figure(4, 3)
        >>> axes = figure.subplots()
        >>> _ = axes.plot([0, 1], label="dense")
        >>> legend_above(figure, axes)
        >>> len(figure.legends)
        1
    """
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        rows = -(-len(labels) // columns)
        figure.legend(handles, labels, loc="outside upper left", ncols=-(-len(labels) // rows), handlelength=2.2, columnspacing=1.6)


def save_figure(figure: Figure, directory: Path | str, name: str) -> SavedFigure:
    """Write a figure as SVG and PNG into `directory/figures/`; the same figure gives the same bytes of SVG.

    Args:
        figure: From one of the figure functions.
        directory: The run's directory.
        name: File name without ending.

    Returns:
        Both paths.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save_figure(new_figure(2, 1), run, "empty").svg.name
        'empty.svg'
    """
    folder = Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    saved = SavedFigure(folder / f"{name}.svg", folder / f"{name}.png")
    with figure_style():
        figure.savefig(saved.svg, metadata={"Date": None})
        figure.savefig(saved.png, dpi=160)
    return saved
