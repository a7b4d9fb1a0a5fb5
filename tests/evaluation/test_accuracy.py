"""Pair accuracy: its weights, its parts, its baselines and what it refuses."""

import json
import math
from typing import Any

import numpy as np
import pytest

from rewardproof.data.group import Group, Message
from rewardproof.data.pairs import Pair, ordered_pairs
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import agreement, correct_shares, pair_accuracy, pair_outcomes


def group(prompt: str, answers: list[str], scores: list[float] | None, **columns: Any) -> Group:
    texts = tuple((Message("assistant", text),) for text in answers)
    return Group((Message("user", prompt),), texts, scores=tuple(scores) if scores is not None else None, **columns)


def pairs(n: int, **columns: Any) -> list[Group]:
    return [group(f"p{i}", ["long answer", "short"], [1.0, 0.0], **columns) for i in range(n)]


def test_right_wrong_and_tied_pairs() -> None:
    report = pair_accuracy(pairs(4), [[1, 0], [1, 0], [0, 1], [2, 2]])
    assert (report.overall.estimate, report.tied, report.n_pairs, report.n_groups) == (0.625, 1, 4, 4)
    assert (report.gap_mean, report.reward_mean) == (0.25, 0.875)
    assert report.length_only.estimate == 1.0


def test_a_list_of_answers_counts_once() -> None:
    nine = group("list", [f"a{i}" for i in range(9)], [float(i) for i in range(9)])
    report = pair_accuracy([nine, *pairs(1)], [[float(-i) for i in range(9)], [1, 0]])
    assert (report.overall.estimate, report.n_pairs, report.n_groups) == (0.5, 37, 2)


def test_only_differing_scores_make_pairs() -> None:
    report = pair_accuracy([group("p", ["a", "b", "c"], [1.0, 1.0, 0.0])], [[0.0, 2.0, 1.0]])
    assert (report.overall.estimate, report.n_pairs) == (0.5, 2)


def test_equals_the_definition_on_random_groups() -> None:
    generator = np.random.default_rng(0)
    groups, rewards, expected = [], [], []
    for i in range(40):
        n = int(generator.integers(2, 6))
        scores, row = generator.integers(0, 3, size=n).astype(float), generator.integers(0, 4, size=n).astype(float)
        groups.append(group(f"p{i}", ["x"] * n, scores.tolist()))
        rewards.append(row.tolist())
        wins = [np.sign(row[a] - row[b]) / 2 + 0.5 for a in range(n) for b in range(n) if scores[a] > scores[b]]
        if wins:
            expected.append(np.mean(wins))
    report = pair_accuracy(groups, rewards)
    assert report.overall.estimate == pytest.approx(np.mean(expected))
    assert report.n_groups + report.unordered == 40
    assert report.length_only.estimate == 0.5
    assert report.length_correlation is None


def test_parts_are_reported_where_there_is_more_than_one() -> None:
    groups = [*pairs(3, subset="easy"), *pairs(2, subset="hard"), *pairs(1)]
    report = pair_accuracy(groups, [[1, 0]] * 3 + [[0, 1]] * 2 + [[1, 0]])
    assert {name: part.estimate for name, part in report.by_subset.items()} == {"(none)": 1.0, "easy": 1.0, "hard": 0.0}
    assert report.by_category == {}


def test_outcomes_of_pairs_keep_what_the_groups_with_an_order_are_of() -> None:
    groups = [
        group("p", ["a", "b"], [1.0, 0.0], subset="s", category="maths"),
        group("q", ["a", "b"], [1.0, 1.0], subset="t", category="law"),
        group("r", ["a", "bb", "c"], [0.0, 2.0, 1.0]),
    ]
    found = pair_outcomes(groups, [[1.0, 2.0], [0.0, 0.0], [0.0, 1.0, 1.0]])
    assert (found.correct, found.sizes) == ("01=1", (1, 3))
    assert (found.subsets, found.categories) == (("s", ""), ("maths", ""))


def test_unanimity_is_not_certainty() -> None:
    report = pair_accuracy(pairs(20), [[1, 0]] * 20)
    assert report.overall.high == 1.0
    assert 0.8 < report.overall.low < 0.9


def test_rows_of_one_prompt_are_one_cluster() -> None:
    assert pair_accuracy(pairs(3) + pairs(3), [[1, 0], [0, 1], [1, 0]] * 2).overall.n_clusters == 3


def test_pairs_without_a_prompt_are_clusters_of_their_own() -> None:
    raw = [Group((), ((Message("assistant", f"good {n}"),), (Message("assistant", f"bad {n}"),)), scores=(1.0, 0.0)) for n in range(6)]
    overall = pair_accuracy(raw, [[1, 0]] * 4 + [[0, 1]] * 2).overall
    assert overall.n_clusters == 6
    assert overall.low < overall.estimate < overall.high


def test_length_is_compared_within_prompts() -> None:
    generator = np.random.default_rng(1)
    groups = [group(f"p{i}", ["x" * int(a), "x" * int(b)], [1.0, 0.0]) for i, (a, b) in enumerate(generator.integers(5, 99, size=(50, 2)))]
    by_length = [[len(text) + 1000.0 * i for text in g.answer_texts] for i, g in enumerate(groups)]
    report = pair_accuracy(groups, by_length)
    assert report.length_correlation == pytest.approx(1.0)
    assert report.overall.estimate == report.length_only.estimate


def test_calibration_is_of_the_favoured_answer() -> None:
    gap = math.log(3)  # confidence 0.75
    report = pair_accuracy(pairs(4), [[gap, 0]] * 3 + [[0, gap]])
    assert report.ece == pytest.approx(0.0)
    assert pair_accuracy(pairs(4), [[0, gap]] * 4).ece == pytest.approx(0.75)


def test_is_json() -> None:
    report = pair_accuracy([*pairs(1, subset="a"), *pairs(1, subset="b")], [[1, 0], [0, 1]])
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["by_subset"]["a"]["estimate"] == 1.0
    assert values["overall"]["n_clusters"] == 1
    assert values["overall"]["low"] is None


def test_agreement_with_given_pairs_is_accuracy_where_they_are_the_datas_own() -> None:
    generator = np.random.default_rng(0)
    groups = [group(f"p{i % 7}", ["a", "b", "c"], generator.integers(0, 3, 3).tolist()) for i in range(12)]
    rewards = generator.normal(size=(12, 3)).round(1).tolist()
    own = [ordered_pairs(one) for one in groups]
    assert agreement([one.prompt_key for one in groups], own, rewards) == pair_accuracy(groups, rewards).overall
    assert agreement(["p", "q"], [(), ()], rewards[:2]) is None
    others = [(Pair(2, 0, None), Pair(2, 1, None))]
    assert correct_shares(others, [[0.0, 2.0, 1.0]]).tolist() == [0.5]
    assert correct_shares(others, [[1.0, 1.0, 1.0]]).tolist() == [0.5]


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="1 lists of rewards for 2 groups"):
        pair_accuracy(pairs(2), [[1, 0]])
    with pytest.raises(EvaluationError, match=r"prefs.jsonl:7: the reward of answer 2 is nan"):
        pair_accuracy(pairs(1, origin="prefs.jsonl:7"), [[1, math.nan]])
    with pytest.raises(EvaluationError, match="the score of answer 1 is inf"):
        pair_accuracy([group("p", ["a", "b"], [math.inf, 0.0])], [[1, 0]])
    with pytest.raises(EvaluationError, match="3 rewards for 2 answers"):
        pair_accuracy(pairs(1), [[1, 0, 2]])
    with pytest.raises(EvaluationError, match="none of 2 groups has an order"):
        pair_accuracy([group("p", ["a", "b"], None), group("q", ["a", "b"], [1.0, 1.0])], [[1, 0]] * 2)
