"""TRL's preference rows: text or messages, with or without a `prompt` column; and its unpaired rows (`completion` and `label`)."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, assistant, field_of, label_of, shared_columns, split_shared, turns_of
from rewardproof.data.group import Group


def matches(row: JsonRow) -> bool:
    """`chosen` and `rejected`, or `prompt`, `completion` and `label`."""
    return ("chosen" in row and "rejected" in row) or ("prompt" in row and "completion" in row and "label" in row)


def to_group(row: JsonRow) -> Group:
    """Read an explicit-prompt, implicit-prompt or unpaired row."""
    columns = shared_columns(row, ("prompt", "chosen", "rejected", "completion", "label"))
    if "completion" in row:
        prompt = turns_of(field_of(row, "prompt"), "prompt", role="user")
        answer = turns_of(field_of(row, "completion"), "completion", role="assistant")
        return Group(prompt, (answer,), (label_of(row.get("label"), "label"),), **columns)
    chosen, rejected = field_of(row, "chosen"), field_of(row, "rejected")
    if row.get("prompt") is not None:
        prompt = turns_of(row["prompt"], "prompt", role="user")
        answers = (turns_of(chosen, "chosen", role="assistant"), turns_of(rejected, "rejected", role="assistant"))
        return Group(prompt, _after(prompt, answers), (1.0, 0.0), **columns)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Group((), (assistant(chosen), assistant(rejected)), (1.0, 0.0), raw=True, **columns)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("non-string field", "non-string field: one of 'chosen' and 'rejected' is text and the other is not")
    prompt, answers = split_shared(turns_of(chosen, "chosen", role=""), turns_of(rejected, "rejected", role=""))
    return Group(prompt, answers, (1.0, 0.0), **columns)


def _after(prompt: tuple, answers: tuple) -> tuple:
    """Drop a prompt that both answers repeat (UltraFeedback keeps whole conversations beside the prompt)."""
    whole = all(len(answer) > len(prompt) and answer[: len(prompt)] == prompt for answer in answers)
    return tuple(answer[len(prompt) :] for answer in answers) if whole else answers


TRL = Format("trl", "TRL: [prompt,] chosen, rejected as text or messages; prompt, completion, label", matches, to_group, ("prompt",))
