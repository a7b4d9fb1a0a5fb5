"""Terms of the objective that need more of the forward pass than its rewards: hidden states, log-probabilities, weights of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.batches import Collator, Stream

if TYPE_CHECKING:
    from rewardproof.training.fit import Fit
    from rewardproof.training.trainer import PackedRewardModule


class AuxiliaryTerm(nn.Module):
    """One such term.

    It is part of the module that trains: its parameters are optimised, sharded and kept in checkpoints with the model's. Nothing of it is
    delivered.
    """

    needs_answers: bool = False
    """Whether it reads the states that predict the answers' tokens."""
    can_be_sharded: bool = True
    """Whether it computes the same where processes hold parts of the parameters (FSDP, DeepSpeed)."""
    needs_tokens: bool = False
    """Whether it reads the states of all tokens."""

    @abstractmethod
    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The term on one stream, in training and in evaluation."""

    def before(self, run: Fit, module: PackedRewardModule, collator: Collator) -> None:
        """Called once before the first step, also of a run that is resumed: the weights are those that training started from."""

    def after(self, run: Fit, module: PackedRewardModule, collator: Collator) -> Mapping[str, Any]:
        """Called after the last step; what is to be reported, as plain values for JSON."""
        return {}

    def operations(self, run: Fit, epochs: float) -> int:
        """Floating-point operations of its own matrix products in so many epochs, those before the first step included."""
        return 0
