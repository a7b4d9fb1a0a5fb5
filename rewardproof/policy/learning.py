"""Reward models that learn beside a policy: the source of rewards around them, and their optimiser's steps.

What is learned, from what, and when is a `Learner`'s own business: that of R2M (`feedback.py`), Cooper (`cooper.py`) and MetaRM
(`meta_learning.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewardproof.config import Section
from rewardproof.errors import TrainingError
from rewardproof.losses import over_processes
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Rollouts
from rewardproof.policy.settings import NotNegative


class Descent(Section):
    """How what learns of a reward model descends; its optimiser is its own, never the policy's."""

    learning_rate: NotNegative = 1e-6
    """Of what learns of the reward model."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: NotNegative = 0.0
    """Of AdamW."""
    max_grad_norm: NotNegative = 1.0
    """Longest gradient; 0 for any."""


class RewardSteps:
    """Optimiser steps on what learns of one reward model, the same on every process."""

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Descent, *, name: str, key: str, causes: str = "") -> None:
        """Take what learns.

        Args:
            parameters: What learns.
            settings: How.
            name: Of the reward model, for messages.
            key: Of the settings, for messages.
            causes: What else may break a step, for messages.
        """
        self.parameters, self.settings = list(parameters), settings
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self._broken = f"{key}.learning_rate is too high (now {settings.learning_rate:g}){causes}"
        self.name = name

    def clear(self) -> None:
        """Forget gradients."""
        self.optimizer.zero_grad()

    def take(self) -> float:
        """One step along the gradients that lie on the parameters, summed over the processes; gives their length and clears them.

        Raises:
            TrainingError: The length is not finite; nothing has moved then.
        """
        moving: list[nn.Parameter] = []
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = over_processes(parameter.grad)
                moving.append(parameter)
        length = float(nn.utils.clip_grad_norm_(moving, self.settings.max_grad_norm or math.inf))
        if not math.isfinite(length):
            raise TrainingError(
                f"The reward model {self.name} broke down as it learnt: its gradient has length {length}, expected a finite one. Usual "
                f"causes: {self._broken}. Change that and start in a new directory."
            )
        self.optimizer.step()
        self.clear()
        return length


class Learner(Protocol):
    """One reward model that learns."""

    key: str
    """What the log and the settings call this way to learn."""
    counts: tuple[str, ...]
    """Which of its numbers a run adds up; of the others the last says where it came to."""

    @property
    def reads_states(self) -> bool:
        """Whether it asks for the policy's states."""
        ...

    def before(self, rollouts: Rollouts, moment: Moment) -> None:
        """Called before an update's answers are judged."""
        ...

    def learn(self, rollouts: Rollouts, moment: Moment) -> Mapping[str, float]:
        """Called after the policy's update on them; gives numbers for the log."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What it has changed, its optimiser included, for a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        ...


class LearningRewards:
    """Rewards by scorers of which some learn; a `RewardSource` around scored answers."""

    def __init__(self, scored: ScoredAnswers, learners: Mapping[str, Learner]) -> None:
        """Let reward models learn.

        Args:
            scored: Judges the answers, by the reward models as they are at that moment.
            learners: By the name of their stream.
        """
        self.scored, self.learners = scored, dict(learners)

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers' names."""
        return self.scored.names

    @property
    def reads_states(self) -> bool:
        """Where a learner does."""
        return any(learner.reads_states for learner in self.learners.values())

    def rewards(self, rollouts: Rollouts, moment: Moment) -> Tensor:
        """As the scorers judge, once the learners are ready."""
        for learner in self.learners.values():
            learner.before(rollouts, moment)
        return self.scored.rewards(rollouts, moment)

    def weights(self) -> Sequence[float]:
        """As they were given."""
        return self.scored.weights()

    def learn(self, rollouts: Rollouts, rewards_SBT: Tensor, moment: Moment) -> Mapping[str, float]:
        """Every learner learns; their numbers under their keys, and under their streams' names where they are several.

        Raises:
            TrainingError: A gradient is not finite.
        """
        told = dict(self.scored.learn(rollouts, rewards_SBT, moment))
        for name, learner in self.learners.items():
            prefix = f"{learner.key}/" if len(self.learners) == 1 else f"{learner.key}/{name}/"
            told |= {f"{prefix}{key}": value for key, value in learner.learn(rollouts, moment).items()}
        return told

    def state(self) -> Mapping[str, Any]:
        """Every learner's."""
        return {name: learner.state() for name, learner in self.learners.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        for name, learner in self.learners.items():
            learner.load_state(state[name])
