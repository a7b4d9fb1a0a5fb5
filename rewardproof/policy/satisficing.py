"""Rewards for being near a threshold, neither below nor above (PPO-SAT): no multipliers, and nothing learns."""

# B answers, T tokens, S streams.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewardproof.policy.constraints import Thresholds, episode_means
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Rollouts


class NearThresholds:
    """A `RewardSource` around scored answers: each stream earns the negative square of its distance from its threshold.

    Reference:
        Moskovitz et al., arXiv:2310.04373, the baseline PPO-SAT.
    """

    reads_states = False

    def __init__(self, scored: ScoredAnswers, thresholds: Thresholds) -> None:
        """Judge answers by how near their scores are to thresholds.

        Args:
            scored: Judges the answers.
            thresholds: By name, of every stream.
        """
        self.scored, self.thresholds = scored, thresholds
        self._returns_S = torch.zeros(0)

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers' names."""
        return self.scored.names

    def rewards(self, rollouts: Rollouts, moment: Moment) -> Tensor:
        """The negative squares, at the answers' last tokens."""
        table_SBT = self.scored.rewards(rollouts, moment)
        self._returns_S = episode_means(table_SBT)
        distance_SB = table_SBT.sum(dim=2) - self.thresholds.standardised(self.names)[:, None]
        return torch.stack([rollouts.at_end(-(distance_B.float() ** 2)) for distance_B in distance_SB])

    def weights(self) -> Sequence[float]:
        """As they were given."""
        return self.scored.weights()

    def learn(self, rollouts: Rollouts, rewards_SBT: Tensor, moment: Moment) -> Mapping[str, float]:
        """Nothing; tells each stream's own value and its threshold."""
        return {**self.scored.learn(rollouts, rewards_SBT, moment), **self.thresholds.told(self.names, self._returns_S)}

    def state(self) -> Mapping[str, Any]:
        """Empty."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""
