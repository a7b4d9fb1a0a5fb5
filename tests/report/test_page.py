"""The page stands alone, escapes everything and carries its figures."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rewardproof.errors import CheckpointError
from rewardproof.report import Page, PageFigure, Section, Table, format_interval, write_page
from rewardproof.statistics import Interval

EVIL = "<script>alert('&')</script>"
SHARE = Interval(0.556, 0.531, 0.58, 100, 100)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "f.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    table = Table((EVIL, "accuracy"), ((EVIL, SHARE), ("b", None)), EVIL)
    section = Section(EVIL, [EVIL], table, [PageFigure(tmp_path / "f.svg", EVIL, f'" onload="{EVIL}')], EVIL)
    facts = [(EVIL, EVIL), ("accuracy", SHARE), ("gold", format_interval(SHARE, percent=False))]
    return Page(EVIL, EVIL, EVIL, facts, [section], [("command", EVIL)])


def test_nothing_is_unescaped_and_nothing_is_outside(page: Page, tmp_path: Path) -> None:
    text = write_page(tmp_path / "report.html", page).read_text()
    assert "<script" not in text
    assert 'alt="&#34; onload=' in text
    assert not re.search(r"https?://|<link|@import|url\(", text)


def test_intervals_show_estimate_and_bounds(page: Page, tmp_path: Path) -> None:
    text = write_page(tmp_path / "report.html", page).read_text()
    assert text.count('55.6 % <span class="bounds">[53.1, 58.0]</span>') == 2
    assert '0.556 <span class="bounds">[0.531, 0.580]</span>' in text
    assert "not run" in text


def test_bounds_of_a_signed_interval_stand_apart_too(page: Page, tmp_path: Path) -> None:
    gain = Section("gain", [""], Table(("gain",), (("+0.48 [+0.21, +0.77]",),)))
    text = write_page(tmp_path / "report.html", replace(page, sections=[gain])).read_text()
    assert '+0.48 <span class="bounds">[+0.21, +0.77]</span>' in text


def test_figures_travel_inside(page: Page, tmp_path: Path) -> None:
    text = write_page(tmp_path / "report.html", page).read_text()
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert base64.b64decode(data) == (tmp_path / "f.svg").read_bytes()


@pytest.mark.parametrize(("name", "message"), [("gone.svg", "gone.svg is missing"), ("f.gif", "neither .svg nor .png")])
def test_a_figure_that_cannot_be_embedded_stops(name: str, message: str, tmp_path: Path) -> None:
    page = Page("t", "v", sections=[Section("h", figures=[PageFigure(tmp_path / name, "c", "a")])])
    with pytest.raises(CheckpointError, match=message):
        write_page(tmp_path / "report.html", page)
