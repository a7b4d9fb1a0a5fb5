"""Prompts alone, for a policy to answer: `prompt`, and nothing beside it that answers it."""

from __future__ import annotations

from rewardproof.data.formats.fields import Format, JsonRow, field_of, shared_columns, turns_of
from rewardproof.data.group import Group

ALONGSIDE = frozenset({"prompt", "id", "subset", "category", "reference", "meta"})
"""Columns that a row of prompts may have to be detected as one; with others, which may hold answers, it has to be named."""


def matches(row: JsonRow) -> bool:
    """`prompt`, and no column that could hold answers."""
    return "prompt" in row and row.keys() <= ALONGSIDE


def to_group(row: JsonRow) -> Group:
    """Read a prompt."""
    return Group(prompt=turns_of(field_of(row, "prompt"), "prompt", role="user"), answers=(), **shared_columns(row, ("prompt",)))


PROMPTS = Format("prompts", "prompts alone, to be answered", matches, to_group, plain_columns=("prompt",))
