"""Groups to tokens: the chat template applied once, BOS and EOS as the model expects them, over-long groups handled by an explicit rule.

Conversations are tokenised whole, because a prompt and an answer tokenised apart can differ from their concatenation; what the
conversations of a group share is found on the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from rewardproof.data.group import Group, Message, as_chat
from rewardproof.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["fail", "drop", "truncate_prompt"]
OverlongOrCut = Literal[Overlong, "cut_left", "cut_right"]
"""What may happen where nothing is learnt: tokens can be cut from a conversation's beginning or end, whatever they are."""
Reads = Literal["conversation", "last_query", "reference"]
"""What a reward model reads: the whole conversation, the user's last turn and the answer, or all of it with a reference in between."""
REFERENCE = "\n\n[Reference answer]\n"
"""What stands between the last turn of a prompt and the reference that is read with it, as one text."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ 'Human: ' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""Given to base models that have no chat template; it is saved with the reward model."""


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """A group's conversations as token ids.

    Attributes:
        conversations: n lists of token ids, prompt and answer together.
        shared: Length of the token prefix that all of them share; always shorter than each of them, 0 for a single conversation.
        answer_starts: For each conversation the index of its answer's first token.
        index: Position of the group in the caller's order.
        queries: Token ids of what the user said alone, for models that choose by it who judges; empty where none asked.
        labels: 1 for each right conversation and 0 for each wrong one, for models that learn verdicts; empty where none do.
    """

    conversations: tuple[tuple[int, ...], ...]
    shared: int
    answer_starts: tuple[int, ...]
    index: int
    queries: tuple[int, ...] = ()
    labels: tuple[float, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed form: the shared part once, then every rest."""
        return self.shared + sum(len(tokens) - self.shared for tokens in self.conversations)

    def select(self, indices: Sequence[int]) -> EncodedGroup:
        """The same group with some of its conversations; the shared part is found anew."""
        conversations = tuple(self.conversations[index] for index in indices)
        starts = tuple(self.answer_starts[index] for index in indices)
        labels = tuple(self.labels[index] for index in indices) if self.labels else ()
        return replace(self, conversations=conversations, shared=shared_prefix(conversations), answer_starts=starts, labels=labels)


def shared_prefix(conversations: Sequence[Sequence[int]]) -> int:
    """Length of the longest common token prefix that leaves every conversation at least one token of its own.

    Example:
        >>> shared_prefix([(1, 2, 3), (1, 2, 4, 5)]), shared_prefix([(1, 2), (1, 2)]), shared_prefix([(1, 2)])
        (2, 1, 0)
    """
    if len(conversations) < 2:
        return 0
    limit = min(len(tokens) for tokens in conversations) - 1
    first = conversations[0]
    for position in range(limit):
        if any(tokens[position] != first[position] for tokens in conversations[1:]):
            return position
    return max(limit, 0)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give a tokenizer what a reward model's contract asks for: a pad token that is not eos, and a chat template.

    Returns:
        One sentence for each thing that was changed, for the log.
    """
    changes: list[str] = []
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = [
            token
            for token in tokenizer.all_special_tokens
            if token not in (tokenizer.eos_token, tokenizer.bos_token) and "pad" in token.lower()
        ]
        named = [
            token for token in ("<pad>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>") if token in tokenizer.get_vocab()
        ]
        candidates = [token for token in [*spare, *named, tokenizer.unk_token] if token and token != tokenizer.eos_token]
        if candidates:
            tokenizer.pad_token = candidates[0]
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        changes.append(f"pad token set to {tokenizer.pad_token!r}: the tokenizer had none apart from eos")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
        changes.append("no chat template came with the tokenizer; a plain Human/Assistant template was set and is saved with the model")
    return changes


def render(group: Group, answer: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of one conversation of the group, exactly as it is tokenised."""
    messages = [*group.prompt, *answer]
    if group.raw:
        return "".join(message.content for message in messages)
    return str(tokenizer.apply_chat_template(as_chat(messages), tokenize=False))


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase, *, raw: bool) -> tuple[int, ...]:
    """Token ids of a rendered conversation. A template writes its own BOS and EOS; raw text gets the tokenizer's BOS and an EOS."""
    ids = [int(token) for token in tokenizer(text, add_special_tokens=raw)["input_ids"]]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if raw and eos is not None and (not ids or ids[-1] != eos):
        ids.append(int(eos))  # pyright: ignore[reportArgumentType]
    if not raw and bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return tuple(ids)


def encode_group(group: Group, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> EncodedGroup:
    """Tokenise every conversation of a group and find what they share."""
    conversations = tuple(encode_text(render(group, answer, tokenizer), tokenizer, raw=group.raw) for answer in group.answers)
    opening = encode_prompt(group, tokenizer)
    starts = tuple(min(_common(opening, tokens), len(tokens) - 1) for tokens in conversations)
    return EncodedGroup(conversations, shared_prefix(conversations), starts, index)


def encode_prompt(group: Group, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids of a group's prompt up to where an answer begins; empty where it has none."""
    if not group.prompt:
        return ()
    if group.raw:
        text = "".join(message.content for message in group.prompt)
        return tuple(int(token) for token in tokenizer(text, add_special_tokens=True)["input_ids"])
    text = str(tokenizer.apply_chat_template(as_chat(group.prompt), tokenize=False, add_generation_prompt=True))
    return encode_text(text, tokenizer, raw=False)


def encode_queries(group: Group, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids of the user's turns, joined by an empty line, and of nothing else; of the whole prompt where no turn is the user's.

    No template is applied: many refuse two turns of one speaker in a row.
    """
    text = "\n\n".join(message.content for message in group.prompt if message.role == "user").strip() or group.prompt_text.strip()
    return encode_text(text, tokenizer, raw=True) if text else ()


def with_queries(groups: Sequence[Group], encoded: Sequence[EncodedGroup], tokenizer: PreTrainedTokenizerBase) -> list[EncodedGroup]:
    """Encoded groups with what their users said; `index` says which of the groups each is of."""
    return [replace(entry, queries=encode_queries(groups[entry.index], tokenizer)) for entry in encoded]


def as_read(group: Group, reads: Reads) -> Group:
    """What a reward model reads of a group; its last query is the whole where no turn is the user's.

    Raises:
        DataError: The reference is read, and there is none.
    """
    if reads == "reference":
        return _with_reference(group)
    last = [message for message in group.prompt if message.role == "user"][-1:]
    return replace(group, prompt=tuple(last)) if reads == "last_query" and last else group


def _with_reference(group: Group) -> Group:
    if not group.reference or not group.prompt:
        raise DataError(
            f"{group.origin or group.id or group.prompt_text[:60]!r}: got no {'reference' if group.prompt else 'prompt'}, expected one: "
            "this reward model reads prompt, reference and answer as one text. Give the rows a `reference` column, or the run a `rule`."
        )
    *before, last = group.prompt
    end = "\n\n" if group.raw else ""
    return replace(group, prompt=(*before, last._replace(content=f"{last.content}{REFERENCE}{group.reference}{end}")))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return position
    return min(len(left), len(right))


class Encoder(Protocol):
    """Makes one group's conversations; `encode_group` is one."""

    def __call__(self, group: Group, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> EncodedGroup:
        """Encode a group, which is at place `index` among the caller's."""
        ...


def encode_groups(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: OverlongOrCut = "fail",
    encode: Encoder = encode_group,
) -> tuple[list[EncodedGroup], Counter[str]]:
    """Tokenise groups under a length limit.

    Args:
        groups: Groups in the caller's order.
        tokenizer: The reward model's tokenizer.
        max_length: Longest conversation allowed, in tokens.
        overlong: `fail` raises, `drop` leaves the group out, `truncate_prompt` shortens the prompt from its beginning
            (oldest turns first, then the head of the last user turn) until the longest answer fits. `cut_left` and `cut_right` cut each
            conversation's tokens at its beginning or end, as benchmarks' own code does; what a template writes there goes with them.
        encode: What makes conversations of a group.

    Returns:
        The encoded groups, each with its `index` into `groups`, and how many were dropped or truncated.

    Raises:
        DataError: A group is too long under `fail`, or its answer alone is under `truncate_prompt`.
    """
    encoded: list[EncodedGroup] = []
    counts: Counter[str] = Counter()
    for index, group in enumerate(groups):
        candidate = encode(group, tokenizer, index=index)
        longest = max(len(tokens) for tokens in candidate.conversations)
        if longest > max_length:
            if overlong == "fail":
                raise DataError(
                    f"{group.origin or group.id}: got a conversation of {longest} tokens, expected at most max_length={max_length}; "
                    "raise max_length, or pass overlong=drop or overlong=truncate_prompt to handle and count such groups."
                )
            if overlong == "drop":
                counts["overlong_dropped"] += 1
                continue
            if overlong == "truncate_prompt":
                candidate = _truncate_prompt(group, tokenizer, encode, max_length=max_length, index=index)
                counts["overlong_prompt_truncated"] += 1
            else:
                candidate = _cut(candidate, max_length, left=overlong == "cut_left")
                counts["overlong_cut"] += 1
        encoded.append(candidate)
    return encoded, counts


def _cut(group: EncodedGroup, max_length: int, *, left: bool) -> EncodedGroup:
    """The group with each conversation's first or last `max_length` tokens."""
    excess = [max(len(tokens) - max_length, 0) if left else 0 for tokens in group.conversations]
    conversations = tuple(tokens[over : over + max_length] for tokens, over in zip(group.conversations, excess, strict=True))
    starts = tuple(
        min(max(start - over, 0), len(tokens) - 1) for start, over, tokens in zip(group.answer_starts, excess, conversations, strict=True)
    )
    return replace(group, conversations=conversations, shared=shared_prefix(conversations), answer_starts=starts)


def _truncate_prompt(group: Group, tokenizer: PreTrainedTokenizerBase, encode: Encoder, *, max_length: int, index: int) -> EncodedGroup:
    system = tuple(message for message in group.prompt if message.role == "system")
    turns = [message for message in group.prompt if message.role != "system"]
    while True:
        shorter = replace(group, prompt=(*system, *turns))
        candidate = encode(shorter, tokenizer, index=index)
        excess = max(len(tokens) for tokens in candidate.conversations) - max_length
        if excess <= 0:
            return candidate
        following = next((place for place in range(1, len(turns)) if turns[place].role == "user"), None)
        if following is not None:
            turns = turns[following:]
            continue
        text_ids = tokenizer(turns[0].content, add_special_tokens=False)["input_ids"] if turns else []
        # A cut inside a character decodes to U+FFFD, which is longer in tokens than what it replaces: without stripping it, no end.
        kept = str(tokenizer.decode(text_ids[excess:])).lstrip("\ufffd").lstrip()
        if not kept:
            raise DataError(
                f"{group.origin or group.id}: an answer leaves no room for its prompt within max_length={max_length} tokens; "
                "expected answers shorter than that. Raise max_length, or pass overlong=drop."
            )
        turns = [Message(turns[0].role, kept), *turns[1:]]
