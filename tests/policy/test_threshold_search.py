"""Thresholds sought in one run: caps, tolerances, what is known already, names in place of positions, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rewardproof.config import parse
from rewardproof.losses import Sense
from rewardproof.policy.constraints import Search
from rewardproof.policy.threshold_search import ThresholdSearch
from rewardproof.scoring import Scale

START = {"meteor": Scale(0.2, 0.1), "intent": Scale(0.4, 0.5)}


def search(*, steps: int = 80, sense: Sense = "equal", start: dict[str, Scale] | None = None, **settings: Any) -> ThresholdSearch:
    return ThresholdSearch(parse(Search, settings), start or START, sense=sense, steps=steps)


def climbed(one: ThresholdSearch, score: Callable[[dict[str, float]], float], *, updates: int) -> ThresholdSearch:
    """An obedient policy: its values are at the thresholds after every update."""
    for _ in range(updates):
        one.observe(one.thresholds)
        if one.due:
            one.tell(score(one.thresholds))
    return one


def height(thresholds: dict[str, float]) -> float:
    return -((thresholds["meteor"] - 0.5) ** 2) - (thresholds["intent"] - 1.3) ** 2


def test_it_begins_at_the_initial_policy_and_steps_from_there() -> None:
    one = search(step=2.0)
    assert one.thresholds == {"meteor": 0.2, "intent": 0.4}
    asked = []
    for _ in range(3):
        asked.append(one.thresholds)
        one.observe(one.thresholds)
        one.tell(0.0)
    assert asked[1:] == [{"intent": pytest.approx(1.4), "meteor": 0.2}, {"intent": 0.4, "meteor": pytest.approx(0.4)}]


def test_it_finds_the_summit_within_its_tolerance() -> None:
    one = climbed(search(), height, updates=200)
    assert one.ended
    assert one.best is not None
    assert one.thresholds == one.best["thresholds"]
    assert one.thresholds["meteor"] == pytest.approx(0.5, rel=0.15)
    assert one.thresholds["intent"] == pytest.approx(1.3, rel=0.15)
    trials = len(one.trials)
    climbed(one, height, updates=20)
    assert len(one.trials) == trials, "what is found holds to the end"


def test_with_units_of_the_spread_a_shift_of_the_scores_changes_nothing() -> None:
    """A Bradley-Terry reward has no zero: a share of it would end the search at once, or never."""
    walks = []
    for shift in (0.0, 12.0, -1000.0):
        start = {"one": Scale(shift, 1.0), "two": Scale(shift - 3.0, 1.2)}
        walk = ThresholdSearch(parse(Search, {}), start, sense="equal", steps=80, in_spread=True)
        walk = climbed(walk, lambda asked, shift=shift: -sum((value - shift - 1) ** 2 for value in asked.values()), updates=30)
        walks.append([{name: value - shift for name, value in trial["thresholds"].items()} for trial in walk.trials])
    assert len(walks[0]) > 3
    for other in walks[1:]:
        assert [pytest.approx(asked, abs=1e-9) for asked in walks[0]] == other


def test_defect_2_thresholds_are_sought_by_name() -> None:
    """The release's simplex has METEOR first and its constraints INTENT."""
    turned = {name: START[name] for name in reversed(START)}
    one, other = climbed(search(), height, updates=60), climbed(search(start=turned), height, updates=60)
    assert one.trials == other.trials
    assert one.thresholds == other.thresholds


def test_defect_4_a_trial_ends_at_its_own_cap_and_is_always_scored() -> None:
    """The release has 1/10 of the run where the paper says 1/8, one counter for all trials, and scores that may be unbound."""
    for cap, expected in ((0.125, 10), (0.1, 8)):
        one = search(steps=80, cap=cap)
        assert one.cap == expected
        for trial in range(3):
            for update in range(expected):
                assert not one.due
                one.observe({"meteor": 9.0, "intent": 9.0})
                assert one.spent == update + 1
            assert one.due
            assert not one.reached
            found = one.tell(float(trial))
            assert found == one.trials[-1]
            assert (found["updates"], found["reached"], found["score"]) == (expected, False, float(trial))
            assert one.spent == 0


@pytest.mark.parametrize(
    ("settings", "value", "reached"),
    [
        ({}, 0.209, True),
        ({}, 0.215, False),
        ({"relative": False, "tolerance": 5e-3}, 0.204, True),
        ({"relative": False, "tolerance": 5e-3}, 0.209, False),
    ],
)
def test_defect_4_the_tolerance_is_a_share_unless_it_is_asked_to_be_absolute(settings: dict[str, Any], value: float, reached: bool) -> None:
    one = search(**settings)
    one.observe({"meteor": value, "intent": 0.4})
    assert one.reached == one.due == reached


@pytest.mark.parametrize(("sense", "above", "below"), [("equal", False, False), ("at_least", True, False), ("at_most", False, True)])
def test_what_counts_as_reached_is_what_the_constraint_asks(sense: Sense, above: bool, below: bool) -> None:
    for factor, expected in ((2.0, above), (0.5, below)):
        one = search(sense=sense)
        one.observe({name: factor * value for name, value in one.thresholds.items()})
        assert one.reached == expected


def test_thresholds_that_are_known_are_not_tried_again() -> None:
    one = climbed(search(tolerance=0.2), height, updates=200)
    tried = [trial["thresholds"] for trial in one.trials]
    for place, other in enumerate(tried):
        for earlier in tried[:place]:
            assert any(abs(other[name] - earlier[name]) > 0.2 * abs(earlier[name]) for name in other)
    assert one.ended


def test_a_search_goes_on_where_it_was() -> None:
    whole = climbed(search(), height, updates=57)
    first = climbed(search(), height, updates=23)
    # The start is measured by samples of the initial policy, which another machine need not draw to the bit.
    second = search(start={name: Scale(scale.mean + 0.1, 2 * scale.std) for name, scale in START.items()})
    second.load_state(first.state())
    assert second.thresholds == first.thresholds
    climbed(second, height, updates=34)
    assert second.trials == whole.trials
    assert second.state() == whole.state()
