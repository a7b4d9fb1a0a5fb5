"""WebGPT comparisons: OpenAI's own columns, and DSP's markup `{text: [a, b], score: [sa, sb]}` with `## Human:` and `## Assistant:`."""

from __future__ import annotations

from collections.abc import Mapping

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import (
    Format,
    JsonRow,
    assistant,
    field_of,
    is_texts,
    number_of,
    numbers_of,
    shared_columns,
    text_of,
    user,
)
from rewardproof.data.group import Group

_HUMAN, _ASSISTANT = "## Human:", "## Assistant:"


def matches(row: JsonRow) -> bool:
    """`question`, `answer_0`, `answer_1`; or lists of marked-up texts and scores."""
    marked = is_texts(row.get("text")) and "score" in row and _HUMAN in row["text"][0]
    return marked or all(name in row for name in ("question", "answer_0", "answer_1"))


def to_group(row: JsonRow) -> Group:
    """Read one comparison, in either form."""
    if "answer_0" in row:
        return _comparison(row)
    texts = field_of(row, "text")
    if not is_texts(texts):
        raise BadRow("non-string field", "non-string field 'text': not a list of texts")
    pieces = [_cut(text) for text in texts]
    if len({question for question, _ in pieces}) > 1:
        raise BadRow("prompts differ")
    scores = numbers_of(field_of(row, "score"), "score")
    return Group(user(pieces[0][0]), tuple(assistant(answer) for _, answer in pieces), scores, **shared_columns(row, ("text", "score")))


def _comparison(row: JsonRow) -> Group:
    question = field_of(row, "question")
    prompt = text_of(question, "full_text") if isinstance(question, Mapping) else text_of(row, "question")
    answers = (assistant(text_of(row, "answer_0")), assistant(text_of(row, "answer_1")))
    judged = row.get("score_0") is not None or row.get("score_1") is not None
    scores = tuple(number_of(row.get(name), name) for name in ("score_0", "score_1")) if judged else None
    return Group(user(prompt), answers, scores, **shared_columns(row, ("question", "answer_0", "answer_1", "score_0", "score_1")))


def _cut(text: str) -> tuple[str, str]:
    before, mark, answer = text.rpartition(_ASSISTANT)
    head, human, question = before.partition(_HUMAN)
    if not mark or not human or head.strip():
        raise BadRow("stray text", f"stray text: no {_HUMAN!r} … {_ASSISTANT!r} markup around {text[:60]!r}")
    return question.strip(), answer.strip()


WEBGPT = Format("webgpt", "WebGPT comparisons: question, answer_0/1, score_0/1; or DSP's text and score lists", matches, to_group)
