"""HelpSteer's families: one rated answer a row, HelpSteer2's graded pairs, and pairs that carry a gold reward model's scores."""

from __future__ import annotations

import re

from rewardproof.data.formats.fields import (
    Format,
    JsonRow,
    assistant,
    field_of,
    number_of,
    shared_columns,
    split_shared,
    text_of,
    turns_of,
)
from rewardproof.data.group import Group, Message

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n?")
_RATED = {"prompt", "response", "helpfulness"}
_GRADED = {"prompt", "response_1", "response_2", "preference_strength"}
_GOLD = {"chosen", "rejected", "chosen_reward", "rejected_reward"}


def matches(row: JsonRow) -> bool:
    """The columns of one of the three kinds."""
    return any(kind <= row.keys() for kind in (_RATED, _GRADED, _GOLD))


def to_group(row: JsonRow) -> Group:
    """Read one row of any of the three kinds."""
    if "response_1" in row:
        return _graded(row)
    if "chosen" in row:
        return _gold(row)
    answer = assistant(text_of(row, "response"))
    score = number_of(field_of(row, "helpfulness"), "helpfulness")
    return Group(_prompt(text_of(row, "prompt")), (answer,), (score,), **shared_columns(row, ("prompt", "response")))


def _graded(row: JsonRow) -> Group:
    """Strength −3 to 3, negative where response 1 is better; its size is the margin."""
    strength = number_of(field_of(row, "preference_strength"), "preference_strength")
    scores = (1.0, 0.0) if strength < 0 else (0.0, 1.0) if strength > 0 else (0.5, 0.5)
    answers = (assistant(text_of(row, "response_1")), assistant(text_of(row, "response_2")))
    columns = {**shared_columns(row, _GRADED), "margin": abs(strength)}
    return Group(_prompt(text_of(row, "prompt")), answers, scores, **columns)


def _gold(row: JsonRow) -> Group:
    """The recorded choice is the order; the gold model's scores stay in `meta` as `chosen_reward` and `rejected_reward`."""
    prompt, answers = split_shared(
        turns_of(field_of(row, "chosen"), "chosen", role="assistant"), turns_of(field_of(row, "rejected"), "rejected", role="assistant")
    )
    columns = shared_columns(row, ("chosen", "rejected", "preference_strength"))
    if row.get("preference_strength") is not None:
        columns["margin"] = number_of(row["preference_strength"], "preference_strength")
    return Group(prompt, answers, (1.0, 0.0), **columns)


def _prompt(text: str) -> tuple[Message, ...]:
    """HelpSteer2 writes the turns of a longer conversation into the prompt, behind `<extra_id_1>`."""
    first, *pieces = _TURN.split(text)
    turns = (
        [("User", first), *zip(pieces[::2], pieces[1::2], strict=True)]
        if first.strip() or not pieces
        else [*zip(pieces[::2], pieces[1::2], strict=True)]
    )
    if len(turns) > 1 and turns[-1] == ("Assistant", ""):
        turns = turns[:-1]
    return tuple(Message(speaker.lower(), content) for speaker, content in turns)


HELPSTEER = Format(
    "helpsteer", "HelpSteer: prompt, response, helpfulness; or response_1/2, preference_strength; or gold pairs", matches, to_group
)
