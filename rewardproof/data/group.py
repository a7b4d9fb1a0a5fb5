"""`Group`: one prompt, its answers, and what is known about them.

One noun for training, scoring, log-probabilities and best-of-n: a preference pair is a group of two with an order, a best-of-n pool is a
group of n. It holds text; `encoding.py` turns it into tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant", "tool")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def as_chat(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as chat templates and JSON have them.

    Example:
        >>> as_chat([Message("user", "Hi")])
        [{'role': 'user', 'content': 'Hi'}]
    """
    return [message._asdict() for message in messages]


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt, n answers and named columns.

    Attributes:
        prompt: The conversation up to the answer, as chat messages. May be empty for raw text without a known prompt.
        answers: n answers, each the messages that follow the prompt (almost always one assistant message).
        scores: n numbers, higher is better, or `None` where nobody judged. A preference pair has `(1.0, 0.0)`.
        margin: Strength of a pair's preference in the data's own units, or `None`.
        raw: The contents are plain text to be joined as they are; no chat template applies.
        id: Identifier from the data, or the origin.
        subset: Regime, folder or benchmark section; accuracies are reported by it.
        category: Domain label, for methods that need one.
        reference: A reference answer, where the data has one.
        meta: Every other column that a later stage may ask for.
        origin: `file:line` of the row, for error messages.
    """

    prompt: tuple[Message, ...]
    answers: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    margin: float | None = None
    raw: bool = False
    id: str = ""
    subset: str = ""
    category: str = ""
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def prompt_text(self) -> str:
        """The prompt's text alone, the key of every split."""
        return "\n".join(message.content for message in self.prompt)

    @property
    def answer_texts(self) -> tuple[str, ...]:
        """Each answer's text, turns joined by a newline."""
        return tuple("\n".join(message.content for message in answer) for answer in self.answers)

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt's text; equal prompts have equal keys in every file and run."""
        return hashlib.sha256(self.prompt_text.strip().encode()).hexdigest()
