from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from rewardproof.errors import EvaluationError
from rewardproof.statistics import fit_law
from rewardproof.statistics.overoptimisation import GoldLaw

DISTANCES = np.linspace(0.0, 6.0, 25)


def formula(law: str, alpha: float, beta: float, distance: np.ndarray) -> np.ndarray:
    if law == "best_of_n":
        return distance * (alpha - beta * distance)
    return np.array([d * (alpha - beta * np.log(d)) if d else 0.0 for d in distance])


@pytest.mark.parametrize(("law", "alpha", "beta"), [("best_of_n", 0.5, 0.12), ("rl", 0.35, 0.15), ("best_of_n", 0.4, -0.01)])
def test_noiseless_curves_give_back_their_coefficients(law, alpha, beta) -> None:
    found = fit_law(DISTANCES, formula(law, alpha, beta, DISTANCES), law)
    assert (found.alpha, found.beta) == (pytest.approx(alpha), pytest.approx(beta))
    assert found.r_squared == pytest.approx(1)
    np.testing.assert_allclose(found.gold(DISTANCES), formula(law, alpha, beta, DISTANCES), atol=1e-12)


@pytest.mark.parametrize(
    ("law", "alpha", "beta", "distance", "gold"), [("best_of_n", 0.5, 0.12, 2.083, 0.521), ("rl", 0.35, 0.15, 3.794, 0.569)]
)
def test_the_peak_is_where_the_curve_is_highest(law, alpha, beta, distance, gold) -> None:
    peak = GoldLaw(law, alpha, beta, 1.0, 9).peak
    assert peak == (pytest.approx(distance, abs=5e-4), pytest.approx(gold, abs=5e-4))
    searched = minimize_scalar(lambda d: -formula(law, alpha, beta, np.array([d]))[0], bounds=(0.01, 20), method="bounded")
    assert peak == (pytest.approx(searched.x, rel=1e-4), pytest.approx(-searched.fun, rel=1e-6))


def test_a_curve_that_never_bends_has_no_peak() -> None:
    assert GoldLaw("best_of_n", 0.5, 0.0, 1.0, 9).peak is None
    assert GoldLaw("best_of_n", -0.1, 0.2, 1.0, 9).peak is None
    assert GoldLaw("rl", 0.5, -0.1, 1.0, 9).peak is None
    assert GoldLaw("rl", 0.13, 8e-5, 1.0, 9).peak is None, "a peak so far out that no number holds its distance is none"


@pytest.mark.parametrize("law", ["best_of_n", "rl"])
def test_weighted_fit_is_the_minimum_of_the_weighted_squares(law) -> None:
    draw = np.random.default_rng(0)
    gold, weights = formula(law, 0.5, 0.1, DISTANCES) + 0.05 * draw.normal(size=25), draw.uniform(0.1, 9, size=25)
    found = fit_law(DISTANCES, gold, law, weights_L=weights)
    used = (0.3 if law == "rl" else 0.0) < DISTANCES

    def squares(point: np.ndarray) -> float:
        return float((weights[used] * (gold[used] - formula(law, point[0], point[1], DISTANCES[used])) ** 2).sum())

    best = minimize(squares, np.array([0.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000})
    assert (found.alpha, found.beta) == (pytest.approx(best.x[0], abs=1e-6), pytest.approx(best.x[1], abs=1e-6))
    assert found.n_points == used.sum()


def test_points_near_zero_do_not_bend_the_law_of_rl() -> None:
    gold = formula("rl", 0.4, 0.1, DISTANCES)
    gold[DISTANCES < 0.3] = 9.0
    assert fit_law(DISTANCES, gold, "rl").alpha == pytest.approx(0.4)


def test_too_few_or_broken_points_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="2 points beyond a distance of 0, expected three or more"):
        fit_law(np.array([0.0, 1.0, 2.0]), np.zeros(3), "best_of_n")
    with pytest.raises(EvaluationError, match=r"2 points beyond a distance of 0\.3"):
        fit_law(np.array([0.1, 1.0, 2.0]), np.zeros(3), "rl")
    with pytest.raises(EvaluationError, match="expected finite numbers, one of each"):
        fit_law(np.array([1.0, 2.0, 3.0]), np.array([0.0, np.nan, 1.0]), "best_of_n")
    assert np.isnan(fit_law(DISTANCES, np.zeros(25), "best_of_n").r_squared)
