"""The reasons for which a row is bad, and the check that every group passes before anyone sees it.

Not here: reading bytes (`files.py`) and understanding a format's columns (`formats/`). Both raise `BadRow` with a reason of `REASONS`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

from rewardproof.data.group import ROLES, Group, Message
from rewardproof.errors import DataError

Purpose = Literal["train", "score", "judge", "answer"]


class Reason(NamedTuple):
    """What a good row has where this one is bad, and why it matters."""

    expected: str
    why: str


REASONS: dict[str, Reason] = {
    "broken JSON": Reason("one JSON value in UTF-8", "a row that cannot be parsed holds no preference"),
    "ragged CSV row": Reason("as many cells as the header has columns", "cells would be read under the wrong name"),
    "not an object": Reason("a JSON object of named columns", "columns are found by their names"),
    "unknown format": Reason("the columns of one known format", "what is preferred to what cannot be guessed"),
    "missing field": Reason("every column that the format needs", "a row without it holds no preference"),
    "non-string field": Reason("text", "text is what a reward model reads"),
    "invalid text": Reason("text that UTF-8 can hold", "a lone surrogate can be neither tokenised nor hashed"),
    "invalid number": Reason("a number", "scores and margins are compared with each other"),
    "invalid preference": Reason("a judgement that the format defines", "which answer is better is unknown"),
    "unknown role": Reason(f"a role out of {', '.join(ROLES)}", "chat templates know no other"),
    "two turns in a row": Reason("user and assistant in turn", "most chat templates refuse it, the others glue the turns together"),
    "wrong order of roles": Reason("[system,] user, assistant, …, user and then an answer by the assistant", "templates need this order"),
    "prompts differ": Reason("answers to one and the same prompt", "only answers to one prompt can be compared"),
    "stray text": Reason("a transcript that begins with a turn of the human", "text before the first turn has no speaker"),
    "not plain text": Reason("plain strings, as text=raw asks for", "messages need the chat template"),
    "no answers": Reason("at least one answer", "there is nothing to score"),
    "empty answer": Reason("answers with text in them", "an empty answer teaches the length of an answer, not its quality"),
    "empty prompt": Reason("a prompt with text in it", "the answers answer nothing, and splits by prompt would see one prompt"),
    "scores and answers differ in length": Reason("one score for each answer", "scores could not be matched with answers"),
    "non-finite score": Reason("finite scores and margins", "NaN and infinity have no order that a loss could use"),
    "missing scores": Reason("a score for each answer", "without a judgement there is nothing to learn"),
    "identical answers": Reason("different texts where the scores differ", "no model can tell equal texts apart"),
    "tie": Reason("at least two different scores", "a tie orders no two answers"),
}
"""Every reason a row can be bad for; reports count rows by these names."""


UNFIT = frozenset({"two turns in a row", "empty answer", "identical answers", "tie", "missing scores", "invalid preference"})
"""Reasons of rows that can be read and are still no preference, as real collections hold them; every other reason is a damaged row."""


class BadRow(DataError):
    """Raised for one row; its text is the plain reason, without file and line, which the reader adds."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Keep the reason, a key of `REASONS`, and what exactly was got."""
        super().__init__(detail or reason)
        self.reason = reason

    @property
    def remedy(self) -> str:
        """The mildest `on_bad` under which such a row is dropped and counted."""
        return "drop_unfit" if self.reason in UNFIT else "drop"

    def at(self, origin: str) -> str:
        """The full message for a row at `origin`."""
        expected, why = REASONS[self.reason]
        got = str(self) if str(self).startswith(self.reason) else f"{self.reason} ({self})"
        return f"{origin}: got {got}; expected {expected}; why: {why}; fix it, or pass on_bad={self.remedy} to drop and count such rows."


def check_group(group: Group, *, purpose: Purpose = "train") -> None:
    """Refuse a group that cannot be used for `purpose`.

    Args:
        group: The group.
        purpose: For `score`, ties, missing scores and identical answers are fine: nothing is learnt from the order. For `judge`, a
            benchmark's row, an answer may be empty too: leaving the row out would change the published score. For `answer`, the prompt
            alone counts: it is to be answered anew.

    Raises:
        BadRow: With the first reason that applies.
    """
    if purpose == "answer":
        _check_prompt(group)
        return
    if not group.answers:
        raise BadRow("no answers")
    for message in (*group.prompt, *(message for answer in group.answers for message in answer)):
        _check_message(message)
    for index, answer in enumerate(group.answer_texts):
        if not answer.strip() and purpose != "judge":
            raise BadRow("empty answer", f"empty answer at position {index}")
    if not group.raw:
        if not group.prompt_text.strip():
            raise BadRow("empty prompt")
        for answer in group.answers:
            _check_order(group.prompt, answer)
    _check_numbers(group)
    if purpose == "train":
        _check_preference(group)


def _check_prompt(group: Group) -> None:
    for message in group.prompt:
        _check_message(message)
    if not group.prompt_text.strip():
        raise BadRow("empty prompt")
    if not group.raw:
        _check_order(group.prompt, (Message("assistant", ""),))


def _check_message(message: Message) -> None:
    if not isinstance(message.content, str):
        raise BadRow("non-string field", f"non-string field: content of type {type(message.content).__name__}")
    if not isinstance(message.role, str) or message.role not in ROLES:
        raise BadRow("unknown role", f"unknown role {message.role!r}")
    try:
        message.content.encode()
    except UnicodeEncodeError as error:
        raise BadRow("invalid text", f"invalid text: {error.reason} at character {error.start}") from None


def _check_order(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> None:
    turns = [message.role for message in (*prompt, *answer)]
    shown = ", ".join(turns)
    if turns[:1] == ["system"]:
        turns = turns[1:]
    for before, after in pairwise(turns):
        if before == after != "tool":
            raise BadRow("two turns in a row", f"two turns in a row by {before!r} ({shown})")
    if "system" in turns or turns[:1] != ["user"]:
        raise BadRow("wrong order of roles", f"wrong order of roles: {shown}")
    if answer[0].role != "assistant" or answer[-1].role != "assistant":
        raise BadRow("wrong order of roles", f"wrong order of roles: the answer is by {answer[0].role!r} to {answer[-1].role!r}")


def _check_numbers(group: Group) -> None:
    if group.scores is not None and len(group.scores) != len(group.answers):
        detail = f"scores and answers differ in length: {len(group.scores)} scores for {len(group.answers)} answers"
        raise BadRow("scores and answers differ in length", detail)
    for name, value in (*(("score", score) for score in group.scores or ()), ("margin", group.margin)):
        if value is not None and not math.isfinite(value):
            raise BadRow("non-finite score", f"non-finite score: {name} {value}")


def _check_preference(group: Group) -> None:
    if group.scores is None:
        raise BadRow("missing scores")
    texts = group.answer_texts
    score_of: dict[str, float] = {}
    for text, score in zip(texts, group.scores, strict=True):
        if score_of.setdefault(text, score) != score:
            raise BadRow("identical answers", "identical answers with different scores")
    if len(texts) == 2 and texts[0] == texts[1]:
        raise BadRow("identical answers")
    if len(texts) > 1 and len(set(group.scores)) == 1:
        raise BadRow("tie", f"tie: every score is {group.scores[0]}")
