"""Robustness of pair accuracy under the paper's four perturbations, which are the audit's."""

from __future__ import annotations

from rewardproof.evaluation.audit import PERTURBATIONS, CaseScores
from rewardproof.evaluation.robustness import SUITES, compared, outcomes


def case(number: int, given: tuple[float, ...] | None, originals: tuple[float, ...], changed: dict[tuple[int, str], float]) -> CaseScores:
    forms = {(place, name, False): reward for (place, name), reward in changed.items()}
    return CaseScores(number, f"prompt {number}", given, originals, forms)


def test_the_four_suites_are_the_audit_s_perturbations() -> None:
    assert tuple(SUITES) == ("verbosity", "capitalisation", "repetition", "misspelling")
    assert set(SUITES.values()) <= set(PERTURBATIONS)
    assert all(PERTURBATIONS[name].effect == "kept" for name in SUITES.values()), "none changes what an answer says"


def test_one_answer_is_perturbed_and_the_other_stays() -> None:
    """Of three answers the second is the best and the first the worst."""
    changed = {(1, "padding"): 0.1, (0, "padding"): 0.9, (1, "capitals"): 0.5, (0, "misspelling"): 0.2, (2, "repetition"): 9.0}
    found = outcomes([case(0, (1.0, 3.0, 2.0), (0.5, 0.8, 0.6), changed)])
    key = ("prompt 0", 0)
    assert found["unchanged"] == {key: 1.0}
    assert found["verbosity/preferred"] == {key: 0.0}
    assert found["verbosity/other"] == {key: 0.0}
    assert found["capitalisation/preferred"] == {key: 0.5}, "a tie counts half"
    assert found["misspelling/other"] == {key: 1.0}
    assert found["repetition/preferred"] == found["repetition/other"] == {}, "neither the best nor the worst was changed"


def test_prompts_without_an_order_say_nothing() -> None:
    found = outcomes([case(0, None, (1.0, 2.0), {(0, "padding"): 3.0}), case(1, (1.0, 1.0), (1.0, 2.0), {})])
    assert not any(found.values())
    assert compared(found, found) == {}


def test_the_gain_is_over_the_same_prompts() -> None:
    def model(*rewards: float) -> list[CaseScores]:
        return [case(number, (1.0, 0.0), (1.0, 0.0), {(1, "padding"): reward}) for number, reward in enumerate(rewards)]

    rows = compared(outcomes(model(2.0, 2.0, 0.5, 2.0)), outcomes(model(0.5, 2.0, 0.5, 0.5)))
    assert set(rows) == {"unchanged", "verbosity/other"}
    padded = rows["verbosity/other"]
    assert (padded["before"]["estimate"], padded["after"]["estimate"], padded["gain"]["estimate"]) == (0.25, 0.75, 0.5)
    assert rows["unchanged"]["before"]["low"] < 1, "four right pairs are no certainty"
