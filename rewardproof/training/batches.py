"""What a training step is fed: the groups of one optimiser step, cut into streams under a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, fill, pack
from rewardproof.data.pairs import Pair
from rewardproof.errors import ConfigError
from rewardproof.models.packed import position_boundary, position_table
from rewardproof.models.trunk import TrunkCache


class TrainingGroup(NamedTuple):
    """An encoded group, its ordered pairs, and the key by which its prompt falls on a side of a split."""

    group: EncodedGroup
    pairs: tuple[Pair, ...]
    key: str = ""


def keep_paired(group: EncodedGroup, pairs: Sequence[Pair], *, key: str = "") -> TrainingGroup:
    """Drop the answers that no pair names, so that no computation is spent on them."""
    used = sorted({index for pair in pairs for index in (pair.winner, pair.loser)})
    place = {index: number for number, index in enumerate(used)}
    renamed = tuple(pair._replace(winner=place[pair.winner], loser=place[pair.loser]) for pair in pairs)
    return TrainingGroup(group.select(used), renamed, key)


class TrainingSet(Dataset[TrainingGroup]):
    """Groups that have at least one ordered pair."""

    def __init__(self, groups: Sequence[TrainingGroup]) -> None:
        """Hold the groups in memory as token ids."""
        self.groups = list(groups)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def __getitem__(self, index: int) -> TrainingGroup:
        """One group."""
        return self.groups[index]


class Stream(NamedTuple):
    """One forward pass: a packed batch, its trunk activations `(T, D)` where they are stored, and the groups that it is of."""

    batch: PackedBatch
    trunk_TD: Tensor | None
    groups: tuple[EncodedGroup, ...] = ()

    def to(self, device: torch.device | str) -> Stream:
        """The same stream on `device`."""
        return self._replace(batch=self.batch.to(device), trunk_TD=None if self.trunk_TD is None else self.trunk_TD.to(device))


@dataclass(slots=True)
class StepBatch:
    """The streams of one process's share of an optimiser step.

    Attributes:
        streams: At least one.
        idle: There was no group left for this process: it runs a stream beside the others, and nothing of it counts.
    """

    streams: list[Stream]
    idle: bool = False

    @property
    def n_groups(self) -> int:
        """Groups that count."""
        return 0 if self.idle else sum(stream.batch.n_groups for stream in self.streams)

    @property
    def n_tokens(self) -> int:
        """Tokens that count, a shared prompt once."""
        return 0 if self.idle else sum(stream.batch.n_tokens for stream in self.streams)

    def to(self, device: torch.device | str, **_: object) -> StepBatch:
        """The same streams on `device`."""
        return StepBatch([stream.to(device) for stream in self.streams], self.idle)


class Collator:
    """Packs the groups of a step into streams."""

    def __init__(self, *, tokens_per_batch: int, cache: TrunkCache | None) -> None:
        """Take the token budget of one stream, and the store of trunk activations if there is one."""
        self.tokens_per_batch = tokens_per_batch
        self.cache = cache

    def streams(self, groups: Sequence[TrainingGroup]) -> Iterator[Stream]:
        """Lay out groups as streams one after the other, in order."""
        pairs = {id(entry.group): entry.pairs for entry in groups}
        for run in fill((entry.group for entry in groups), tokens_per_batch=self.tokens_per_batch):
            batch = pack(run, [pairs[id(group)] for group in run])
            yield Stream(batch, self.cache.read(run) if self.cache else None, tuple(run))

    def share(self, groups: Sequence[TrainingGroup], process: int, n_processes: int) -> StepBatch:
        """The streams of one process's share of a step's groups; the shares differ by one group at most."""
        own = groups[len(groups) * process // n_processes : len(groups) * (process + 1) // n_processes]
        return StepBatch(list(self.streams(own or groups[:1])), idle=not own)


def refuse_too_long(model: PreTrainedModel, groups: Iterable[EncodedGroup], *, section: str = "") -> None:
    """Refuse conversations that a model has no positions for.

    Args:
        model: The model.
        groups: At least one.
        section: What the settings' names begin with, for the message.

    Raises:
        ConfigError: Names the limit.
    """
    longest = max(len(tokens) for group in groups for tokens in group.conversations)
    for limit, why in (
        (position_table(model), "it has no position beyond it"),
        (position_boundary(model), "beyond it its rotary factors depend on the longest text packed"),
    ):
        if limit is not None and longest > limit:
            raise ConfigError(
                f"Got a conversation of {longest} tokens, expected at most {limit} for this model: {why}. "
                f"Set {section}max_length={limit} and {section}read.overlong=drop or truncate_prompt."
            )
