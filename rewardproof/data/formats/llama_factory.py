"""LLaMA-Factory: ShareGPT and Alpaca rows, pairwise (`chosen`, `rejected`) and KTO (`label`, `kto_tag`: one answer, score 1 or 0)."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.alpaca_eval import instruction_of
from rewardproof.data.formats.fields import Format, JsonRow, assistant, field_of, label_of, shared_columns, text_of, turns_of, user
from rewardproof.data.group import Group, Message

CONVERSATIONS = ("conversations", "messages")
TAGS = ("kto_tag", "label")
_USED = (*CONVERSATIONS, *TAGS, "chosen", "rejected", "instruction", "input", "output", "system", "history")


def matches(row: JsonRow) -> bool:
    """A conversation or an instruction, with a pair or a tag beside it."""
    prompted = any(name in row for name in (*CONVERSATIONS, "instruction"))
    return prompted and (("chosen" in row and "rejected" in row) or any(name in row for name in TAGS))


def to_group(row: JsonRow) -> Group:
    """Read one row of any of the four kinds."""
    column = next((name for name in CONVERSATIONS if row.get(name) is not None), None)
    turns = _alpaca_turns(row) if column is None else turns_of(row[column], column, role="user")
    prompt = (*_system(row), *turns)
    columns = shared_columns(row, _USED)
    if "chosen" in row or "rejected" in row:
        answers = tuple(turns_of(field_of(row, name), name, role="assistant") for name in ("chosen", "rejected"))
        return Group(prompt, answers, (1.0, 0.0), **columns)
    tag = next((name for name in TAGS if row.get(name) is not None), None)
    if tag is None:
        raise BadRow("missing field", "missing field: 'chosen' and 'rejected', or one of 'kto_tag' and 'label'")
    score = (label_of(row[tag], tag),)
    if column is None:
        return Group(prompt, (assistant(text_of(row, "output")),), score, **columns)
    if not turns:
        raise BadRow("no answers", "no answers: a conversation without turns")
    return Group(prompt[:-1], (prompt[-1:],), score, **columns)


def _system(row: JsonRow) -> tuple[Message, ...]:
    return (Message("system", text_of(row, "system")),) if row.get("system") else ()


def _alpaca_turns(row: JsonRow) -> tuple[Message, ...]:
    turns: tuple[Message, ...] = ()
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("non-string field", "non-string field 'history': not a list of exchanges")
    for exchange in history:
        if not isinstance(exchange, list) or [type(text) for text in exchange] != [str, str]:
            raise BadRow("non-string field", "non-string field 'history': an exchange is not two texts")
        turns += (*user(exchange[0]), *assistant(exchange[1]))
    return (*turns, *user(instruction_of(row)))


LLAMA_FACTORY = Format(
    "llama_factory", "LLaMA-Factory: conversations or instruction, with chosen/rejected or kto_tag/label", matches, to_group
)
