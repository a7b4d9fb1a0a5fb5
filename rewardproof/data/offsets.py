"""Tokens against text: how much of an answer has been read, or written, once each token is there.

Two models need not have a tokenizer in common; what they have in common is the answer's text. Places in it are counted in characters, the
finest that tokenizers tell: one that several tokens spell is there when the last of them is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewardproof.data.encoding import render
from rewardproof.data.group import Group, Message
from rewardproof.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Places = NDArray[np.intp]
"""For each of some tokens, a number of characters."""
_BLANK = "\ue000"
"""Stands in for an answer's contents, to see what a template writes around them; of the characters that texts do not use."""
_UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which bytes are missing."""


class Read(NamedTuple):
    """How much of an answer's text has been read when each of a conversation's N tokens begins, and when it ends, in characters.

    All tokens of a character that several spell begin before it and end after it.
    """

    before_N: Places
    after_N: Places


def characters_read(group: Group, answer: Sequence[Message], token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Read | None:
    """Characters of an answer's text (its turns joined by a newline) among a conversation's first tokens, for each of them.

    Args:
        group: Whose answer it is.
        answer: The answer.
        token_ids: The conversation, as `encode_group` makes it.
        tokenizer: Whose tokens they are.

    Returns:
        Never falling, from 0 within the prompt to the text's length after the answer, and equal at a token that has no character of it;
        `None` where the template does not write the answer as it is, so that its characters cannot be followed.

    Raises:
        ModelError: The tokenizer cannot say which characters its tokens stand for.
    """
    text = render(group, answer, tokenizer)
    read = _answer_in(text, group, answer, tokenizer)
    if read is None:
        return None
    starts, ends = _spans(text, token_ids, tokenizer, raw=group.raw)
    return Read(read[starts], read[ends])


def _answer_in(text: str, group: Group, answer: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Places | None:
    """How much of the answer the first n characters of the rendered conversation hold, for every n from 0."""
    around = render(group, [message._replace(content=_BLANK) for message in answer], tokenizer).split(_BLANK)
    if len(around) != len(answer) + 1 or not text.startswith(around[0]):
        return None
    read = [np.zeros(len(around[0]) + 1, dtype=np.intp)]
    place, before = len(around[0]), 0
    for message, following in zip(answer, around[1:], strict=True):
        content = message.content
        written = next((one for one in _trimmed(content) if text.startswith(one + following, place)), None)
        if written is None:
            return None
        own = before + content.index(written) + np.arange(1, len(written) + 1)
        own[-1:] = before + len(content)  # what the template trims at the end is read with the last character that it writes
        read += [own, np.full(len(following), before + len(content), dtype=np.intp)]
        place, before = place + len(written) + len(following), before + len(content) + 1
    return np.concatenate(read) if place == len(text) else None


def _trimmed(content: str) -> tuple[str, ...]:
    """A content as templates write it."""
    return (content, content.strip(), content.rstrip(), content.lstrip())


def _spans(text: str, token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, raw: bool) -> tuple[Places, Places]:
    """Characters of the rendered text up to each token's start and up to its end."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"Got a {type(tokenizer).__name__}, expected a fast tokenizer: scores of single tokens must know which characters each stands "
            "for, which slow ones do not tell. Save the model with its fast tokenizer (tokenizer.json)."
        )
    pairs = tokenizer(text, add_special_tokens=raw, return_offsets_mapping=True)["offset_mapping"]
    spans = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    ends = np.maximum.accumulate(spans[:, 1])
    starts = np.where(spans[:, 0] < spans[:, 1], spans[:, 0], ends)  # special tokens that are added have no span
    # As `encode_text` makes conversations: a second BOS is left out, an end that is missing is added.
    first = max(len(ends) - len(token_ids), 0)
    added = np.full(len(token_ids) - len(ends[first:]), len(text), dtype=np.intp)
    return np.append(starts[first:], added), np.append(ends[first:], added)


def characters_written(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[Places, str]:
    """Characters of a text that a model has written with its first tokens, for each of them; and the text, stripped.

    Args:
        token_ids: The answer's tokens, without the one that ends it.
        tokenizer: Whose tokens they are.

    Returns:
        One number a token, never falling, the text's length at the last; whitespace around the text does not count.
    """
    ends: list[int] = []
    known = first = done = 0
    for place in range(1, len(token_ids) + 1):
        # Tokens before tell how the new ones read: some tokenizers drop the space that a text begins with.
        before, now = (_decoded(token_ids[first:last], tokenizer) for last in (done, place))
        if len(now) > len(before) and not now.endswith(_UNFINISHED):
            known, first, done = known + len(now) - len(before), done, place
        ends.append(known)
    whole = _decoded(token_ids, tokenizer)
    text = whole.strip()
    ends[-1:] = [len(whole)] * bool(ends)
    leading = len(whole) - len(whole.lstrip()) if text else 0
    return np.clip(np.array(ends, dtype=np.intp) - leading, 0, len(text)), text


def _decoded(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def words_of(text: str, ends: Places) -> Places:
    """The word that each token's last character belongs to, counted from 0; whitespace belongs to the word before it.

    Example:
        >>> words_of("two words", np.array([1, 3, 4, 6, 9]))
        array([0, 0, 0, 1, 1])
    """
    blank = np.array([True, *(character.isspace() for character in text)])
    begun = np.cumsum(blank[:-1] & ~blank[1:])
    return np.append(0, np.maximum(begun - 1, 0))[ends]
