"""One table object, shown on the console, in markdown and on the page with the same words and digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rewardproof.statistics import Interval

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell: TypeAlias = str | int | float | bool | Interval | None

LONGEST_WORD = 40
"""Letters of a cell beyond which it counts as text."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows.

    Attributes:
        columns: Headings.
        rows: Cells, one a column. An `Interval` is shown as a percentage (write scores with `format_interval(..., percent=False)`),
            a float with three decimals, `None` as "not run".
        caption: One line above the table, or nothing.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers only, so that it is set flush right.

        Example:
            >>> table = Table(("model", "accuracy"), (("dense", 0.61), ("umm", None)))
            >>> table.numeric(0), table.numeric(1)
            (False, True)
        """
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, int | float | Interval) and not isinstance(cell, bool) for cell in cells)

    def prose(self, column: int) -> bool:
        """Whether a column holds texts, so that its lines are broken.

        Example:
            >>> Table(("model", "says"), (("dense", "ten words " * 10), ("umm", "no"))).prose(1)
            True
        """
        return any(isinstance(cell, str) and len(cell) > LONGEST_WORD for cell in (row[column] for row in self.rows))


def format_interval(interval: Interval, *, percent: bool = True, digits: int | None = None) -> str:
    """An estimate with its interval.

    Args:
        interval: What to show.
        percent: Show a share in [0, 1] as a percentage; off for scores.
        digits: Decimals; 1 for percentages and 3 for scores if absent.

    Returns:
        The text; the brackets are left out where there is no interval.

    Example:
        >>> format_interval(Interval(0.556, 0.531, 0.58, 1600, 800))
        '55.6 % [53.1, 58.0]'
        >>> format_interval(Interval(1.25, 1.1, 1.4, 100, 100), percent=False, digits=2)
        '1.25 [1.10, 1.40]'
    """
    scale, unit, places = (100.0, " %", 1) if percent else (1.0, "", 3)
    places = places if digits is None else digits
    text = f"{interval.estimate * scale:.{places}f}{unit}"
    return f"{text} [{interval.low * scale:.{places}f}, {interval.high * scale:.{places}f}]" if interval.known else text


def format_gain(interval: Interval, *, digits: int = 3) -> str:
    """A difference with its interval and its signs.

    Example:
        >>> format_gain(Interval(0.25, -0.1, 0.6, 100, 100), digits=2)
        '+0.25 [-0.10, +0.60]'
    """
    text = f"{interval.estimate:+.{digits}f}"
    return f"{text} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]" if interval.known else text


def format_cell(cell: Cell) -> str:
    """The text of one cell.

    Example:
        >>> [format_cell(cell) for cell in (12345, 0.123456, True, None, "dense")]
        ['12 345', '0.123', 'yes', 'not run', 'dense']
    """
    if cell is None:
        return "not run"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Interval):
        return format_interval(cell)
    if isinstance(cell, int):
        return f"{cell:,}".replace(",", " ")
    if isinstance(cell, float):
        return f"{cell:.3f}" if 1e-3 <= abs(cell) < 1e5 or cell == 0 else f"{cell:.3g}"
    return cell


def markdown_table(table: Table) -> str:
    """The table in GitHub's markdown.

    Example:
        >>> print(markdown_table(Table(("model", "pairs"), (("dense", 800),))))
        | model | pairs |
        |---|---:|
        | dense | 800 |
    """
    rule = "".join("---:|" if table.numeric(i) else "---|" for i in range(len(table.columns)))
    rows = [[_markdown(text) for text in table.columns], *([_markdown(format_cell(cell)) for cell in row] for row in table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join([lines[0], f"|{rule}", *lines[1:]])
    return f"{table.caption}\n\n{text}" if table.caption else text


def console_table(table: Table) -> RichTable:
    """The table for `rich.print`; markup in the cells is shown, not obeyed.

    Example:
        >>> console_table(Table(("model", "pairs"), (("[red]dense", 800),))).row_count
        1
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, title=Text(table.caption) if table.caption else None, title_justify="left", header_style="bold")
    for i, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if table.numeric(i) else "left")
    for row in table.rows:
        shown.add_row(*(Text(format_cell(cell), style="dim" if cell is None else "") for cell in row))
    return shown


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
