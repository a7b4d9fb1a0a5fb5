"""`PackedBatch`: groups laid out as one stream of tokens, the shared prefix of a group once, no padding.

A group with shared prefix P and rests R1 … Rn becomes `P R1 … Rn`; positions restart at `len(P)` for every rest, and each rest attends
to P and causally to itself. Padding does not exist, so rewards are read by position, never by token id.
"""

# T tokens of the stream, C conversations, L scored tokens.
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair


class Segment(NamedTuple):
    """Queries `[start, end)` of the stream see keys `[prefix_start, prefix_end)` whole and themselves causally."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One stream of tokens and who attends to whom in it.

    Attributes:
        token_ids_T: Token ids, shape `(T,)`.
        position_ids_T: Positions within each conversation, shape `(T,)`.
        segments: The attention plan, covering the stream in order.
        end_index_C: Stream position of each conversation's last token, shape `(C,)`.
        conversations_per_group: How many consecutive conversations belong to each group.
        group_index: The groups' positions in the caller's order.
        pairs: For each group its ordered pairs, winner and loser counted within the group; empty when only scoring.
        logit_index_L: Stream position whose logits predict each answer token, shape `(L,)`.
        target_L: That answer token's id, shape `(L,)`.
        target_conversation_L: The conversation it belongs to, shape `(L,)`.
        group_T: The group that each token belongs to, counted within the stream, shape `(T,)`.
        prompt_T: Whether the token is one of its group's prompt, read once a group, shape `(T,)`; nowhere true where it has none.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    segments: tuple[Segment, ...]
    end_index_C: Tensor
    conversations_per_group: tuple[int, ...]
    group_index: tuple[int, ...]
    pairs: tuple[tuple[Pair, ...], ...] = ()
    logit_index_L: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    target_L: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    target_conversation_L: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    group_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    prompt_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream."""
        return int(self.token_ids_T.numel())

    @property
    def n_groups(self) -> int:
        """Groups of the stream."""
        return len(self.conversations_per_group)

    def to(self, device: torch.device | str, **_: object) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            token_ids_T=self.token_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            end_index_C=self.end_index_C.to(device),
            logit_index_L=self.logit_index_L.to(device),
            target_L=self.target_L.to(device),
            target_conversation_L=self.target_conversation_L.to(device),
            group_T=self.group_T.to(device),
            prompt_T=self.prompt_T.to(device),
        )


def pack(groups: Sequence[EncodedGroup], pairs: Sequence[tuple[Pair, ...]] = ()) -> PackedBatch:
    """Lay groups out as one stream.

    Args:
        groups: At least one encoded group.
        pairs: For each group its ordered pairs, or nothing when only scoring.
    """
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    ends: list[int] = []
    logit_index: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    prompts: list[bool] = []
    for group in groups:
        origin, shared = len(tokens), group.shared
        if shared:
            tokens.extend(group.conversations[0][:shared])
            positions.extend(range(shared))
            segments.append(Segment(origin, origin + shared, origin, origin))
        for conversation, answer_start in zip(group.conversations, group.answer_starts, strict=True):
            start = len(tokens)
            tokens.extend(conversation[shared:])
            positions.extend(range(shared, len(conversation)))
            segments.append(Segment(start, len(tokens), origin, origin + shared))
            for place in range(max(answer_start, 1), len(conversation)):
                previous = place - 1
                logit_index.append(origin + previous if previous < shared else start + previous - shared)
                targets.append(conversation[place])
                owners.append(len(ends))
            ends.append(len(tokens) - 1)
        # The prompt is read in the first conversation, whose beginning is the shared part; one that starts later has it there again.
        of_prompt = min(group.answer_starts[0], len(group.conversations[0]))
        prompts.extend([True] * of_prompt + [False] * (len(tokens) - origin - of_prompt))
    return PackedBatch(
        token_ids_T=torch.tensor(tokens, dtype=torch.long),
        position_ids_T=torch.tensor(positions, dtype=torch.long),
        segments=tuple(segments),
        end_index_C=torch.tensor(ends, dtype=torch.long),
        conversations_per_group=tuple(len(group.conversations) for group in groups),
        group_index=tuple(group.index for group in groups),
        pairs=tuple(pairs),
        logit_index_L=torch.tensor(logit_index, dtype=torch.long),
        target_L=torch.tensor(targets, dtype=torch.long),
        target_conversation_L=torch.tensor(owners, dtype=torch.long),
        group_T=torch.repeat_interleave(torch.tensor([group.n_tokens for group in groups])),
        prompt_T=torch.tensor(prompts, dtype=torch.bool),
    )


def fill(groups: Iterable[EncodedGroup], *, tokens_per_batch: int) -> Iterator[list[EncodedGroup]]:
    """Cut a sequence of groups into runs of at most `tokens_per_batch` tokens, order kept; a larger group goes alone."""
    waiting: list[EncodedGroup] = []
    size = 0
    for group in groups:
        if waiting and size + group.n_tokens > tokens_per_batch:
            yield waiting
            waiting, size = [], 0
        waiting.append(group)
        size += group.n_tokens
    if waiting:
        yield waiting


def split_large(group: EncodedGroup, *, tokens_per_batch: int) -> list[EncodedGroup]:
    """Cut a group into parts that fit the token budget; only scoring may do this, since pairs need the whole group."""
    if group.n_tokens <= tokens_per_batch or len(group.conversations) == 1:
        return [group]
    parts: list[list[int]] = [[]]
    size = group.shared
    for place, conversation in enumerate(group.conversations):
        rest = len(conversation) - group.shared
        if parts[-1] and size + rest > tokens_per_batch:
            parts.append([])
            size = group.shared
        parts[-1].append(place)
        size += rest
    return [group.select(part) for part in parts]


def split_at_position(group: EncodedGroup, boundary: int) -> list[EncodedGroup]:
    """Part a group into conversations of at most `boundary` tokens and longer ones, where rotary factors change at that length."""
    short = [place for place, tokens in enumerate(group.conversations) if len(tokens) <= boundary]
    long = [place for place, tokens in enumerate(group.conversations) if len(tokens) > boundary]
    return [group.select(part) for part in (short, long) if part]
