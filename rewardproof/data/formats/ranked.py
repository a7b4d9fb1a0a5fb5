"""n answers with scores or ranks: in parallel columns, or one list of `{answer, score}` objects."""

from __future__ import annotations

from typing import Any

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, number_of, numbers_of, shared_columns, texts_of, turns_of
from rewardproof.data.group import Group

PROMPT_COLUMNS = ("prompt", "question", "query", "instruction", "input")
ANSWER_COLUMNS = ("responses", "answers", "completions")
TEXT_KEYS = ("answer", "text", "response", "completion", "content")


def matches(row: JsonRow) -> bool:
    """A list of answers with a column of scores or ranks, or a list of objects that hold both."""
    answers = row.get(_present(row, ANSWER_COLUMNS) or "")
    first = answers[0] if isinstance(answers, list) and answers else None
    nested = isinstance(first, dict) and ("score" in first or "rank" in first)
    judged = nested or "scores" in row or "ranks" in row
    return isinstance(answers, list) and judged and _present(row, PROMPT_COLUMNS) is not None


def to_group(row: JsonRow) -> Group:
    """Read one ranking; rank 1 is the best, so a rank becomes the score −rank."""
    prompt, column = _present(row, PROMPT_COLUMNS), _present(row, ANSWER_COLUMNS)
    if prompt is None or column is None:
        raise BadRow("missing field", f"missing field: one of {', '.join(PROMPT_COLUMNS)} and one of {', '.join(ANSWER_COLUMNS)}")
    answers = row[column]
    if isinstance(answers, list) and any(isinstance(item, dict) for item in answers):
        texts, scores = [_text(item) for item in answers], tuple(_score(item) for item in answers)
    else:
        texts, scores = answers, _scores(row)
    return Group(
        turns_of(row[prompt], prompt, role="user"),
        texts_of(texts, column),
        scores,
        **shared_columns(row, (prompt, column, "scores", "ranks")),
    )


def _present(row: JsonRow, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _scores(row: JsonRow) -> tuple[float, ...] | None:
    if row.get("scores") is not None:
        return numbers_of(row["scores"], "scores")
    if row.get("ranks") is not None:
        return tuple(-rank for rank in numbers_of(row["ranks"], "ranks"))
    return None


def _text(item: Any) -> Any:
    name = _present(item, TEXT_KEYS) if isinstance(item, dict) else None
    if name is None:
        raise BadRow("missing field", f"missing field: one of {', '.join(TEXT_KEYS)} in an answer")
    return item[name]


def _score(item: dict) -> float:
    if item.get("score") is not None:
        return number_of(item["score"], "score")
    if item.get("rank") is not None:
        return -number_of(item["rank"], "rank")
    raise BadRow("missing field", "missing field: 'score' or 'rank' in an answer")


RANKED = Format(
    "ranked", "n answers (responses, answers, completions) with scores or ranks", matches, to_group, plain_columns=PROMPT_COLUMNS
)
