"""RM-Bench, RMB, LLMBar, HH-RLHF, WebGPT and AlpacaEval: published vectors and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rewardproof.evaluation import BENCHMARKS, ScoredRow, benchmark_of, judge_benchmarks
from rewardproof.evaluation.alpaca_eval import majority
from rewardproof.evaluation.published import Part, line_of, mean_line
from rewardproof.evaluation.rm_bench import difficulties, style_matrix

number = itertools.count()


def row(format: str, rewards: Any, scores: Any = None, **columns: Any) -> ScoredRow:
    n = len(rewards)
    given = {
        "lengths": tuple(range(1, n + 1)),
        "answers": tuple(f"{next(number)}" for _ in range(n)),
        "prompt": f"p{next(number)}",
        "origin": "data.jsonl:1",
    }
    scores = (1.0,) + (0.0,) * (n - 1) if scores is None else scores
    return ScoredRow(tuple(map(float, rewards)), scores, **(given | columns), format=format)


def means(means_by_name: dict[str, float]) -> list[Part]:
    return [Part(name, np.full((1, 3), value), ("p",)) for name, value in means_by_name.items()]


def test_rm_bench_by_brute_force() -> None:
    draw = np.random.default_rng(0)
    rows = [
        row("rm_bench", draw.normal(size=6), (1.0,) * 3 + (0.0,) * 3, origin=f"rm/{name}_filtered.jsonl.gz:{n}")
        for name, count in (("chat", 3), ("code", 5), ("math", 2), ("safety-refuse", 4), ("safety-response", 2))
        for n in range(count)
    ]
    cells: dict[str, Any] = {}
    for one in rows:
        matrix = [[one.rewards[i] > one.rewards[3 + j] for j in range(3)] for i in range(3)]
        cells.setdefault(one.path_names[0].removesuffix("_filtered"), []).append(matrix)
    files = {name: np.mean(found, axis=0) for name, found in cells.items()}
    domains = [files["chat"], files["math"], files["code"], (files["safety-refuse"] + files["safety-response"]) / 2]
    overall = np.mean(domains, axis=0)
    score = judge_benchmarks(rows)["rm_bench"]
    lines = {line.label: line.estimate() for line in score.lines}
    assert lines["RM-Bench"] == pytest.approx(overall.mean())
    assert lines["safety"] == pytest.approx(domains[3].mean())
    assert lines["hard"] == pytest.approx((overall[0, 1] + overall[0, 2] + overall[1, 2]) / 3)
    assert lines["normal"] == pytest.approx(np.trace(overall) / 3)
    assert lines["easy"] == pytest.approx((overall[1, 0] + overall[2, 0] + overall[2, 1]) / 3)
    assert lines["RM-Bench"] == pytest.approx((lines["easy"] + lines["normal"] + lines["hard"]) / 3)
    np.testing.assert_allclose(score.further["matrix"], overall)
    assert score.further["easy_minus_hard"] == pytest.approx(lines["easy"] - lines["hard"])
    assert "math: 2 of 529 rows" in score.differences


def test_rm_bench_domains_are_the_mean_that_is_published() -> None:
    parts = means({"chat": 84.24, "code": 72.66, "math": 93.59, "safety": 90.65})  # DPSK-R1 in its README, All: 85.28
    assert mean_line("RM-Bench", parts, depth=0).estimate() == pytest.approx(85.28, abs=0.01)


def test_rm_bench_reads_the_domain_column_and_counts_a_tie_as_wrong() -> None:
    one = row("rm_bench", [0] * 6, (1.0,) * 3 + (0.0,) * 3, facts={"domain": "math"}, origin="total_dataset.json:4")
    score = judge_benchmarks([one])["rm_bench"]
    assert score.lines[0].estimate() == 0.0
    assert [line.label for line in score.lines] == ["RM-Bench", "math", "easy", "normal", "hard"]


def test_a_judge_of_style_alone_is_easy_right_and_hard_wrong() -> None:
    found = difficulties(style_matrix(np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])))
    assert found == {"easy": 1.0, "normal": 0.0, "hard": 0.0}


def test_rmb_tells_goal_and_kind_and_wants_the_best_above_every_loser() -> None:
    rows = [
        row("rmb", [2, 1], category="Pairwise_set/Helpfulness/Chat/Any"),
        row("rmb", [1, 1], category="Pairwise_set/Helpfulness/Chat/Any"),
        row("rmb", [2, 1, 0], category="BoN_set/Helpfulness/Chat/Any"),
        row("rmb", [2, 1, 3], category="BoN_set/Harmlessness/S1"),
        row("rmb", [2, 1], origin="rmb/pairwise_harmlessness.jsonl.gz:3"),
        row("rmb", [1, 2], category="Pairwise_set/Other"),
    ]
    score = judge_benchmarks(rows)["rmb"]
    assert {line.label: line.estimate() for line in score.lines} == {
        "RMB": 0.625, "helpful, best of n": 1.0, "helpful, pairs": 0.5, "harmless, best of n": 0.0, "harmless, pairs": 1.0,
        "goal unknown, pairs (not counted)": 0.0,
    }  # fmt: skip
    assert score.differences == (
        "helpful, best of n: 1 of 2109 rows",
        "harmless, best of n: 1 of 1677 rows",
        "goal unknown, pairs: none of the four parts",
    )
    assert not score.complete
    assert judge_benchmarks(rows[:2])["rmb"].differences[-1] == "harmless, pairs: no rows"


def test_rmbs_pairs_and_best_of_n_are_drawn_together_where_they_share_prompts() -> None:
    """A prompt that is hard is hard in both: as if they were apart, the interval would be too narrow by the root of two."""
    draw = np.random.default_rng(0)
    rows = [
        row("rmb", rewards, category=f"{kind}/Helpfulness/Chat", prompt=f"p{number}")
        for number, right in enumerate(draw.random(200) < 0.5)
        for kind, rewards in (("Pairwise_set", [2, 1] if right else [1, 2]), ("BoN_set", [3, 2, 1] if right else [1, 2, 3]))
    ]
    first, *parts = judge_benchmarks(rows)["rmb"].lines
    wide, single = first.interval(), parts[0].interval()
    assert wide.high - wide.low == pytest.approx(single.high - single.low, rel=0.1)


def test_llmbar_counts_its_five_sets_alike_and_no_others() -> None:
    rows = [
        row("llmbar", [1, 0], origin="LLMBar/Natural/dataset.json:1"),
        row("llmbar", [0, 1], origin="LLMBar/Natural/dataset.json:2"),
        row("llmbar", [1, 0], origin="LLMBar/Adversarial/Neighbor/dataset.json:1"),
        row("llmbar", [1, 1], origin="llmbar/LLMBar_Adversarial_GPTOut.jsonl.gz:1"),
        row("llmbar", [1, 0], origin="natural-language/LLMBar/CaseStudy/Negation/dataset.json:1", subset="Negation"),
    ]
    score = judge_benchmarks(rows)["llmbar"]
    lines = {line.label: line.estimate() for line in score.lines}
    counted = {"LLMBar": 0.5, "Natural": 0.5, "Adversarial": 0.5, "Neighbor": 1.0, "GPTOut": 0.0}
    assert lines == {**counted, "Negation (not counted)": 1.0}
    assert "Negation: none of the five sets" in score.differences
    assert not score.complete


def test_human_pairs_count_rows_and_ties_of_rewards_are_wrong() -> None:
    rows = [row("hh", [1, 0], subset="helpful-base"), row("hh", [1, 1], subset="helpful-base"), row("hh", [2, 0], subset="harmless-base")]
    rows += [row("webgpt", [0, 1], (-1.0, 1.0))]
    scores = judge_benchmarks(rows)
    assert {line.label: line.estimate() for line in scores["hh"].lines} == pytest.approx(
        {"HH-RLHF": 2 / 3, "helpful-base": 0.5, "harmless-base": 1.0}
    )
    assert scores["webgpt"].lines[0].estimate() == 1.0
    assert list(scores) == ["hh", "webgpt"]
    assert scores["hh"].differences == ("helpful-base: 2 of 2354 test pairs", "harmless-base: 1 of 2312 test pairs")


@pytest.mark.parametrize(
    ("folder", "n", "told"),
    [
        ("helpful-online", 1137, ()),
        ("helpful-online", 1130, ()),
        ("helpful-online", 1100, ("helpful-online: 1100 of 1137 test pairs",)),
        ("helpful-online", 1138, ("helpful-online: 1138 of 1137 test pairs",)),
        ("mine", 3, ("mine: none of harmless-base, helpful-base, helpful-online, helpful-rejection-sampled",)),
    ],
)
def test_training_pairs_and_foreign_ones_are_not_hh_rlhfs_test(folder: str, n: int, told: tuple[str, ...]) -> None:
    score = judge_benchmarks([row("hh", [1, 0], subset=folder) for _ in range(n)])["hh"]
    assert score.differences == told
    assert score.complete == (not told)


def test_alpaca_eval_asks_the_majority_of_a_pairs_annotators_whatever_the_order_of_the_answers() -> None:
    pair = {"prompt": "p", "answers": ("x", "y"), "lengths": (3, 5)}
    rows = [
        row("alpaca_eval", [1, 0], (1.0, 0.0), **pair),
        row("alpaca_eval", [1, 0], (0.4, 0.6), **pair),
        row("alpaca_eval", [0, 1], (0.1, 0.9), prompt="p", answers=("y", "x"), lengths=(5, 3)),
        row("alpaca_eval", [0, 1], (0.0, 1.0), prompt="q", answers=("u", "v"), lengths=(1, 2)),
        row("alpaca_eval", [0, 1], (0.0, 1.0), prompt="r", answers=("u", "v"), lengths=(1, 2)),
        row("alpaca_eval", [0, 1], (1.0, 0.0), prompt="r", answers=("u", "v"), lengths=(1, 2)),
    ]
    assert majority(rows[:3]).scores == pytest.approx((2 / 3, 1 / 3))
    score = judge_benchmarks(rows)["alpaca_eval"]
    assert score.lines[0].estimate() == 1.0
    assert score.lines[0].n == 2
    assert score.further | {"generators_spearman": 0} == {
        "pairs": 3, "annotations": 6, "undecided_pairs": 1, "prefers_longer": 0.5, "annotators_prefer_longer": 0.5,
        "generators_spearman": 0,
    }  # fmt: skip


def test_alpaca_eval_ranks_generators() -> None:
    rates = {"a": (0.2, 0.9), "b": (0.5, 0.5), "c": (0.9, 0.1)}
    rows = [
        row(
            "alpaca_eval",
            [0, 1 if place < 10 * own else -1],
            (1.0, 0.0) if place >= 10 * theirs else (0.0, 1.0),
            facts={"generator_2": name},
        )
        for name, (own, theirs) in rates.items()
        for place in range(10)
    ]
    assert judge_benchmarks(rows)["alpaca_eval"].further["generators_spearman"] == pytest.approx(-1.0)


def test_every_benchmark_has_a_line_for_one_row_and_no_other_benchmark_takes_it() -> None:
    rows = {
        "rewardbench": row("rewardbench", [1, 0], subset="hep-go"),
        "rewardbench_2": row("rewardbench", [1, 0, 0, 0], subset="Focus"),
        "rm_bench": row("rm_bench", range(6), (1.0,) * 3 + (0.0,) * 3, facts={"domain": "chat"}),
        **{name: row(name, [1, 0]) for name in ("rmb", "llmbar", "hh", "webgpt", "alpaca_eval")},
        "biased_pairs": row("rows", [1, 0], subset="length/chosen"),
    }
    assert list(rows) == list(BENCHMARKS)
    for name, one in rows.items():
        assert benchmark_of(one) == name
        found = judge_benchmarks([one])[name]
        assert found.as_dict()["rows"] == 1
        assert found.as_dict()["score"]["estimate"] == found.lines[0].estimate()
    assert judge_benchmarks([row("trl", [1, 0])]) == {}
    assert line_of("a", means({"a": 0.5})[0], depth=1).interval().estimate == 0.5
