"""Texts that a chat template has already written, as token ids: how trainers that hold a policy's own text send it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.group import Group, Message, as_chat
from rewardproof.errors import DataError

_ANSWER = "answer"
_PROBE = (Message("user", "question"), Message("assistant", _ANSWER))
_TURNS = (Message("user", "<first>"), Message("assistant", "<second>"), Message("user", "<third>"), Message("assistant", "<fourth>"))
_SYSTEM = Message("system", "<before>")


class Marks(NamedTuple):
    """What a template writes about the turns of a conversation."""

    begin: str
    """Before the first turn that is told."""
    to_answer: str
    """Between a user's turn and the assistant's."""
    to_question: str
    """Between an assistant's turn and the user's."""
    after_system: str = ""
    """Between a system prompt and the user's turn, where one is told."""


class WrittenTexts:
    """Reads written texts so that they become the tokens that the same conversation has as messages.

    Trainers differ in the ends: some strip the BOS that the template writes, and most send a text that ends where the policy stopped,
    before what the template writes after an answer, where a reward is read. Both are put back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read with a reward model's tokenizer."""
        self.tokenizer = tokenizer

    @cached_property
    def closing(self) -> str:
        """What the template writes after an answer."""
        return self._written.rpartition(_ANSWER)[2]

    @cached_property
    def _written(self) -> str:
        return str(self.tokenizer.apply_chat_template(as_chat(_PROBE), tokenize=False))

    @cached_property
    def _opening(self) -> tuple[int, ...]:
        """The BOS, where the template writes one."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(self._written, add_special_tokens=False)["input_ids"]
        return (int(bos),) if isinstance(bos, int) and list(ids[:1]) == [bos] else ()

    @cached_property
    def _ends(self) -> list[int]:
        """Sizes of what a text may have of the closing, the longest first; special tokens whole: their characters may be an answer's."""
        names = sorted(map(str, self.tokenizer.all_special_tokens), key=len, reverse=True)
        special = list(re.finditer("|".join(map(re.escape, names)), self.closing)) if names else []
        inside = [place for found in special for place in found.span() if place > special[0].start()]
        return sorted({len(self.closing), len(self.closing.rstrip()), *inside, 0}, reverse=True)

    def closed(self, text: str) -> str:
        r"""The text with as much of the closing as it lacks; padding around it is taken off.

        Example:
            >>> texts = WrittenTexts(tokenizer)                    # doctest: +SKIP
            >>> texts.closing, texts.closed("Hi"), texts.closed("Hi<|im_end|>")       # doctest: +SKIP
            ('<|im_end|>\n', 'Hi<|im_end|>\n', 'Hi<|im_end|>\n')
        """
        pad = str(self.tokenizer.pad_token)
        while text.startswith(pad):
            text = text.removeprefix(pad)
        while text.endswith(pad):
            text = text.removesuffix(pad)
        there = next(size for size in self._ends if text.endswith(self.closing[:size]))
        return text + self.closing[there:]

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids, with the BOS that the template would have written."""
        ids = tuple(int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self._opening
        return ids if ids[:1] == bos or not bos else bos + ids

    def groups(self, texts: Sequence[str], prompts: Sequence[str] | None, *, close: bool) -> list[EncodedGroup]:
        """One group a text.

        Args:
            texts: Prompts and answers, as the template has written them.
            prompts: As many, each the beginning of its text, or nothing where they are unknown.
            close: Put back what the template writes after an answer.

        Raises:
            DataError: A text is empty or cannot be encoded.
        """
        found: list[EncodedGroup] = []
        for place, text in enumerate(texts):
            _check(text, place)
            ids = self.tokens(self.closed(text) if close else text)
            prompt = prompts[place] if prompts is not None and text.startswith(prompts[place]) else ""
            found.append(self._group(ids, self.tokens(prompt) if prompt else (), place))
        return found

    def conversation(self, text: str, place: int) -> Group:
        """The turns that a text was written of, for models that have to know who said what.

        Args:
            text: As the template has written it; what it lacks at its end is put back.
            place: Among the request's texts.

        Raises:
            DataError: A text that the template does not write of any turns.
        """
        _check(text, place)
        text = self.closed(text)
        bos = str(self.tokenizer.bos_token or "")
        whole = bos + text if self._opening and not text.startswith(bos) else text
        for marks in self._marks:
            turns = _parted(whole.removesuffix(self.closing), marks)
            if turns and self._render(turns).split() == whole.split():  # some templates strip what an answer ends with
                return Group(tuple(turns[:-1]), ((turns[-1],),), id=f"text {place}")
        raise DataError(
            f"Text {place}: got a text that the reward model's own chat template does not write, expected one that it does: this model "
            "has to know who said what. Write it with that template, or send messages to /score."
        )

    @cached_property
    def _marks(self) -> list[Marks]:
        """What is written about turns, without a system prompt and with one, where the template has such."""
        found: list[Marks] = []
        for turns in (_TURNS, (_SYSTEM, *_TURNS)):
            parts = re.split("|".join(turn.content for turn in turns), self._render(turns))
            if len(parts) == len(turns) + 1 and parts[-2] == parts[-4]:
                begin, *after_system, to_answer, to_question, _, _ = parts
                found.append(Marks(begin, to_answer, to_question, *after_system))
        return found

    def _render(self, turns: Sequence[Message]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(as_chat(turns), tokenize=False))
        except TemplateError:
            return ""

    def of_ids(self, rows: Sequence[Sequence[int]]) -> list[EncodedGroup]:
        """One group a row of token ids, which are taken as they are.

        Raises:
            DataError: A row is empty, or an id is none of the vocabulary's.
        """
        size = len(self.tokenizer)
        for place, row in enumerate(rows):
            if not row or min(row) < 0 or max(row) >= size:
                raise DataError(
                    f"Text {place}: got {len(row)} token ids, expected at least one, each from 0 to {size - 1}: the model has no other "
                    "embedding. Tokenise with the reward model's tokenizer, or send text."
                )
        return [self._group(tuple(row), (), place) for place, row in enumerate(rows)]

    @staticmethod
    def _group(ids: tuple[int, ...], prompt: tuple[int, ...], place: int) -> EncodedGroup:
        known = next((at for at, (one, other) in enumerate(zip(ids, prompt, strict=False)) if one != other), min(len(ids), len(prompt)))
        return EncodedGroup((ids,), 0, (min(known, len(ids) - 1),), place)


def _parted(text: str, marks: Marks) -> list[Message]:
    """Turns of a text whose closing is taken off; none where it does not begin as it should."""
    if not text.startswith(marks.begin):
        return []
    turns, rest = [], text.removeprefix(marks.begin)
    if marks.after_system:
        system, _, rest = rest.partition(marks.after_system)
        turns.append(Message("system", system))
    while rest:
        question, _, rest = rest.partition(marks.to_answer)
        answer, _, rest = rest.partition(marks.to_question)
        turns += [Message("user", question), Message("assistant", answer)]
    return turns


def _check(text: str, place: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Text {place}: got invalid text ({error.reason} at character {error.start}), expected text that UTF-8 can hold: a lone "
            "surrogate cannot be tokenised. Correct it."
        ) from None
    if not text.strip():
        raise DataError(f"Text {place}: got an empty text, expected a prompt and an answer: there is nothing to score. Leave it out.")
