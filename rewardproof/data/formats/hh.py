r"""HH-RLHF: `chosen` and `rejected` are whole transcripts of `\n\nHuman:` and `\n\nAssistant:` turns.

The prompt is every turn before the last `\n\nAssistant:`. Where the two transcripts part earlier, at a turn of the assistant, what both
share is the prompt and the answers are several turns long.
"""

from __future__ import annotations

import re

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, shared_columns, split_shared, text_of
from rewardproof.data.group import Group, Message

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: object) -> bool:
    """Whether this is text in HH's markup."""
    return isinstance(text, str) and set(_TURN.findall(text)) == {"Human", "Assistant"}


def matches(row: JsonRow) -> bool:
    """Two transcripts and no prompt."""
    return "prompt" not in row and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))


def to_group(row: JsonRow) -> Group:
    """Read one pair of transcripts."""
    chosen, rejected = parse(text_of(row, "chosen")), parse(text_of(row, "rejected"))
    prompt, answers = split_shared(chosen, rejected)
    return Group(prompt, answers, (1.0, 0.0), **shared_columns(row, ("chosen", "rejected")))


def parse(transcript: str) -> tuple[Message, ...]:
    """The turns of a transcript, each stripped of the white space around it."""
    before, *pieces = _TURN.split(transcript)
    if before.strip() or not pieces:
        raise BadRow("stray text", f"stray text before the first turn: {before.strip()[:60]!r}")
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Message(_ROLES[name], content.strip()) for name, content in turns)


HH = Format("hh", r"HH-RLHF: chosen and rejected transcripts of \n\nHuman: and \n\nAssistant: turns", matches, to_group)
