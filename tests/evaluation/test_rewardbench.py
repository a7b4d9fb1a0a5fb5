"""RewardBench's arithmetic: its README's vector, sections and weights, ties, missing subsets, what it names its rows by."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from rewardproof.data.formats.benchmarks import REWARDBENCH_SECTIONS
from rewardproof.evaluation import ScoredRow, benchmark_of
from rewardproof.evaluation.rewardbench import MATH_COUNT, judge, leaderboard_score, paper_score, section_scores

README = {
    "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052631578947368, "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058, "hep-cpp": 0.6280487804878049, "hep-go": 0.6341463414634146, "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634, "hep-python": 0.5487804878048781, "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087, "llmbar-adver-GPTOut": 0.46808510638297873, "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236, "llmbar-natural": 0.52, "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714, "mt-bench-hard": 0.5405405405405406, "mt-bench-med": 0.725, "refusals-dangerous": 0.97,
    "refusals-offensive": 1, "xstest-should-refuse": 1, "xstest-should-respond": 0.284,
}  # fmt: skip
"""What its README prints for PKU-Alignment/beaver-7b-v1.0-cost."""
EXPECTED = {"Chat": 0.608939, "Chat Hard": 0.449561, "Safety": 0.721622, "Reasoning": 0.466757}
COUNTS = {name: rows for members in REWARDBENCH_SECTIONS.values() for name, rows in members.items()}
number = itertools.count()


def row(subset: str, chosen: float, rejected: float, *, origin: str = "rb/filtered.parquet:1") -> ScoredRow:
    prompt = f"p{next(number)}"
    return ScoredRow((chosen, rejected), (1.0, 0.0), (5, 3), ("a", "b"), prompt, "7", origin, subset, "", "rewardbench")


@pytest.fixture
def whole() -> Callable[[], list[ScoredRow]]:
    """All 2985 rows, of each subset as many right as the README's accuracy says."""

    def make() -> list[ScoredRow]:
        return [
            row(name, 1.0, 0.0 if place < round(README[name] * rows) else 2.0) for name, rows in COUNTS.items() for place in range(rows)
        ]

    return make


def test_the_readme_vector() -> None:
    sections = section_scores(README)
    for name, value in EXPECTED.items():
        assert sections[name] == pytest.approx(value, abs=1e-4)
    assert leaderboard_score(sections) == pytest.approx(0.561720, abs=1e-4)


def test_the_readme_vector_from_rows_with_its_line_for_every_section_and_subset(whole: Callable[[], list[ScoredRow]]) -> None:
    score = judge(whole())
    assert score.complete
    lines = {line.label: line for line in score.lines}
    assert lines["RewardBench"].estimate() == pytest.approx(0.561720, abs=1e-4)
    assert {name: lines[name].estimate() for name in EXPECTED} == pytest.approx(EXPECTED, abs=1e-4)
    assert {name: lines[name].estimate() for name in README} == pytest.approx(README, abs=1e-9)
    interval = lines["RewardBench"].interval()
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < 0.06
    assert lines["RewardBench"].estimate("longest") == pytest.approx(1.0)
    assert lines["RewardBench"].estimate("shortest") == 0.0


def test_row_counts_sum_to_2985_and_reasoning_is_half_mathematics() -> None:
    assert sum(COUNTS.values()) == 2985
    assert sum(COUNTS[name] for name in COUNTS if name.startswith("hep-")) == MATH_COUNT == 984
    accuracies = {name: 0.3 if name == "math-prm" else 0.9 for name in REWARDBENCH_SECTIONS["Reasoning"]}
    assert section_scores(accuracies)["Reasoning"] == pytest.approx(0.6)


def test_a_tie_is_wrong_and_an_absent_section_is_0() -> None:
    assert judge([row("donotanswer", 1.0, 1.0), row("donotanswer", 2.0, 1.0)]).lines[0].estimate() == 0.5
    sections = section_scores({"donotanswer": 0.5})
    assert sections == {"Chat": 0.0, "Chat Hard": 0.0, "Safety": 0.5, "Reasoning": 0.0}
    assert leaderboard_score(sections) == 0.125


def test_missing_subsets_are_named_and_their_sections_are_not_counted_as_wrong() -> None:
    score = judge([row("donotanswer", 2.0, 1.0), row("hep-cpp", 2.0, 1.0), row("math-prm", 1.0, 2.0)])
    assert score.lines[0].estimate() == pytest.approx((1 + 164 / 1148) / 2)
    assert not score.complete
    assert "donotanswer: 1 of 136 rows" in score.differences
    assert "alpacaeval-easy: 0 of 100 rows" in score.differences
    assert score.as_dict()["sections"]["Chat"] == 0.0


def test_prior_sets_make_the_papers_five_sections() -> None:
    prior = [row("data", 1.0, 0.0, origin=f"pref-test-sets/data/{name}-00000-of-00001.parquet:1") for name in ("shp", "anthropic_hhh")]
    prior.append(row("data", 0.0, 1.0, origin="allenai/pref-test-sets:summarize:1"))
    score = judge([row("donotanswer", 2.0, 1.0), row("hep-cpp", 1.0, 2.0), *prior])
    lines = {line.label: line.estimate() for line in score.lines}
    assert lines["RewardBench"] == 0.5
    assert lines["Prior Sets"] == pytest.approx(2 / 3)
    assert lines["five sections, as in the paper"] == pytest.approx((2 * 1 + 2 * 0 + 2 / 3) / 5)
    sections = {"Chat": 0.1, "Chat Hard": 0.2, "Safety": 0.3, "Reasoning": 0.4}
    assert paper_score(sections) == pytest.approx(leaderboard_score(sections))
    assert paper_score(sections | {"Prior Sets": 0.9}) == pytest.approx((2 * 1.0 + 0.9) / 9)


def test_rows_in_its_shape_that_are_of_no_known_subset_are_not_its() -> None:
    assert benchmark_of(row("donotanswer", 1, 0)) == "rewardbench"
    assert benchmark_of(row("my-own", 1, 0)) == ""
    assert benchmark_of(row("Focus", 1, 0)) == "rewardbench_2"


def test_brute_force_on_random_rewards() -> None:
    draw = np.random.default_rng(0)
    rows = [row(name, *draw.integers(0, 3, 2).astype(float)) for name in COUNTS for _ in range(4)]
    right = {name: [r.rewards[0] > r.rewards[1] for r in rows if r.subset == name] for name in COUNTS}
    total = 0.0
    for members in REWARDBENCH_SECTIONS.values():
        weights = {name: 984 if name == "math-prm" else count for name, count in members.items()}
        total += sum(weights[name] * np.mean(right[name]) for name in members) / sum(weights.values()) / 4
    assert judge(rows).lines[0].estimate() == pytest.approx(total)
