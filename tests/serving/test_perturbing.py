"""What the page is told of changed answers: the audit's changes, and the reward's difference for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.evaluation.audit import PERTURBATIONS, Passage, perturbed
from rewardproof.scoring import AnyModel

PROMPT, ANSWERS = "w1 w2 w3", ["w4 w5. w6 w7.", "w8 12"]


@pytest.fixture(scope="module")
def asked(start_server: Callable[..., Any]) -> Any:
    return start_server("dense", "ensemble")


@pytest.mark.parametrize("name", ["dense", "ensemble"])
def test_shifts_are_those_of_the_offline_scorer(asked: Any, models: dict[str, AnyModel], name: str) -> None:
    found = asked.post("/perturb", {"model": name, "prompt": PROMPT, "answers": ANSWERS}).json()
    assert found["model"] == name

    def reward(text: str) -> float:
        return models[name].score([Group((Message("user", PROMPT),), ((Message("assistant", text),),))])[0][0]

    own = [reward(answer) for answer in ANSWERS]
    for change in found["changes"]:
        assert change["way"] == PERTURBATIONS[change["name"]].way
        for answer, before, one in zip(ANSWERS, own, change["answers"], strict=True):
            assert (one or {}).get("text") == perturbed(change["name"], Passage(answer, PROMPT))
            if one is not None:
                assert one["shift"] == pytest.approx(reward(one["text"]) - before, abs=4e-5)


def test_changes_that_apply_to_no_answer_are_left_out(asked: Any) -> None:
    named = {change["name"]: change for change in asked.post("/perturb", {"prompt": PROMPT, "answers": ANSWERS}).json()["changes"]}
    assert [one is None for one in named["numbers"]["answers"]] == [True, False]
    assert "other_prompt" not in named
    assert (
        asked.post("/perturb", {"prompt": PROMPT, "answers": [""]}).status_code
        == asked.post("/inspect", {"prompt": PROMPT, "answers": [""]}).status_code
    )
