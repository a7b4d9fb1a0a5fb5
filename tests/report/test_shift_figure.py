"""The figure of shifts: a row a change, a mark a model, faults told apart; and two texts side by side lose no character."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardproof.errors import EvaluationError
from rewardproof.report import Page, Remark, Section, save_figure, shift_figure, side_by_side, write_page
from rewardproof.report.shift_figure import FAULT
from rewardproof.statistics import Interval

GAIN, LOSS, LONE = Interval(0.4, 0.2, 0.6, 90, 90), Interval(-0.4, -0.6, -0.2, 90, 90), Interval(0.1, math.nan, math.nan, 1, 1)
EVIL = "<script>alert('&')</script>"


def test_every_change_has_its_row_and_every_model_its_marks(tmp_path: Path) -> None:
    parts = {
        "nothing to gain": {"emoji": {"a": GAIN, "b": LOSS}, "padding": {"a": LONE}},
        "something to lose": {"refusal": {"b": LOSS}},
        "": {},
    }
    figure = shift_figure(parts, label="shift", wrong=(0.0, "paid for"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["nothing to gain", "something to lose"]
    assert [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes] == [["emoji", "padding"], ["refusal"]]
    marks = sorted(float(x) for line in figure.axes[0].lines if line.get_label() in "ab" for x in line.get_xdata())
    assert marks == [-0.4, 0.1, 0.4], "an estimate without an interval is drawn too"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert save_figure(figure, tmp_path, "shifts").svg.read_text().startswith("<?xml")


def test_a_single_model_has_its_faults_in_another_colour() -> None:
    axes = shift_figure({"": {}, "t": {"emoji": {"a": GAIN}, "padding": {"a": LOSS}}}, label="shift", wrong=(0.0, "paid for")).axes[0]
    faulty = [line for line in axes.lines if line.get_color() == FAULT]
    assert [list(line.get_xdata()) for line in faulty] == [[0.4]]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(EvaluationError, match="shifts"):
        shift_figure({"t": {}}, label="shift")


@given(st.text(max_size=60), st.text(max_size=60))
def test_two_texts_are_shown_whole_and_what_is_unmarked_is_in_both(left: str, right: str) -> None:
    found = side_by_side("c", left, right, labels=("a", "b"))
    assert "".join(stretch.text for stretch in found.left) == left
    assert "".join(stretch.text for stretch in found.right) == right
    shared = ["".join(stretch.text for stretch in side if not stretch.own) for side in (found.left, found.right)]
    assert shared[0] == shared[1]


def test_texts_that_have_next_to_nothing_in_common_are_marked_whole() -> None:
    found = side_by_side("c", "Tea is warm, and nice to drink.", "I am sorry, but no help is given.", labels=("a", "b"))
    assert [stretch.own for stretch in (*found.left, *found.right)] == [True, True]


def test_what_is_added_is_marked_and_nothing_is_unescaped(tmp_path: Path) -> None:
    pair = side_by_side(EVIL, f"It {EVIL} is.", f"It {EVIL} is <b>not</b>.", labels=(EVIL, EVIL))
    remark = Remark("bad", EVIL, EVIL, EVIL)
    page = write_page(tmp_path / "r.html", Page("t", "v", sections=[Section("h", remarks=[remark], comparisons=[pair])])).read_text()
    assert "<script" not in page
    assert "<mark> &lt;b&gt;not&lt;/b&gt;</mark>" in page
    assert '<span class="tone bad">&lt;script&gt;' in page
