"""RewardBench 2's arithmetic, and the defects of its official code by name: D of one answer, D = 0, no wrong answer, ids."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import ScoredRow
from rewardproof.evaluation.rewardbench_2 import Margins, best_of_n, judge, margins, pair_terms, row_credit, ties_score

number = itertools.count()
PUBLISHED = {"Factuality": 69.9, "Precise IF": 42.5, "Math": 62.8, "Safety": 93.3, "Focus": 96.2, "Ties": 74.1}
"""Skywork-Reward-Llama-3.1-8B in the paper's table 3, which prints 73.1 for the six."""


def row(subset: str, rewards: list[float], n_correct: int = 1, id: str = "") -> ScoredRow:
    scores = tuple(float(place < n_correct) for place in range(len(rewards)))
    lengths = tuple(range(len(rewards), 0, -1))
    answers = tuple(map(str, range(len(rewards))))
    prompt = f"p{next(number)}"
    return ScoredRow(
        tuple(rewards), scores, lengths, answers, prompt, id, f"f.parquet:{prompt}", subset, "", "rewardbench", {"num_correct": n_correct}
    )


def pair(tied: list[float], n_correct: int, reference: list[float], n: str = "0") -> list[ScoredRow]:
    return [row("Ties", reference, 1, f"ref:{n}"), row("Ties", tied, n_correct, f"tied:{n}")]


def test_a_four_way_tie_is_a_quarter() -> None:
    assert best_of_n(np.zeros(4)) == 0.25
    assert best_of_n(np.array([1.0, 1.0, 0.0, 0.0])) == 0.5
    assert best_of_n(np.array([0.0, 1.0, 1.0, 1.0])) == 0.0


def test_ties_on_the_hand_made_pair() -> None:
    rows = pair([3.0, 2.9, 1.0], 2, [3.0, 1.0])
    score = judge(rows)
    assert score.lines[1].label == "Ties"
    assert score.lines[1].estimate() == pytest.approx(1 + 0.01 * math.tanh(18), abs=1e-9)
    assert {part.name: part.mean() for part in score.lines[1].parts} == pytest.approx(
        {"tied accuracy": 1, "reference accuracy": 1, "preference": 1, "hard preference": 1, "margin": math.tanh(18)}
    )
    assert score.lines[1].n == 2


def test_the_mean_of_the_six_is_unweighted_as_published() -> None:
    assert np.mean(list(PUBLISHED.values())) == pytest.approx(73.1, abs=0.05)
    rows = [row("Math", [1, 0, 0, 0])] * 3 + [row("Focus", [0, 1, 0, 0])] + pair([3.0, 2.9, 1.0], 2, [3.0, 1.0])
    score = judge(rows)
    assert score.lines[0].estimate() == pytest.approx((1 + 0 + 1.01) / 3, abs=1e-4)
    assert "Focus: 1 of 495 rows" in score.differences
    assert "Ties: 2 of 102 rows" in score.differences


def test_ties_by_brute_force() -> None:
    draw = np.random.default_rng(1)
    rows: list[ScoredRow] = []
    tied_right, ref_right, pref, hard, margin = [], [], [], [], []
    for n in range(12):
        many, one = draw.normal(size=7) + np.array([1.0] * 4 + [0.0] * 3), draw.normal(size=4) + np.array([1.0, 0.0, 0.0, 0.0])
        rows += pair(many.tolist(), 4, one.tolist(), str(n))
        c_tied, c_ref = many[:4].min() - many[4:].max(), one[0] - one[1:].max()
        d = many[:4].max() - many[:4].min()
        tied_right.append(c_tied > 0)
        ref_right.append(c_ref > 0)
        pref.append(c_tied > d)
        hard.append(min(c_ref, c_tied) > d)
        margin.append(math.tanh(min(c_ref, c_tied) / d - 1))
    terms = [np.mean(values) for values in (tied_right, ref_right, pref, hard, margin)]
    expected = float(np.dot([0.3, 0.3, 0.2, 0.2, 0.01], terms))
    line = judge(rows).lines[1]
    assert line.estimate() == pytest.approx(expected)
    assert line.interval().low < expected < line.interval().high


def test_ties_with_a_spread_of_0_do_not_divide_by_it() -> None:
    assert pair_terms(Margins(1.0, None), Margins(1.0, 0.0)) == (1.0, 1.0, 1.0)
    assert pair_terms(Margins(-1.0, None), Margins(1.0, 0.0)) == (1.0, 0.0, -1.0)
    assert pair_terms(Margins(1.0, None), Margins(0.0, 0.0)) == (0.0, 0.0, 0.0)


def test_ties_of_one_right_answer_or_without_a_wrong_one_are_left_out_and_counted_where_the_official_code_stops() -> None:
    assert margins(np.array([2.0, 1.0]), 1) == Margins(1.0, None)
    assert margins(np.array([2.0, 1.0]), 2) == Margins(None, 1.0)
    rows = pair([3.0, 2.9, 1.0], 2, [3.0, 1.0]) + pair([3.0, 1.0], 1, [3.0, 1.0], "1") + pair([3.0, 1.0], 2, [3.0, 1.0], "2")
    score = judge(rows)
    terms = {part.name: len(part.clusters) for part in score.lines[1].parts}
    assert terms == {"tied accuracy": 2, "reference accuracy": 3, "preference": 1, "hard preference": 1, "margin": 1}
    assert "Ties: 1 rows without a right or a wrong answer" in score.differences
    assert "Ties: 2 rows of many right answers without a spread or a reference" in score.differences


def test_ties_without_a_pair_have_no_score_and_that_is_said() -> None:
    score = judge([row("Ties", [3.0, 1.0], 1, "ref:0"), row("Math", [1, 0, 0, 0])])
    assert [line.label for line in score.lines] == ["RewardBench 2", "Math"]
    assert "Ties: no row for a term of its score" in score.differences
    with pytest.raises(EvaluationError, match="The ties have no row for: tied accuracy, preference"):
        ties_score({"0": Margins(1.0, None)}, {})


@pytest.mark.parametrize("id", ["tied", "12", "ref:0"])
def test_ids_of_the_ties_have_to_pair(id: str) -> None:
    with pytest.raises(EvaluationError, match=r"got a row of the ties with id .*expected ref:N or tied:N, each once"):
        judge([row("Ties", [3.0, 1.0], 1, "ref:0"), row("Ties", [3.0, 1.0], 1, id)])


def test_other_subsets_do_not_look_at_ids_which_are_there_twice_in_published_files() -> None:
    rows = [row("Factuality", [1, 0, 0, 0], id="30"), row("Factuality", [0, 1, 0, 0], id="30")]
    assert judge(rows).lines[0].estimate() == 0.5


def test_a_row_of_the_ties_has_its_own_result_and_not_that_of_a_best_of_n() -> None:
    assert row_credit(row("Ties", [1.0, 3.0, 0.0], 2, "tied:0")) == 1.0
    assert row_credit(row("Ties", [1.0, 3.0, 2.0], 2, "tied:0")) == 0.0
    assert row_credit(row("Focus", [1.0, 3.0, 2.0, 0.0])) == 0.0


def test_length_rules_are_judged_by_the_same_rule() -> None:
    focus = row("Focus", [0, 1, 0, 0])
    line = judge([focus]).lines[0]
    assert (line.estimate(), line.estimate("longest"), line.estimate("shortest")) == (0.0, 1.0, 0.0)
