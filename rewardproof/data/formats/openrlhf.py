"""OpenRLHF's rows: `chosen` and `rejected` beside a prompt that goes by `input`, `context_messages` or another such name."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, field_of, shared_columns, turns_of
from rewardproof.data.group import Group

PROMPT_COLUMNS = ("input", "context_messages", "context", "question", "query")


def matches(row: JsonRow) -> bool:
    """`chosen`, `rejected` and one of the names of a prompt."""
    return "chosen" in row and "rejected" in row and "prompt" not in row and any(name in row for name in PROMPT_COLUMNS)


def to_group(row: JsonRow) -> Group:
    """Read one row; texts become one turn each."""
    column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise BadRow("missing field", f"missing field: one of {', '.join(PROMPT_COLUMNS)}")
    answers = tuple(turns_of(field_of(row, name), name, role="assistant") for name in ("chosen", "rejected"))
    prompt = turns_of(row[column], column, role="user")
    return Group(prompt, answers, (1.0, 0.0), **shared_columns(row, (column, "chosen", "rejected")))


OPENRLHF = Format("openrlhf", "OpenRLHF: input or context_messages, chosen, rejected", matches, to_group, plain_columns=PROMPT_COLUMNS)
