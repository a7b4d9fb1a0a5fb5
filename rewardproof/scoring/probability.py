"""A verifier's logit as the probability that an answer is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewardproof.data.group import Group
from rewardproof.models.reward_model import RewardModel


class AsProbability:
    """σ(logit) of a verifier as it is at that moment; a `Scorer`."""

    def __init__(self, model: RewardModel) -> None:
        """Take the verifier."""
        self.model = model

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Probabilities of every answer of every group; raises as the verifier's `score`."""
        return [tuple(0.5 * (1 + math.tanh(logit / 2)) for logit in row) for row in self.model.score(groups)]
