"""Encoded groups of many rows or requests as the groups that cost least: each conversation once, prompts that they share once."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rewardproof.data.encoding import EncodedGroup, shared_prefix

T = TypeVar("T")
Tokens = tuple[int, ...]
Key = tuple[Tokens, Tokens, Tokens]
"""What a reward may depend on beside the conversation's tokens: the user's words, by which some models choose who judges, the prompt, by
which some mixtures route, and where answers begin, in a group whose first prompt was cut away and others not."""


def key_of(group: EncodedGroup) -> Key:
    """Queries and prompt of a group, the prompt as packing reads it: in the first conversation."""
    first, starts = group.answer_starts[0], tuple(group.answer_starts)
    return group.queries, group.conversations[0][:first], starts if not first and any(starts) else ()


def shared_groups(groups: Sequence[EncodedGroup]) -> list[EncodedGroup]:
    """Groups of the same conversations: one for each prompt, and where no prompt is known, those whose texts share most.

    Args:
        groups: Groups of any requests to one model.

    Returns:
        Groups in which every conversation of a prompt occurs once.
    """
    return [group for _, group in _with_keys(groups)]


def _with_keys(groups: Sequence[EncodedGroup]) -> list[tuple[Key, EncodedGroup]]:
    found: dict[Key, dict[Tokens, int]] = {}
    for group in groups:
        known = found.setdefault(key_of(group), {})
        for tokens, start in zip(group.conversations, group.answer_starts, strict=True):
            known.setdefault(tokens, start)
    made: list[tuple[Key, EncodedGroup]] = []
    for key, starts in found.items():
        queries, prompt, _ = key
        for run in [list(starts)] if prompt else runs_that_share(list(starts)):
            places = tuple(starts[tokens] for tokens in run)
            made.append((key, EncodedGroup(tuple(run), shared_prefix(run), places, len(made), queries)))
    return made


def computed_once(groups: Sequence[EncodedGroup], score: Callable[[Sequence[EncodedGroup]], Sequence[Sequence[T]]]) -> list[tuple[T, ...]]:
    """What `score` gives for every conversation, which is asked for each conversation of a prompt once.

    Args:
        groups: Groups of any rows or requests to one model.
        score: A value for each conversation of each group, which must not depend on what else is in its group.

    Returns:
        For each of the groups the values of its conversations, in order.
    """
    joined = _with_keys(groups)
    known = {
        (key, tokens): value
        for (key, group), row in zip(joined, score([group for _, group in joined]), strict=True)
        for tokens, value in zip(group.conversations, row, strict=True)
    }
    return [tuple(known[key_of(group), tokens] for tokens in group.conversations) for group in groups]


def runs_that_share(conversations: Sequence[Tokens]) -> list[list[Tokens]]:
    """Cut conversations, sorted by their tokens, into groups so that the tokens computed are fewest.

    Those that share a beginning lie side by side, and a group of them spares its common beginning once for each but one:
    :math:`(n - 1) p`. The best cut of the first j is the best of the first i and one group of the rest.

    Example:
        >>> runs_that_share([(1, 2, 9), (5, 6, 7, 8), (1, 2, 3), (5, 6, 7, 4)])
        [[(1, 2, 3), (1, 2, 9)], [(5, 6, 7, 4), (5, 6, 7, 8)]]
    """
    ordered = sorted(conversations)
    common = [_common(*pair) for pair in itertools.pairwise(ordered)]
    best, first = [0], [0]
    for end in range(1, len(ordered) + 1):
        shared, spared, begin = len(ordered[end - 1]) - 1, best[end - 1], end - 1
        for start in range(end - 2, -1, -1):
            shared = min(shared, common[start], len(ordered[start]) - 1)
            if not shared:
                break
            if (candidate := best[start] + (end - 1 - start) * shared) > spared:
                spared, begin = candidate, start
        best.append(spared)
        first.append(begin)
    runs: list[list[Tokens]] = []
    end = len(ordered)
    while end:
        runs.append(list(ordered[first[end] : end]))
        end = first[end]
    return runs[::-1]


class DistinctTokens:
    """Counts tokens that have to be computed where conversations with a common beginning share it."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0
        self._sorted: list[Tokens] = []

    def add(self, conversations: Iterable[Tokens]) -> None:
        """Add conversations: each costs what it does not share with the one that shares most, which is beside it in their order.

        Example:
            >>> tokens = DistinctTokens()
            >>> tokens.add([(1, 2, 3), (1, 2, 4), (1, 2, 3)])
            >>> tokens.count
            4
        """
        for tokens in conversations:
            place = bisect.bisect_left(self._sorted, tokens)
            self.count += len(tokens) - max((_common(tokens, other) for other in self._sorted[max(place - 1, 0) : place + 1]), default=0)
            self._sorted.insert(place, tokens)


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the common beginning, by bisection: comparing slices is far faster than comparing tokens."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
