"""Rollouts as packed streams for a policy and its reference: what a pass over all of them gives, as tables of answers and tokens."""

# B answers, T tokens of the longest answer, D hidden width, S reward streams.
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardproof.data.packing import PackedBatch, fill, pack, split_large
from rewardproof.models.packed import by_conversation
from rewardproof.models.precision import Precision, computing_in
from rewardproof.policy.policy import Policy, PolicyOutput, evaluating
from rewardproof.policy.rollouts import Rollouts


@dataclass(frozen=True, slots=True)
class Stream:
    """Some of the answers.

    Attributes:
        rows: Which of the rollouts' answers.
        batch: Their packed stream, on the policy's device.
        trunk_TD: What enters the first layer that trains, where it was computed.
    """

    rows: slice
    batch: PackedBatch
    trunk_TD: Tensor | None


@dataclass(frozen=True, slots=True)
class Passes:
    """How passes over rollouts are made."""

    precision: Precision
    tokens_per_batch: int

    def streams(self, policy: Policy, rollouts: Rollouts, groups: range) -> list[Stream]:
        """The answers of some of the prompts as streams, the frozen layers' output computed."""
        first = sum(len(group.conversations) for group in rollouts.encoded[: groups.start])
        parts = (part for place in groups for part in split_large(rollouts.encoded[place], tokens_per_batch=self.tokens_per_batch))
        found: list[Stream] = []
        for run in fill(parts, tokens_per_batch=self.tokens_per_batch):
            last = first + sum(len(part.conversations) for part in run)
            found.append(Stream(slice(first, last), pack(run).to(policy.model.device), policy.trunk_of(run, precision=self.precision)))
            first = last
        return found

    def over(self, policy: Policy, streams: Sequence[Stream], read: Callable[[PolicyOutput], Tensor]) -> Tensor:
        """One reading of a pass over all streams, on the CPU, detached; its first dimension is that of the answer tokens.

        The pass is the update's own, gradient and all: without one attention computes otherwise, and in bf16 the ratio of a whole answer
        would be off by a quarter before the first update.
        """
        with evaluating(policy), torch.enable_grad(), computing_in(self.precision, policy.model.device):
            return torch.cat([read(policy(stream.batch, stream.trunk_TD)).detach().float().cpu() for stream in streams])

    def states(self, policy: Policy, streams: Sequence[Stream]) -> list[Tensor]:
        """The policy's final hidden states of every conversation, `(tokens, D)` each."""
        with evaluating(policy), computing_in(self.precision, policy.model.device):
            return by_streams(streams, [policy.states(one.batch, one.trunk_TD) for one in streams])


def by_streams(streams: Sequence[Stream], states: Sequence[Tensor]) -> list[Tensor]:
    """What belongs to every conversation, `(tokens, D)` each, of what passes gave for all tokens of each stream."""
    return [part for one, states_TD in zip(streams, states, strict=True) for part in by_conversation(one.batch, states_TD)]
