"""Which answers are called hacked, and that planted states are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewardproof.evaluation import Evaluation, state_similarities


def evaluation(step: int, *, hacked_apart: float, **without: Any) -> Evaluation:
    draw = np.random.default_rng(step)
    rows = []
    for prompt in range(12):
        proxy, gold = draw.normal(size=4), draw.normal(size=4)
        hacked = prompt % 4
        proxy[hacked] += 8.0
        gold[hacked] -= 8.0
        states = draw.normal(size=(4, 16)) * 0.1 + np.eye(16)[0]
        states[hacked] += hacked_apart * np.eye(16)[1]
        rows.append({"prompt": f"p{prompt}", "proxy/rm": proxy.tolist(), "gold": gold.tolist(), "states": states.tolist()} | without)
    return Evaluation(step, tuple(rows))


def test_answers_with_most_proxy_beyond_gold_are_compared_with_the_others() -> None:
    first, last = state_similarities([evaluation(0, hacked_apart=0.0), evaluation(10, hacked_apart=2.0)])
    assert first.similarity.across.estimate == pytest.approx(first.similarity.others.estimate, abs=0.02)
    assert last.similarity.across.high < min(last.similarity.marked.low, last.similarity.others.low)
    assert last.similarity.marked.n == 66
    assert last.as_dict()["step"] == 10
    assert last.as_dict()["hacked"]["estimate"] == last.similarity.marked.estimate


def test_without_gold_or_states_nobody_is_called_hacked() -> None:
    bare = evaluation(0, hacked_apart=1.0)
    for missing in ("gold", "states"):
        rows = tuple({name: value for name, value in row.items() if name != missing} for row in bare.rows)
        assert state_similarities([Evaluation(0, rows)]) == []
    assert state_similarities([]) == []


def test_scores_are_in_units_of_the_first_evaluation() -> None:
    first, last = evaluation(0, hacked_apart=0.0), evaluation(1, hacked_apart=0.0)
    assert first.standardised(first, ["gold"]).mean() == pytest.approx(0)
    assert first.standardised(first, ["gold"]).std() == pytest.approx(1)
    gold = first.table("gold")
    np.testing.assert_allclose(last.standardised(first, ["gold"]), (last.table("gold") - gold.mean()) / gold.std())
