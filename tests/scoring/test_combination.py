from __future__ import annotations

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.scoring import Scale, combine, disagreement

SCORES = np.random.default_rng(0).normal(size=(5, 40))


def test_each_combination_is_its_formula() -> None:
    expected = [SCORES[:, n].mean() - 0.7 * np.mean([(value - SCORES[:, n].mean()) ** 2 for value in SCORES[:, n]]) for n in range(40)]
    np.testing.assert_allclose(combine(SCORES, "uncertainty", penalty=0.7), expected, rtol=1e-12)
    np.testing.assert_array_equal(combine(SCORES, "worst_case"), [min(SCORES[:, n]) for n in range(40)])
    np.testing.assert_allclose(combine(SCORES, "mean"), SCORES.sum(axis=0) / 5)


def test_no_penalty_is_the_mean_to_the_last_bit() -> None:
    np.testing.assert_array_equal(combine(SCORES, "uncertainty", penalty=0.0), combine(SCORES, "mean"))


def test_caution_never_raises_a_score() -> None:
    mean = combine(SCORES, "mean")
    assert (combine(SCORES, "worst_case") <= mean).all()
    assert (combine(SCORES, "uncertainty", penalty=3.0) <= mean).all()


@pytest.mark.parametrize("combination", ["mean", "worst_case", "uncertainty"])
def test_one_member_is_itself(combination) -> None:
    np.testing.assert_array_equal(combine(SCORES[:1], combination), SCORES[0])


def test_disagreement_divides_by_the_number_of_members() -> None:
    np.testing.assert_allclose(disagreement(np.array([[0.0], [2.0]])), [1.0])


def test_a_scale_makes_reference_answers_standard_and_undoes_any_shift_and_unit() -> None:
    rows = [tuple(row) for row in SCORES]
    scale = Scale.of(rows, name="one")
    standard = scale.standardised(SCORES.ravel())
    assert standard.mean() == pytest.approx(0, abs=1e-12)
    assert standard.std() == pytest.approx(1)
    moved = [tuple(3 * value - 7 for value in row) for row in rows]
    np.testing.assert_allclose(Scale.of(moved, name="two").standardised(moved[2]), scale.standardised(rows[2]), atol=1e-12)


@pytest.mark.parametrize("rows", [[], [(1.0, 1.0), (1.0,)], [(1.0, float("nan"))]], ids=["none", "equal", "nan"])
def test_a_scorer_without_a_unit_is_refused(rows) -> None:
    with pytest.raises(EvaluationError, match=r"flat has a mean of .* reference answers, expected finite scores that differ"):
        Scale.of(rows, name="flat")
