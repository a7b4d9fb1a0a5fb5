"""Every reason for which a group is refused, for training and for scoring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rewardproof.data import REASONS, BadRow, Group, Message, check_group
from rewardproof.data.checks import UNFIT


def turns(*roles: str, text: str = "x") -> tuple[Message, ...]:
    return tuple(Message(role, text) for role in roles)


GOOD = Group(turns("user"), (turns("assistant", text="a"), turns("assistant", text="b")), (1.0, 0.0))

ALWAYS_BAD: list[tuple[str, dict[str, Any]]] = [
    ("no answers", {"answers": ()}),
    ("empty answer", {"answers": (turns("assistant"), turns("assistant", text=" \n"))}),
    ("empty answer", {"answers": (turns("assistant"), ())}),
    ("empty prompt", {"prompt": turns("user", text=" ")}),
    ("empty prompt", {"prompt": ()}),
    ("unknown role", {"prompt": turns("critic")}),
    ("non-string field", {"prompt": (Message("user", 3),)}),  # type: ignore[arg-type]
    ("invalid text", {"prompt": turns("user", text="\ud800")}),
    ("two turns in a row", {"prompt": turns("user", "user")}),
    ("two turns in a row", {"prompt": turns("user", "assistant")}),
    ("wrong order of roles", {"prompt": turns("assistant", "user")}),
    ("wrong order of roles", {"prompt": turns("user", "system", "user")}),
    ("wrong order of roles", {"prompt": turns("system")}),
    ("wrong order of roles", {"prompt": turns("user", "assistant"), "answers": (turns("user"), turns("user", text="b"))}),
    ("wrong order of roles", {"answers": (turns("assistant", "user"), turns("assistant"))}),
    ("scores and answers differ in length", {"scores": (1.0,)}),
    ("non-finite score", {"scores": (1.0, float("nan"))}),
    ("non-finite score", {"margin": float("inf")}),
]
BAD_FOR_TRAINING: list[tuple[str, dict[str, Any]]] = [
    ("missing scores", {"scores": None}),
    ("identical answers", {"answers": (turns("assistant"), turns("assistant"))}),
    ("identical answers", {"answers": (turns("assistant"), turns("assistant")), "scores": (1.0, 1.0)}),
    ("identical answers", {"answers": (turns("assistant"), turns("assistant", text="b"), turns("assistant")), "scores": (1.0, 0.5, 0.0)}),
    ("tie", {"scores": (0.5, 0.5)}),
    ("tie", {"answers": (*GOOD.answers, turns("assistant", text="c")), "scores": (1.0, 1.0, 1.0)}),
]


@pytest.mark.parametrize(("reason", "change"), ALWAYS_BAD)
@pytest.mark.parametrize("purpose", ["train", "score"])
def test_a_broken_group_is_refused(reason: str, change: dict[str, Any], purpose: Any) -> None:
    with pytest.raises(BadRow, match=reason) as caught:
        check_group(replace(GOOD, **change), purpose=purpose)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("reason", "change"), BAD_FOR_TRAINING)
def test_a_group_without_an_order_is_refused_for_training_alone(reason: str, change: dict[str, Any]) -> None:
    group = replace(GOOD, **change)
    check_group(group, purpose="score")
    with pytest.raises(BadRow, match=reason) as caught:
        check_group(group)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt": turns("system", "user", "assistant", "user")},
        {"prompt": turns("user", "assistant", "tool", "tool")},
        {"prompt": (), "raw": True},
        {"answers": (turns("assistant", "user", "assistant"), turns("assistant"))},
        {"answers": (turns("assistant"), turns("assistant"), turns("assistant", text="b")), "scores": (1.0, 1.0, 0.0)},
        {"answers": (turns("assistant"),), "scores": (0.0,)},
    ],
)
def test_sound_groups_pass(change: dict[str, Any]) -> None:
    check_group(replace(GOOD, **change))


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_makes_a_message_of_four_parts(reason: str) -> None:
    message = BadRow(reason, "something odd").at("file.jsonl:7")
    assert message.startswith(f"file.jsonl:7: got {reason} (something odd); expected {REASONS[reason].expected}; why: ")
    option = "drop_unfit" if reason in UNFIT else "drop"
    assert message.endswith(f"fix it, or pass on_bad={option} to drop and count such rows.")
