from __future__ import annotations

import random

import numpy as np
import pytest

from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.evaluation.best_of_n import best_of_n_columns
from rewardproof.scoring import Combine, Ensemble, Scale, Scorer


class Program:
    """A scorer with a rule, an offset and a unit of its own."""

    def __init__(self, salt: int, *, offset: float = 0.0, unit: float = 1.0) -> None:
        self.salt, self.offset, self.unit = salt, offset, unit

    def score(self, groups, context=None):
        def rule(text: str) -> float:
            return random.Random(f"{self.salt}{text}").gauss(0, 1) + len(text) % 3

        return [tuple(self.offset + self.unit * rule(text) for text in group.answer_texts) for group in groups]


def pools(count: int, answers: int) -> list[Group]:
    return [
        Group(
            prompt=(Message("user", f"p{number}"),),
            answers=tuple((Message("assistant", f"a{number} {answer} {'x' * (answer % 4)}"),) for answer in range(answers)),
            scores=tuple(float(answer) for answer in range(answers)),
            id=str(number),
        )
        for number in range(count)
    ]


REFERENCE, POOLS = pools(30, 4), pools(12, 9)


def members(**changes) -> dict[str, Scorer]:
    return {"0": Program(0, **changes), "1": Program(1), "2": Program(2)}


def flat(scores) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in scores])


@pytest.mark.parametrize("combination", ["mean", "worst_case", "uncertainty"])
def test_a_members_own_zero_and_unit_change_nothing(combination) -> None:
    how = Combine(combination=combination)
    plain = Ensemble.measured(members(), REFERENCE, how).score(POOLS)
    moved = Ensemble.measured(members(offset=-40.0, unit=9.0), REFERENCE, how).score(POOLS)
    np.testing.assert_allclose(flat(moved), flat(plain), atol=1e-9)


def test_the_three_combinations_differ_and_no_penalty_is_the_mean() -> None:
    made = {
        name: flat(Ensemble.measured(members(), REFERENCE, Combine(combination=name, penalty=penalty)).score(POOLS))
        for name, penalty in (("mean", 0.0), ("worst_case", 0.0), ("uncertainty", 0.5))
    }
    assert not np.allclose(made["mean"], made["worst_case"])
    assert not np.allclose(made["mean"], made["uncertainty"])
    without = flat(Ensemble.measured(members(), REFERENCE, Combine(combination="uncertainty", penalty=0.0)).score(POOLS))
    np.testing.assert_array_equal(without, made["mean"])


def test_disagreement_is_the_variance_of_standardised_members() -> None:
    ensemble = Ensemble.measured(members(), REFERENCE)
    table = np.stack([ensemble.scales[name].standardised(flat(member.score(POOLS))) for name, member in ensemble.members.items()])
    np.testing.assert_allclose(flat(ensemble.disagreement(POOLS)), table.var(axis=0), atol=1e-12)
    assert ensemble.by_member(POOLS)[0].shape == (3, 9)


def test_gold_goes_along_with_the_ensembles_own_choice() -> None:
    curves = {}
    for name in ("mean", "worst_case", "uncertainty"):
        proxy = Ensemble.measured(members(), REFERENCE, Combine(combination=name)).score(POOLS)
        same = best_of_n_columns(proxy, proxy, [1, 2, 4, 8])
        np.testing.assert_allclose(same[:, 0], same[:, 1])
        gold = Program(9).score(POOLS)
        curves[name] = best_of_n_columns(proxy, gold, [1, 2, 4, 8])[:, 0].mean(axis=0)
    assert [curve[0] for curve in curves.values()] == pytest.approx([flat(Program(9).score(POOLS)).mean()] * 3), "one answer is no choice"
    for name in ("worst_case", "uncertainty"):
        assert not np.allclose(curves["mean"][1:], curves[name][1:])


def test_equal_answers_keep_scores_of_their_own_place() -> None:
    twice = Group(prompt=POOLS[0].prompt, answers=(POOLS[0].answers[0], POOLS[0].answers[1], POOLS[0].answers[0]), id="twice")
    first, second, third = Ensemble.measured(members(), REFERENCE).score([twice])[0]
    assert first == third != second


def test_a_member_without_a_unit_or_with_scores_missing_is_named() -> None:
    class Constant:
        def score(self, groups, context=None):
            return [(1.0,) * len(group.answers) for group in groups]

    class Short:
        def score(self, groups, context=None):
            return [(1.0,) for _ in groups]

    with pytest.raises(EvaluationError, match="constant has a mean of 1 "):
        Ensemble.measured({"constant": Constant()}, REFERENCE)
    with pytest.raises(EvaluationError, match="Member short gave 12 scores in 12 groups, expected 108 in 12"):
        Ensemble({"short": Short()}, {"short": Scale(0.0, 1.0)}).score(POOLS)
    with pytest.raises(ConfigError, match="Got members a and scales of none"):
        Ensemble({"a": Constant()}, {})
