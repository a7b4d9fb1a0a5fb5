"""Batch-wise sum-to-zero regularisation of a step that is computed in parts: streams, accumulated batches, processes.

The slope of the penalty is the batch's mean reward, which no part knows alone and the first part's backward pass needs. Where there are
several parts a pass without gradients adds their rewards up first; where one pass is all there is, its own rewards do.
"""

# C conversations of a stream, P pairs of a stream.
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rewardproof.data.packing import PackedBatch
from rewardproof.losses import Total, over_processes, zero_sum_part
from rewardproof.models.packed import PackedRewards
from rewardproof.training.batches import StepBatch
from rewardproof.training.objective import Loss, PairIndex, StepTotals


def numbers_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Random numbers of the CPU and of a device are afterwards what they were, whatever is drawn inside."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class BatchSum(NamedTuple):
    """Sum of the rewards of both sides of a batch's pairs, and the number of pairs.

    Pairs weigh as in the loss: those of a group share the weight of one, so that a ranking counts as one pair in both numbers.
    """

    rewards: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, output: PackedRewards, batch: PackedBatch) -> BatchSum:
        """That of a stream."""
        index = PairIndex.of(batch, output.rewards_C.device)
        sides_P = output.rewards_C[index.winner_P] + output.rewards_C[index.loser_P]
        return cls((index.weight_P * sides_P).sum(), sides_P.new_tensor(batch.n_groups))


class BatchSums:
    """The penalty of the step in progress, part by part."""

    def __init__(self, settings: Loss, accelerator: Accelerator) -> None:
        """Take weight, form and scope of the penalty from the objective."""
        self.settings = settings
        self.accelerator = accelerator
        self.step: Sequence[StepBatch] = ()
        self.known: BatchSum | None = None

    def begin(self, step: Sequence[StepBatch]) -> None:
        """Take the batches of an optimiser step, before the first of them runs."""
        self.step = step

    def look_ahead(self, model: nn.Module, batch: StepBatch) -> None:
        """Add up what has to be known before the first backward pass over `batch`; to be called once a batch, by every process.

        The random numbers that the passes draw (dropout, random routing) are drawn again by those that follow, which therefore see the
        very rewards that were added up.
        """
        if self.settings.bsr_scope == "device":
            ahead: Sequence[StepBatch] = (batch,)
        elif self.step:
            ahead, self.step = self.step, ()
        else:
            return  # a later batch of a step that has been added up
        device = self.accelerator.device
        own = torch.tensor([[len(entry.streams) for entry in ahead]], device=device)
        passes = cast("Tensor", self.accelerator.gather(own)).amax(dim=0).tolist()
        self.known = self._summed(model, ahead, passes) if sum(passes) > 1 else None

    def _summed(self, model: nn.Module, ahead: Sequence[StepBatch], passes: Sequence[int]) -> BatchSum:
        device, over_step = self.accelerator.device, self.settings.bsr_scope == "step"
        sums = torch.zeros(2, device=device)
        with torch.no_grad(), numbers_kept(device):
            for batch, count in zip(ahead, passes, strict=True):
                # As in training, processes run the same number of passes; the last is repeated for nothing where there are too few.
                for number in range(count):
                    stream = batch.streams[min(number, len(batch.streams) - 1)].to(device)
                    found = BatchSum.of(model(stream, terms=False), stream.batch)
                    if number < len(batch.streams) and not (over_step and batch.idle):
                        sums = sums + torch.stack(found)
        return BatchSum(*(over_processes(sums) if over_step else sums))

    def part(self, output: PackedRewards, batch: PackedBatch, totals: StepTotals, *, total: Total) -> Tensor:
        r"""A stream's share of the penalty, in the currency of `step_loss`: a sum over groups that is yet to be divided by their number.

        .. math:: \frac{1}{n} \sum_g \ell_g + \lambda P \quad\text{over a step of } n \text{ groups}

        A `device` penalty is one of each process's batch of :math:`B` groups and weighs :math:`B / n`, so that equal batches are averaged.

        Args:
            output: Rewards of the stream.
            batch: The stream.
            totals: Is added to, for the log.
            total: As in `step_loss`.
        """
        settings = self.settings
        own = BatchSum.of(output, batch)
        whole = self.known or BatchSum(own.rewards.detach(), own.pairs)
        if self.known is None and settings.bsr_scope == "step":
            whole = BatchSum(*total(torch.stack(whole)))
        part = settings.bsr * whole.pairs * zero_sum_part(own.rewards, whole.rewards, whole.pairs, form=settings.bsr_form)
        totals.add(
            {
                "loss/bsr": float(part.detach()),
                "bsr/pairs": float(whole.pairs * own.pairs),
                "bsr/second_pass": float(own.pairs) * (self.known is not None),
            }
        )
        return part
