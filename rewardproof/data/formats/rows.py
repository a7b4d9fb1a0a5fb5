"""Our own rows: `id, prompt, answers, scores, margin, subset, category, reference, meta`; all but prompt and answers are optional.

Rows without scores that `score` has written `rewards` into have those for scores, so that one model's judgement is another's data.
"""

from __future__ import annotations

from typing import Any

from rewardproof.data.formats.fields import Format, JsonRow, field_of, numbers_of, shared_columns, texts_of, turns_of
from rewardproof.data.group import Group, Message, as_chat


def matches(row: JsonRow) -> bool:
    """`prompt` and `answers`, answers being texts or lists of messages."""
    answers = row.get("answers")
    nested = isinstance(answers, list) and any(isinstance(item, dict) for item in answers)
    return "prompt" in row and "answers" in row and "ranks" not in row and not nested


def to_group(row: JsonRow) -> Group:
    """Read one of our rows."""
    judged = "scores" if row.get("scores") is not None else "rewards"
    return Group(
        prompt=turns_of(field_of(row, "prompt"), "prompt", role="user"),
        answers=texts_of(field_of(row, "answers"), "answers"),
        scores=None if row.get(judged) is None else numbers_of(row[judged], judged),
        **shared_columns(row, ("prompt", "answers", judged)),
    )


def to_row(group: Group) -> dict[str, Any]:
    """Write a group as one of our rows; `to_group` reads it back (`raw` and `origin` are the reader's and are not kept)."""
    row: dict[str, Any] = {
        "id": group.id,
        "prompt": _plain(group.prompt, "user"),
        "answers": [_plain(answer, "assistant") for answer in group.answers],
        "scores": None if group.scores is None else list(group.scores),
        "margin": group.margin,
        "subset": group.subset,
        "category": group.category,
        "reference": group.reference,
        "meta": dict(group.meta),
    }
    return {key: value for key, value in row.items() if key in ("prompt", "answers") or value not in (None, "", {})}


def _plain(turns: tuple[Message, ...], role: str) -> str | list[dict[str, str]]:
    if len(turns) == 1 and turns[0].role == role:
        return turns[0].content
    return as_chat(turns)


ROWS = Format("rows", "our own rows: prompt, answers and, optionally, scores", matches, to_group, plain_columns=("prompt",))
