"""What keeps a policy near its reference: the KL penalty, in the reward or in the loss, its weight fixed or steered to a target."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewardproof.config import Section
from rewardproof.losses import KL

STEP = 0.2
"""Largest relative distance from the target that one update answers to."""


class KLPenalty(Section):
    """How a policy is kept near its reference."""

    coefficient: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the divergence, in standard deviations of the reward a nat; 0 lets the policy go where it will."""
    place: Literal["reward", "loss"] = "reward"
    """`reward` subtracts the log-ratio of each sampled token from the rewards; `loss` adds an estimate to the loss."""
    estimate: KL = "k3"
    """The estimate in the loss. With `k2` the optimum is that of the reward's penalty, π_ref exp(r/β); `k3`, which GRPO is published with,
    descends on the divergence the other way round."""
    target: Annotated[float, Field(ge=0)] = 0.0
    """Divergence of an answer, in nats, to which the coefficient is steered; 0 keeps it fixed."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """How fast it is steered."""


class Coefficient:
    """The penalty's weight, as it is now."""

    def __init__(self, settings: KLPenalty) -> None:
        """Start at the setting's."""
        self.settings = settings
        self.value = settings.coefficient

    def steer(self, kl: float) -> None:
        """Move the weight by what the last answers' mean divergence is off the target.

        Reference:
            Ziegler et al., arXiv:1909.08593, section 2.2.
        """
        if self.settings.target:
            error = min(max(kl / self.settings.target - 1, -STEP), STEP)
            self.value *= 1 + self.settings.rate * error
