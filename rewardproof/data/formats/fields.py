"""Columns of a row into the parts of a `Group`: texts, messages, numbers, and the columns that every format shares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rewardproof.data.checks import BadRow
from rewardproof.data.group import Group, Message

JsonRow = Mapping[str, Any]

SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
"""Names of speakers in `from`/`value` turns (ShareGPT) and the roles they are."""


@dataclass(frozen=True, slots=True)
class Format:
    """One row format.

    Attributes:
        name: What `format=` calls it.
        doc: One line for help and documentation.
        matches: Whether a row's columns are this format's.
        to_group: Turns a row into a group; raises `BadRow` with the plain reason.
        plain_columns: Columns one of which, when it holds a string, makes the row plain text that `text=raw` may join without a template.
        benchmark: Whether a published score counts every row, so that an empty answer, or two that are equal, are judged and not dropped.
    """

    name: str
    doc: str
    matches: Callable[[JsonRow], bool]
    to_group: Callable[[JsonRow], Group]
    plain_columns: tuple[str, ...] = ()
    benchmark: bool = False


def field_of(row: JsonRow, key: str) -> Any:
    """The value of a column that must be there."""
    if row.get(key) is None:
        raise BadRow("missing field", f"missing field {key!r}")
    return row[key]


def text_of(row: JsonRow, key: str) -> str:
    """The text of a column that must be there."""
    value = field_of(row, key)
    if not isinstance(value, str):
        raise BadRow("non-string field", f"non-string field {key!r} of type {type(value).__name__}")
    return value


def number_of(value: object, name: str) -> float:
    """A number as a float; truth values and texts are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow("invalid number", f"invalid number: {name} is {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise BadRow("non-finite score", f"non-finite score: {name} is too large") from None


def numbers_of(value: object, name: str) -> tuple[float, ...]:
    """A list of numbers."""
    if not isinstance(value, (list, tuple)):
        raise BadRow("invalid number", f"invalid number: {name} is {type(value).__name__}, not a list of numbers")
    return tuple(number_of(item, name) for item in value)


def label_of(value: object, name: str) -> float:
    """1.0 for a desirable answer and 0.0 for an undesirable one."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return float(value)
    raise BadRow("invalid preference", f"invalid preference: {name} is {value!r:.80}, not true or false")


def message_of(value: object, where: str) -> Message:
    """One turn, as `role`/`content` or as `from`/`value`."""
    if not isinstance(value, Mapping):
        raise BadRow("non-string field", f"non-string field {where!r}: a turn of type {type(value).__name__}")
    if "role" not in value and "from" in value:
        speaker = value["from"]
        role, content = (SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker), value.get("value")
    else:
        role, content = value.get("role"), value.get("content")
    if role is None or content is None:
        raise BadRow("missing field", f"missing field: role or content of a turn of {where!r}")
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow("non-string field", f"non-string field: role or content of a turn of {where!r}")
    return Message(role, content)


def turns_of(value: object, where: str, *, role: str) -> tuple[Message, ...]:
    """A text (one turn of `role`), one message, or a list of messages."""
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (message_of(value, where),)
    if isinstance(value, (list, tuple)):
        return tuple(message_of(item, where) for item in value)
    raise BadRow("non-string field", f"non-string field {where!r} of type {type(value).__name__}")


def user(text: str) -> tuple[Message, ...]:
    """One turn of the user."""
    return (Message("user", text),)


def assistant(text: str) -> tuple[Message, ...]:
    """One turn of the assistant."""
    return (Message("assistant", text),)


def texts_of(value: object, where: str) -> tuple[tuple[Message, ...], ...]:
    """A list of answers, each a text or messages."""
    if not isinstance(value, (list, tuple)):
        raise BadRow("non-string field", f"non-string field {where!r}: {type(value).__name__}, not a list of answers")
    return tuple(turns_of(item, where, role="assistant") for item in value)


def is_texts(value: object) -> bool:
    """Whether this is a non-empty list of strings."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def split_shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """The leading turns that two conversations share, which are the prompt, and what follows in each.

    Raises:
        BadRow: When they part at a turn that is not the assistant's.
    """
    if not chosen or not rejected:
        raise BadRow("no answers", "no answers: a conversation without turns")
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    n_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    answers = (chosen[n_shared:], rejected[n_shared:])
    if any(answer[0].role != "assistant" for answer in answers):
        if chosen[n_shared].role == rejected[n_shared].role:
            raise BadRow("prompts differ", f"prompts differ at turn {n_shared + 1}")
        raise BadRow("wrong order of roles", f"wrong order of roles: turn {n_shared + 1} has two speakers")
    return chosen[:n_shared], answers


def shared_columns(row: JsonRow, used: Collection[str]) -> dict[str, Any]:
    """The `Group` columns that every format may carry; what nobody uses goes to `meta`."""
    columns: dict[str, Any] = {name: _label_text(row, name) for name in ("id", "subset", "category")}
    reference = row.get("reference")
    columns["reference"] = None if reference is None else _label_text(row, "reference")
    if row.get("margin") is not None:
        columns["margin"] = number_of(row["margin"], "margin")
    known = {*used, "id", "subset", "category", "reference", "margin", "meta"}
    meta = {key: value for key, value in row.items() if key not in known}
    own_meta = row.get("meta")
    columns["meta"] = {**meta, **own_meta} if isinstance(own_meta, Mapping) else meta if own_meta is None else {**meta, "meta": own_meta}
    return columns


def _label_text(row: JsonRow, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, (str, bool, int, float)):
        return str(value)
    raise BadRow("non-string field", f"non-string field {name!r} of type {type(value).__name__}")
