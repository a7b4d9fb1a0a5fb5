"""Settings of constrained policies: the published values, and what cannot mean anything."""

from __future__ import annotations

from typing import Any

import pytest

from rewardproof.config import load_recipe, parse, recipe_names
from rewardproof.errors import ConfigError
from rewardproof.policy.constraints import Constraints, Search, check_constraints, refuse_other_names
from rewardproof.policy.settings import OnPolicy


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"length": 1.0, "evn": 1.0}, r"constrained.thresholds has 'evn' \(did you mean 'even'\?\), expected the names of the rewards"),
        ({"length": 1.0}, "constrained.thresholds has none for even, expected one for every reward"),
        ({"length": 1.0, "even": 1.0, "bleu": 0.002}, "has 'bleu'"),
    ],
)
def test_defect_5_thresholds_are_of_the_streams_there_are(thresholds: dict[str, float], message: str) -> None:
    """The release's configuration carries a third constraint, and other thresholds than the paper: no recipe carries any."""
    with pytest.raises(ConfigError, match=message):
        refuse_other_names(thresholds, ["length", "even"])
    for name in recipe_names("align"):
        assert "thresholds" not in load_recipe(name, verb="align").get("constrained", {})


@pytest.mark.parametrize(
    ("settings", "optimise", "message"),
    [
        ({"sense": "equal"}, {"kl": {"coefficient": 0.0}}, "constrained.sense=equal with kl.coefficient=0"),
        ({"sense": "at_least"}, {"kl": {"place": "loss"}}, "constrained.sense=at_least with kl.coefficient=0.05 and kl.place=loss"),
        ({"sense": "equal"}, {"kl": {"target": 1.0}}, "optimise.kl.target=1 with constrained.sense=equal"),
        ({"sense": "equal"}, {"cut_penalty": 1.0}, "optimise.cut_penalty=1 with constrained"),
        ({"sense": "near"}, {"reward_limit": 3.0}, "optimise.reward_limit=3 with constrained"),
        ({"sense": "equal"}, {"redistribute": {"share": 1.0}}, "optimise.redistribute.share=1 with constrained"),
        ({"sense": "near", "search": {}}, {}, "constrained.search with sense=near"),
    ],
)
def test_what_cannot_mean_anything_is_refused(settings: dict[str, Any], optimise: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_constraints(parse(Constraints, settings), parse(OnPolicy, {"estimator": "ppo", **optimise}))


def test_recipes_have_the_published_values() -> None:
    found = parse(Constraints, load_recipe("nm_ppo", verb="align")["constrained"])
    assert (found.multipliers.learning_rate, found.multipliers.momentum) == (0.1, 0.1)
    assert found.search == Search()
    assert (Search().cap, Search().tolerance, Search().relative) == (1 / 8, 0.05, True)
    for name in ("mu_ppo", "xi_ppo", "nm_ppo", "all_ppo", "ppo_sat"):
        one = parse(OnPolicy, load_recipe(name, verb="align")["optimise"])
        assert (one.discount, one.trace, one.clip, one.value_coefficient, one.penalty_value_coefficient) == (0.99, 0.95, 0.2, 0.5, 0.2)
        assert one.value_coefficients(3) == (0.5, 0.5, 0.2)
    for name in ("all_ppo", "ppo_sat"):
        kl = parse(OnPolicy, load_recipe(name, verb="align")["optimise"]).kl
        assert (kl.coefficient, kl.target, kl.rate) == (0.2, 0.5, 0.1)
