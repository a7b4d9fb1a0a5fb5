"""Heat maps: every character once, every number its own, nothing unescaped, and no colour without a line that says the same."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest

from rewardproof.models.token_scores import TokenScores
from rewardproof.report import Page, Section, heat_maps, write_page

EVIL = "a<b>&\"'\n  é🙂 </span><script>"


def scores(ends: list[int], reached: list[float], *, before: float = 0.5, score: float = 2.0, located: bool = True) -> TokenScores:
    return TokenScores(before, np.array(reached), score, np.array(ends, dtype=np.intp), located)


def shown(tmp_path: Path, *answers: tuple[str, str, TokenScores], mean: float = 0.0, std: float = 1.0) -> str:
    section = Section("Where", heat_maps=heat_maps(answers, mean=mean, std=std, unit="standard deviations"))
    return write_page(tmp_path / "report.html", Page("t", "v", sections=[section])).read_text()


def spans(page: str) -> list[tuple[str, float, str, str]]:
    """Class, strength of the colour, numbers and text of every piece."""
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', page, re.DOTALL)
    found = re.findall(r'<span class="([^"]*)" style="background: rgba\([^"]*, ([\d.]+)\)" title="([^"]*)">(.*?)</span>', answer, re.DOTALL)
    return [(kind, float(alpha), title, html.unescape(text)) for kind, alpha, title, text in found]


def test_each_piece_shows_its_text_and_its_numbers(tmp_path: Path) -> None:
    page = shown(tmp_path, ("who", "abcd ef", scores([2, 4, 7], [1.5, 1.0, 1.0])), mean=0.5, std=0.5)
    assert spans(page) == [
        ("up", 0.5, "+2.000, then +2.000", "ab"),
        ("down", 0.25, "-1.000, then +1.000", "cd"),
        ("flat", 0.0, "+0.000, then +1.000", " ef"),
        ("up end", 0.5, "+2.000, then +3.000", "end"),
    ]
    assert "the strongest colour is 2.00, all numbers in standard deviations" in page
    assert ".up { border-bottom: 2px solid" in page
    assert ".down { border-bottom: 2px dotted" in page


@pytest.mark.parametrize("ends", [[1, 3, 7, 9, 20, len(EVIL)], [5, 5, 5, 12, 12, len(EVIL) - 2], [len(EVIL)] * 6])
def test_every_character_is_there_once_and_escaped(ends: list[int], tmp_path: Path) -> None:
    """Also where tokens end at one character, or the last has none: such text is shown without a colour."""
    page = shown(tmp_path, (EVIL, EVIL, scores(ends, [0.1, 0.9, -1.0, 0.0, 2.0, 1.0])))
    assert "<script" not in page
    pieces = spans(page)
    assert "".join(text for *_, text in pieces[:-1]) == EVIL
    gains = [float(title.split(",")[0]) for _, _, title, _ in pieces]
    assert sum(gains) == pytest.approx(2.0 - 0.5, abs=0.003), "the gains are the way from the prompt's score to the answer's"


def test_colours_of_several_answers_have_one_limit_and_the_end_does_not_set_it() -> None:
    one, two = heat_maps(
        [
            ("one", "abcd", scores([2, 4], [1.5, 1.0], score=99.0)),
            ("two", "abcd", scores([2, 4], [0.4, -1.6], score=-1.6)),
        ]
    )
    assert one.limit == two.limit == 2.0
    assert [piece.shade for piece in one.pieces] == [0.5, -0.25, 1.0]
    assert [piece.shade for piece in two.pieces] == pytest.approx([-0.05, -1.0, 0.0])
    assert heat_maps([]) == ()


def test_an_answer_that_could_not_be_followed_shows_its_end_alone(tmp_path: Path) -> None:
    pieces = spans(shown(tmp_path, ("who", "rewritten", scores([], [], located=False))))
    assert pieces == [("flat", 0.0, "+0.000, then +0.500", "rewritten"), ("up end", 0.5, "+1.500, then +2.000", "end")]


def test_small_gains_stay_uncoloured() -> None:
    (one,) = heat_maps([("one", "abcd", scores([2, 4], [100.5, 101.0]))])
    assert one.pieces[1].gain == 0.5
    assert one.pieces[1].shade == 0.0
