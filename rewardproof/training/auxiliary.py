"""Terms of the objective that need more of the forward pass than its rewards: hidden states, log-probabilities, weights of their own."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.batches import Stream


class AuxiliaryTerm(nn.Module):
    """One such term.

    It is part of the module that trains: its parameters are optimised, sharded and kept in checkpoints with the model's. Nothing of it is
    delivered.
    """

    needs_answers: bool = False
    """Whether it reads the states that predict the answers' tokens."""
    needs_tokens: bool = False
    """Whether it reads the states of all tokens."""

    @abstractmethod
    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The term on one stream, in training and in evaluation."""
