"""One table, three places: the same words and digits in each."""

import io
import math

from rich.console import Console

from rewardproof.report import Table, console_table, format_cell, format_interval, markdown_table
from rewardproof.statistics import Interval

TABLE = Table(("model", "accuracy"), (("a|b", Interval(0.556, 0.531, 0.58, 100, 100)), ("[red]c", None)), "Held-out pairs")


def test_formats_an_interval_and_leaves_out_an_unknown_one() -> None:
    assert format_cell(Interval(0.556, 0.531, 0.58, 9, 9)) == "55.6 % [53.1, 58.0]"
    assert format_interval(Interval(-1.5, math.nan, math.nan, 9, 1), percent=False) == "-1.500"


def test_numbers_keep_their_size_readable() -> None:
    assert [format_cell(x) for x in (0, 0.0, 1e-6, 1234567, 2.5e7)] == ["0", "0.000", "1e-06", "1 234 567", "2.5e+07"]


def test_markdown_escapes_what_would_break_a_row() -> None:
    assert markdown_table(TABLE).splitlines() == [
        "Held-out pairs",
        "",
        "| model | accuracy |",
        "|---|---:|",
        "| a\\|b | 55.6 % [53.1, 58.0] |",
        "| [red]c | not run |",
    ]


def test_console_shows_markup_as_text() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(console_table(TABLE))
    text = console.export_text()
    assert "[red]c" in text
    assert "55.6 % [53.1, 58.0]" in text
    assert "Held-out pairs" in text
