"""Packing: every token once, a plan that partitions the stream, and splits that lose no conversation."""

from __future__ import annotations

import itertools

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewardproof.data.encoding import EncodedGroup, shared_prefix
from rewardproof.data.packing import PackedBatch, Segment, fill, pack, split_at_position, split_large
from rewardproof.data.pairs import Pair


@st.composite
def encoded_groups(draw: st.DrawFn) -> EncodedGroup:
    """A group over an alphabet of three tokens, so that long prefixes and identical answers are common; it may share less than it could."""
    tokens = st.integers(1, 3)
    prompt = draw(st.lists(tokens, max_size=5))
    answers = draw(st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=5))
    conversations = tuple(tuple(prompt + answer) for answer in answers)
    shared = draw(st.integers(0, shared_prefix(conversations)))
    starts = tuple(draw(st.integers(0, len(conversation) - 1)) for conversation in conversations)
    return EncodedGroup(conversations, shared, starts, draw(st.integers(0, 99)))


several = st.lists(encoded_groups(), min_size=1, max_size=5)
quick = settings(deadline=None, max_examples=80)


def seen_by(batch: PackedBatch, place: int) -> list[int]:
    """Stream positions that a position attends to, by the definition of a segment."""
    segment = next(segment for segment in batch.segments if segment.start <= place < segment.end)
    return [*range(segment.prefix_start, segment.prefix_end), *range(segment.start, place + 1)]


@quick
@given(groups=several)
def test_every_conversation_is_in_the_stream_once(groups: list[EncodedGroup]) -> None:
    batch = pack(groups)
    conversations = [conversation for group in groups for conversation in group.conversations]
    assert batch.n_tokens == sum(group.n_tokens for group in groups) == len(batch.position_ids_T)
    assert batch.n_groups == len(groups)
    assert batch.conversations_per_group == tuple(len(group.conversations) for group in groups)
    assert batch.group_index == tuple(group.index for group in groups)
    used: list[int] = []
    for end, conversation in zip(batch.end_index_C.tolist(), conversations, strict=True):
        places = seen_by(batch, end)
        assert tuple(batch.token_ids_T[places].tolist()) == conversation, "what the last token sees is its conversation, in order"
        assert batch.position_ids_T[places].tolist() == list(range(len(conversation)))
        used += places
    assert set(used) == set(range(batch.n_tokens)), "no token is left over"


@quick
@given(groups=several)
def test_a_shared_token_is_held_once(groups: list[EncodedGroup]) -> None:
    batch = pack(groups)
    saved = sum((len(group.conversations) - 1) * group.shared for group in groups)
    assert batch.n_tokens == sum(len(conversation) for group in groups for conversation in group.conversations) - saved


@quick
@given(groups=several)
def test_segments_partition_the_stream(groups: list[EncodedGroup]) -> None:
    batch = pack(groups)
    assert batch.segments[0].start == 0
    assert batch.segments[-1].end == batch.n_tokens
    for before, after in zip(batch.segments, batch.segments[1:], strict=False):
        assert before.end == after.start
    whole = {(segment.start, segment.end) for segment in batch.segments}
    for segment in batch.segments:
        assert segment.start < segment.end
        assert segment.prefix_end <= segment.start
        assert segment.prefix_start == segment.prefix_end or (segment.prefix_start, segment.prefix_end) in whole


@quick
@given(groups=several)
def test_answer_tokens_are_predicted_from_the_token_before_them(groups: list[EncodedGroup]) -> None:
    batch = pack(groups)
    ends = batch.end_index_C.tolist()
    scored = zip(batch.logit_index_L.tolist(), batch.target_L.tolist(), batch.target_conversation_L.tolist(), strict=True)
    found: dict[int, list[tuple[int, int]]] = {}
    for place, target, owner in scored:
        conversation = seen_by(batch, ends[owner])
        found.setdefault(owner, []).append((conversation.index(place), target))
    for owner, (tokens, start) in enumerate(
        pair for group in groups for pair in zip(group.conversations, group.answer_starts, strict=True)
    ):
        assert found.get(owner, []) == [(place - 1, tokens[place]) for place in range(max(start, 1), len(tokens))]


def test_a_small_stream_by_hand() -> None:
    pair = Pair(0, 1, None)
    batch = pack([EncodedGroup(((7, 8, 9), (7, 8, 5, 6)), 2, (2, 2), 3), EncodedGroup(((4,),), 0, (0,), 1)], [(pair,), ()])
    assert batch.token_ids_T.tolist() == [7, 8, 9, 5, 6, 4]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 2, 3, 0]
    assert batch.segments == (Segment(0, 2, 0, 0), Segment(2, 3, 0, 2), Segment(3, 5, 0, 2), Segment(5, 6, 5, 5))
    assert batch.end_index_C.tolist() == [2, 4, 5]
    assert batch.logit_index_L.tolist() == [1, 1, 3]
    assert batch.target_L.tolist() == [9, 5, 6]
    assert batch.target_conversation_L.tolist() == [0, 1, 1]
    assert batch.group_T.tolist() == [0, 0, 0, 0, 0, 1]
    assert batch.prompt_T.tolist() == [True, True, False, False, False, False]
    assert batch.group_index == (3, 1)
    assert batch.pairs == ((pair,), ())


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = pack([EncodedGroup(((7, 8, 9),), 0, (1,), 0)]).to("meta")
    tensors = [getattr(moved, name) for name in moved.__slots__ if isinstance(getattr(moved, name), torch.Tensor)]
    assert len(tensors) == 8
    assert all(tensor.device.type == "meta" for tensor in tensors)


@quick
@given(groups=st.lists(encoded_groups(), max_size=8), budget=st.integers(1, 60))
def test_filling_keeps_order_and_budget(groups: list[EncodedGroup], budget: int) -> None:
    runs = list(fill(groups, tokens_per_batch=budget))
    assert [group for run in runs for group in run] == groups
    for run in runs:
        assert run
        assert len(run) == 1 or sum(group.n_tokens for group in run) <= budget
    for run, following in itertools.pairwise(runs):
        assert sum(group.n_tokens for group in run) + following[0].n_tokens > budget, "a run ends only where the next group does not fit"


@quick
@given(group=encoded_groups(), budget=st.integers(1, 40))
@example(group=EncodedGroup(tuple((1, 1, 1, 1, 1, last) for last in range(5)), 5, (5,) * 5, 0), budget=7)
def test_splitting_a_large_group_keeps_its_conversations(group: EncodedGroup, budget: int) -> None:
    parts = split_large(group, tokens_per_batch=budget)
    assert [conversation for part in parts for conversation in part.conversations] == list(group.conversations)
    assert [start for part in parts for start in part.answer_starts] == list(group.answer_starts)
    for part in parts:
        assert part.index == group.index
        assert len(part.conversations) == 1 or part.n_tokens <= budget
        assert all(
            tokens[: part.shared] == part.conversations[0][: part.shared] and part.shared < len(tokens) for tokens in part.conversations
        )
    if group.n_tokens <= budget:
        assert parts == [group]


@quick
@given(group=encoded_groups(), boundary=st.integers(0, 12))
def test_splitting_at_a_length_keeps_its_conversations(group: EncodedGroup, boundary: int) -> None:
    parts = split_at_position(group, boundary)
    assert sorted(conversation for part in parts for conversation in part.conversations) == sorted(group.conversations)
    assert 1 <= len(parts) <= 2
    sides = [{len(conversation) <= boundary for conversation in part.conversations} for part in parts]
    assert all(len(side) == 1 for side in sides)
    assert len({side.pop() for side in sides}) == len(parts)
    assert all(part.index == group.index for part in parts)
