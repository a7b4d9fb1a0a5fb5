"""The self-contained `report.html`: one file that needs no network, no script and no other file, on a screen, a phone or paper.

This writes what it is given; what a report says is the stage's business.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from rewardproof.errors import CheckpointError
from rewardproof.report.heat_map import HeatMap
from rewardproof.report.side_by_side import SideBySide
from rewardproof.report.tables import Cell, Table, format_cell

_BOUNDS = re.compile(r" \[[-+]?[\d.]+, [-+]?[\d.]+\]$")  # an interval as format_interval writes it, from an Interval or already text
_MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure on the page.

    Attributes:
        path: An SVG or PNG file; it is copied into the page.
        caption: What to see in it, one or two sentences.
        alt: What it shows, for a reader who cannot see it.
    """

    path: Path | str
    caption: str
    alt: str


class Remark(NamedTuple):
    """A sentence that a label grades."""

    tone: Literal["bad", "warn", "open", "good"]
    """How serious it is, which colours the label."""
    label: str
    """The grade, in a word or two."""
    text: str
    """The sentence."""
    number: str = ""
    """The number behind it."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a heading, then paragraphs, remarks, table, figures, code, comparisons and heat maps, in this order."""

    heading: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[PageFigure] = ()
    code: str | None = None
    heat_maps: Sequence[HeatMap] = ()
    remarks: Sequence[Remark] = ()
    comparisons: Sequence[SideBySide] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        title: What was done, in a few words.
        verdict: The one sentence to take away, shown large.
        subtitle: A line under the title: model, data, date.
        facts: The numbers behind the verdict, label and value.
        sections: The body.
        provenance: What it takes to make the report again, label and value: command, commit, versions, seed.
    """

    title: str
    verdict: str
    subtitle: str = ""
    facts: Sequence[tuple[str, Cell]] = ()
    sections: Sequence[Section] = ()
    provenance: Sequence[tuple[str, Cell]] = field(default_factory=tuple)


def provenance_rows(run: Path) -> tuple[tuple[str, str], ...]:
    """The page's footer from a run's `provenance.json`: what it takes to make the run again."""
    found = json.loads((run / "provenance.json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (("command", found["command"]), ("commit", str(found["commit"])), ("versions", versions), ("started", found["started"]))


def write_page(path: Path | str, page: Page) -> Path:
    """Write the page to one file.

    Args:
        path: Where to write, usually `OUT/report.html`; its directory must exist.
        page: What to write; every text is escaped.

    Returns:
        The path.

    Raises:
        CheckpointError: If a figure is missing or neither SVG nor PNG.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     text = write_page(f"{run}/report.html", Page("Evaluation", "It <holds>.")).read_text()
        >>> "It &lt;holds&gt;." in text, "http" in text
        (True, False)
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rewardproof", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(cell=format_cell, estimate=_estimate, bounds=_bounds, embed=_embed, colour=_colour)
    target = Path(path)
    target.write_text(environment.get_template("page.html.j2").render(page=page), encoding="utf-8")
    return target


def _estimate(cell: Cell) -> str:
    return _BOUNDS.sub("", format_cell(cell))


def _bounds(cell: Cell) -> str:
    found = _BOUNDS.search(format_cell(cell))
    return found.group().strip() if found else ""


def _colour(shade: float) -> str:
    """A background whose strength says how much, and its hue in which direction."""
    red, green, blue = (213, 94, 0) if shade > 0 else (0, 114, 178)
    return f"rgba({red}, {green}, {blue}, {0.5 * abs(shade):.3f})"


def _embed(path: Path | str) -> str:
    """A data URI: inside an image element an SVG can run nothing and its ids meet no other figure's."""
    file = Path(path)
    if file.suffix not in _MEDIA or not file.is_file():
        raise CheckpointError(
            f"figure {file} {'is missing' if file.suffix in _MEDIA else 'is neither .svg nor .png'}; expected a figure that save_figure "
            "wrote. The page carries its figures inside: save them before writing it."
        )
    return f"data:{_MEDIA[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
