"""Rank agreement: tau by brute force, the mean over prompts, and prompts on which it is undefined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data.group import Group, Message
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import rank_agreement
from rewardproof.statistics import is_constant, kendall


def group(prompt: str, *scores: float) -> Group:
    answers = tuple((Message("assistant", f"answer {number}"),) for number in range(len(scores)))
    return Group((Message("user", prompt),), answers, scores or None)


def tau_b(x: list[float], y: list[float]) -> float:
    """Kendall's tau-b by its definition, pair by pair."""
    agree = disagree = only_x = only_y = 0
    for (a, c), (b, d) in itertools.combinations(zip(x, y, strict=True), 2):
        if a == b and c == d:
            continue
        only_x += a == b
        only_y += c == d
        agree += (a - b) * (c - d) > 0
        disagree += (a - b) * (c - d) < 0
    return (agree - disagree) / math.sqrt((agree + disagree + only_x) * (agree + disagree + only_y))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_kendall_is_its_definition(rows: list[tuple[int, int]]) -> None:
    x, y = ([float(value) for value in column] for column in zip(*rows, strict=True))
    if is_constant(x) or is_constant(y):
        with pytest.raises(EvaluationError, match="is constant over"):
            kendall(x, y)
        return
    assert kendall(x, y) == pytest.approx(tau_b(x, y))
    assert kendall([-value for value in x], y) == pytest.approx(-tau_b(x, y))


def test_the_mean_is_over_prompts_and_its_interval_too() -> None:
    draw = np.random.default_rng(0)
    groups = [group(f"p{number}", *draw.permutation(4).astype(float)) for number in range(50)]
    rewards = [np.asarray(entry.scores) + draw.normal(size=4) for entry in groups]
    found = rank_agreement(groups, rewards)
    each = [tau_b(list(map(float, row)), list(entry.scores or ())) for entry, row in zip(groups, rewards, strict=True)]
    assert found.tau.estimate == pytest.approx(np.mean(each))
    assert found.tau.n == found.tau.n_clusters == found.n_prompts == 50
    half = 1.96 * np.std(each, ddof=1) / math.sqrt(50)
    assert (found.tau.low, found.tau.high) == pytest.approx((np.mean(each) - half, np.mean(each) + half), abs=0.05)
    assert (found.constant_scores, found.constant_rewards, found.tied_pairs) == (0, 0, 0)


def test_defect_e_constant_prompts_are_counted_and_never_hidden() -> None:
    groups = [group("a", 2.0, 1.0, 0.0), group("b", 2.0, 1.0, 0.0), group("c", 1.0, 1.0, 1.0), group("d")]
    groups[3] = Group(groups[3].prompt, groups[0].answers, None)
    found = rank_agreement(groups, [[3.0, 2.0, 1.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert found.tau.estimate == pytest.approx(0.5), "a reward that tells nothing apart has tau 0; it is not left out"
    assert (found.n_prompts, found.constant_scores, found.constant_rewards, found.tied_pairs) == (2, 2, 1, 3)
    assert found.as_dict()["tau"]["estimate"] == found.tau.estimate


def test_a_tie_in_the_rewards_lowers_tau_and_is_counted() -> None:
    found = rank_agreement([group("a", 3.0, 2.0, 1.0)], [[2.0, 2.0, 1.0]])
    assert found.tau.estimate == pytest.approx(2 / math.sqrt(6))
    assert found.tied_pairs == 1
    assert not found.tau.known, "one prompt says nothing about its spread"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"1 lists of rewards for 2 groups; expected one a group"):
        rank_agreement([group("a", 1.0, 0.0)] * 2, [[1.0, 0.0]])
    with pytest.raises(EvaluationError, match=r"none of 1 groups has two different scores; expected at least one.*give rows with scores"):
        rank_agreement([group("a", 1.0, 1.0)], [[1.0, 0.0]])
    with pytest.raises(EvaluationError, match=r"the reward of answer 1 is nan; expected a finite number"):
        rank_agreement([group("a", 1.0, 0.0)], [[math.nan, 0.0]])
