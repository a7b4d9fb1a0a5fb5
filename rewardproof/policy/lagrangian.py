"""Rewards whose weights are multipliers, which learn after every update what a stream must count for its value to keep its constraint."""

# B answers, T tokens, S streams: N of them constrained, which are all.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewardproof.errors import CheckpointError
from rewardproof.losses import Sense, mixture, multiplier_loss
from rewardproof.policy.constraints import PREFIX, Constraints, Thresholds, episode_means
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Rollouts
from rewardproof.policy.threshold_search import ThresholdSearch


class ConstrainedAnswers:
    """μ-PPO, ξ-PPO and All-PPO as a `RewardSource` around scored answers.

    Reference:
        Moskovitz et al., Confronting Reward Model Overoptimization with Constrained RLHF, arXiv:2310.04373.
    """

    reads_states = False

    def __init__(
        self, scored: ScoredAnswers, settings: Constraints, thresholds: Thresholds, *, search: ThresholdSearch | None = None
    ) -> None:
        """Constrain the streams of scored answers.

        Args:
            scored: Judges the answers; its weights are those of the objective where the rewards are one.
            settings: What the values shall do.
            thresholds: By name, of every stream.
            search: Moves the thresholds, where they are sought.
        """
        assert settings.sense != "near"
        self.scored, self.settings, self.search = scored, settings, search
        self.sense: Sense = settings.sense
        self._given = thresholds
        self.multipliers_N = nn.Parameter(torch.full((len(scored.names),), settings.multipliers.start, dtype=torch.float64))
        learning = settings.multipliers
        self.optimizer = torch.optim.SGD([self.multipliers_N], lr=learning.learning_rate, momentum=learning.momentum)

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers' names."""
        return self.scored.names

    @property
    def thresholds(self) -> Thresholds:
        """Those of the moment."""
        return self._given if self.search is None else Thresholds(self.search.thresholds, self._given.scales)

    def rewards(self, rollouts: Rollouts, moment: Moment) -> Tensor:
        """Each answer's score at its last token."""
        return self.scored.rewards(rollouts, moment)

    def weights(self) -> Sequence[float]:
        """Of each stream's advantage, and of the divergence's, by the multipliers of the moment."""
        mixed = mixture(self.multipliers_N.detach(), self.sense, squash=self.settings.squash)
        objective = float(mixed.objective)
        own = self.scored.weights() if self.sense == "at_most" else [0.0] * len(self.names)
        constrained = [float(one) for one in mixed.constraint_N]
        return [*(objective * weight + one for weight, one in zip(own, constrained, strict=True)), objective]

    def learn(self, rollouts: Rollouts, rewards_SBT: Tensor, moment: Moment) -> Mapping[str, float]:
        """Descend on the multipliers; tells each stream's value, threshold, multiplier and weight, and the reward by its given weights.

        The sum that the policy learns from changes with the multipliers, so that it says nothing about the policy from update to update.
        """
        told = dict(self.scored.learn(rollouts, rewards_SBT, moment))
        returns_S = episode_means(rewards_SBT)
        told |= self.thresholds.told(self.names, returns_S)
        told["reward"] = float(sum(weight * value for weight, value in zip(self.scored.weights(), returns_S.tolist(), strict=True)))
        weights = self.weights()
        for name, multiplier, weight in zip(self.names, self.multipliers_N.tolist(), weights, strict=False):
            told |= {f"{PREFIX}{name}/multiplier": multiplier, f"{PREFIX}{name}/weight": weight}
        told[f"{PREFIX}objective_weight"] = weights[-1]
        self._descend(returns_S - self.thresholds.standardised(self.names))
        if self.search is not None:
            self.search.observe({name: told[f"{PREFIX}{name}/value"] for name in self.names})
        return told

    def _descend(self, excess_S: Tensor) -> None:
        settings = self.settings
        for _ in range(settings.multipliers.steps):
            self.optimizer.zero_grad()
            multiplier_loss(excess_S, self.multipliers_N, self.sense, squash=settings.squash).backward()
            if settings.multipliers.max_grad_norm:
                nn.utils.clip_grad_norm_([self.multipliers_N], settings.multipliers.max_grad_norm)
            self.optimizer.step()
            if not settings.squash and self.sense != "equal":
                self.multipliers_N.data.clamp_(min=0.0)

    def state(self) -> Mapping[str, Any]:
        """Multipliers by the names of their streams, their optimiser, and how far a search is."""
        return {
            "multipliers": dict(zip(self.names, self.multipliers_N.tolist(), strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "search": None if self.search is None else self.search.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state.

        Raises:
            CheckpointError: It is of other streams.
        """
        kept = cast("dict[str, float]", state["multipliers"])
        if tuple(kept) != self.names:
            raise CheckpointError(
                f"The checkpoint has multipliers of {', '.join(kept)}, expected those of {', '.join(self.names)} in this order: their "
                "momentum would be another's. Give the rewards that the run began with, or start in a new directory."
            )
        self.multipliers_N.data = torch.tensor(list(kept.values()), dtype=torch.float64)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.search is not None:
            self.search.load_state(state["search"])
