"""Verdicts as the objective: every answer by itself is right or wrong, and pairs do not count (VerifyRM)."""

# C conversations of a stream.
from __future__ import annotations

from torch import Tensor

from rewardproof.losses import verdict
from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream


class Pointwise(AuxiliaryTerm):
    """Binary cross-entropy over a group's answers, averaged over them; the pairs' own loss has no weight beside it.

    Reference:
        Hong et al., Cooper, arXiv:2508.05613.
    """

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The term on one stream, each answer by its share of its group."""
        labels_C, weight_C = labels_and_weights(stream, output.rewards_C)
        loss = (weight_C * verdict(output.rewards_C, labels_C, reduction="none")).sum()
        right_C = ((output.rewards_C.detach() > 0) == (labels_C > 0)).float()
        metrics = {"verdict/loss": float(loss.detach()), "verdict/accuracy": float((weight_C * right_C).sum())}
        return Auxiliary(loss, metrics, pairs=0.0)


def labels_and_weights(stream: Stream, rewards_C: Tensor) -> tuple[Tensor, Tensor]:
    """The label of every conversation of a stream, and its share of its group."""
    labels = [label for group in stream.groups for label in group.labels]
    weights = [1 / len(group.labels) for group in stream.groups for _ in group.labels]
    assert len(labels) == len(rewards_C), "every answer of a verifier's data has a label"
    return rewards_C.new_tensor(labels), rewards_C.new_tensor(weights)
