"""A reward model that stays able to tell the current policy's answers apart (MetaRM): refreshed before every round of optimisation.

    θ' = θ + η ∇_θ J(θ; answers of the policy)        θ ← θ − α ∇_θ' L(θ'; preferences)

J grows with how far apart rewards of a prompt's answers are (`losses/spread.py`); no second derivative is taken. The loss is that of a
model already moved to where it tells the policy's answers apart, so that what it learns of preferences serves there.

Reference:
    Secrets of RLHF, part II, arXiv:2401.06080, section 4 and algorithm 1.
"""

# P prompts, K answers to each.
from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rewardproof.artifacts import n_processes
from rewardproof.config import Strings
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError
from rewardproof.losses import Spread, over_processes, pairwise_spread
from rewardproof.policy.rewards import Moment
from rewardproof.policy.rollouts import Rollouts
from rewardproof.policy.settings import Count, NotNegative, OnPolicy
from rewardproof.policy.trained_reward import RewardLearning, TrainedReward, Turns, summed
from rewardproof.training.objective import Loss, PairIndex, pair_losses
from rewardproof.training.preparation import Read, refuse_ignored_margins

PAIRS = Loss(reward_l2=0.0)
"""The objective on preferences: Bradley-Terry and nothing beside it."""


class MetaLearning(RewardLearning):
    """How a reward model is refreshed."""

    data: Strings = ()
    """Preferences to learn from, in any format."""
    read: Read = Read()
    """How they are read."""
    max_length: Count = 2048
    """Longest conversation, in tokens."""
    rounds: Count = 1
    """Parts of equal length that the policy's updates fall into; the reward model is refreshed before each, from the policy's answers of
    that moment. As many as updates refresh it before every one."""
    steps: Count = 8
    """Steps of a refresh."""
    groups: Count = 32
    """Preferences of a step, over all processes: prompts with their answers."""
    prompts: Count = 8
    """Prompts of a step that the policy answers anew, `optimise.answers` times each, over all processes."""
    eta: NotNegative = 1e-2
    """η: how far the weights move before the loss is taken; 0 is plain training on preferences."""
    normalised: bool = True
    """Whether η is the length of that move, whatever the gradient's; else it multiplies the gradient."""
    form: Spread = "tanh"
    """What makes distances of rewards bounded; `sigmoid` is as published, and one half where rewards are equal."""
    epsilon: NotNegative = 1e-3
    """Rounds off the kink of the distance where two rewards are equal; 0 is as published."""


def check_meta(settings: MetaLearning, optimise: OnPolicy) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    if not settings.data:
        raise ConfigError(
            "Got metarm without data, expected preferences: the reward model is trained on them, moved to where it tells the policy's "
            "answers apart. Write metarm.data=… ."
        )
    refuse_ignored_margins(settings.read, key="metarm.read")
    if optimise.answers < 2:
        raise ConfigError(
            f"optimise.answers={optimise.answers} with metarm: expected 2 or more, since it tells a prompt's answers apart. Raise it."
        )
    if settings.rounds > max(optimise.steps, 1):
        raise ConfigError(
            f"metarm.rounds={settings.rounds} with optimise.steps={optimise.steps}: expected at most as many rounds as updates, since each "
            "has one at least. Lower it."
        )
    if settings.prompts % n_processes() or settings.groups % n_processes():
        raise ConfigError(
            f"metarm.prompts={settings.prompts} and groups={settings.groups} on {n_processes()} processes: expected multiples of their "
            "number, so that all take the same share; change them."
        )


@contextlib.contextmanager
def ahead(parameters: Sequence[nn.Parameter], eta: float, *, normalised: bool) -> Iterator[float]:
    """While the context is open the parameters are η further along the gradients that lie on them; then, to the bit, what they were.

    Gives how far that is. The gradients are taken off the parameters, so that those found inside stand alone there afterwards.
    """
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    length = float(torch.stack([one.double().square().sum() for one in gradients]).sum().sqrt())
    scale = eta / length if normalised and length else eta
    kept = [one.detach().clone() for one in parameters] if eta and length else []
    for parameter in parameters:
        parameter.grad = None
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True) if kept else ():
                parameter.add_(gradient, alpha=scale)
        yield scale * length
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=bool(kept)):
                parameter.copy_(value)


class MetaLearner:
    """A reward model that is refreshed before each round; a `Learner`."""

    key: str = "metarm"
    counts: tuple[str, ...] = ("refreshes",)
    reads_states = False

    def __init__(self, trained: TrainedReward, settings: MetaLearning, preferences: Turns, *, answers: int) -> None:
        """Let a reward model learn.

        Args:
            trained: The reward model.
            settings: How.
            preferences: What it learns from, by turns.
            answers: K, answers to a prompt.
        """
        self.trained, self.settings, self.preferences, self.answers = trained, settings, preferences, answers
        self._told: dict[str, float] = {}

    def begins(self, moment: Moment) -> int | None:
        """The round that begins at this moment, counted from 0; nothing where none does."""
        own, before = (step * self.settings.rounds // moment.steps for step in (moment.step, moment.step - 1))
        return own if own != before else None

    def before(self, rollouts: Rollouts, moment: Moment) -> None:
        """Refresh where a round begins.

        Raises:
            TrainingError: A gradient is not finite.
        """
        number = self.begins(moment)
        if number is not None:
            assert moment.samples is not None
            samples = moment.samples(self.settings.steps * self.settings.prompts)
            encoded = self.trained.model.encode(samples.groups)[0]
            self._told = {"round": number + 1, "refreshes": 1, **self._refresh(encoded, number * self.settings.steps)}

    def learn(self, rollouts: Rollouts, moment: Moment) -> Mapping[str, float]:
        """Nothing more; tells of the refresh that there has been."""
        told, self._told = self._told, {}
        return {"refreshes": 0, **told}

    def _refresh(self, samples: Sequence[EncodedGroup], first: int) -> dict[str, float]:
        """All steps; `first` is the first one's number in the run. Gives means over them, and J of all samples at the end."""
        size = self.settings.prompts // n_processes()
        totals = Counter[str]()
        for step in range(self.settings.steps):
            totals.update(self.step(samples[step * size : (step + 1) * size], first + step))
        with torch.no_grad():
            after = self._spread(samples, self.settings.steps * self.settings.prompts)
        means = {name: value / self.settings.steps for name, value in totals.items()}
        return means | summed({"spread_after": after}, self.trained.model.model.device)

    def step(self, samples: Sequence[EncodedGroup], number: int) -> dict[str, float]:
        """One step on some of the policy's answers and the preferences whose turn it is."""
        trained, settings = self.trained, self.settings
        trained.steps.clear()
        with torch.set_grad_enabled(settings.eta > 0):
            spread = self._spread(samples, settings.prompts)
        for parameter in trained.parameters if settings.eta else ():
            assert parameter.grad is not None
            parameter.grad = over_processes(parameter.grad)
        with ahead(trained.parameters, settings.eta, normalised=settings.normalised) as moved:
            totals = self._preferences(number)
        trained.fill_in()
        told = summed({"spread": spread, **totals}, trained.model.model.device)
        pairs = told.pop("pairs")
        told["accuracy"] /= max(pairs, 1)
        return {**told, "moved": moved, "gradient_norm": trained.steps.take()}

    def _spread(self, samples: Sequence[EncodedGroup], count: int) -> float:
        """J of the samples, this process's part of the mean over `count` prompts; its gradient is added to the parameters'."""
        total = 0.0
        for one in self.trained.passes(samples):
            rewards_PK = one.rewards_C.view(-1, self.answers)
            value = pairwise_spread(rewards_PK, form=self.settings.form, epsilon=self.settings.epsilon) * (len(rewards_PK) / count)
            if value.requires_grad:
                value.backward()
            total += float(value.detach())
        return total

    def _preferences(self, number: int) -> dict[str, float]:
        """Adds the gradient of the preferences' loss, this process's part; gives that, and how many pairs are ordered as the data does."""
        chosen = self.preferences.take(number)
        totals = {"loss": 0.0, "accuracy": 0.0, "pairs": 0.0}
        for one in self.trained.passes([entry.group for entry in chosen], [entry.pairs for entry in chosen]):
            index = PairIndex.of(one.batch, one.rewards_C.device)
            loss = (index.weight_P * pair_losses(one.rewards_C, index, PAIRS)).sum() / self.preferences.size
            loss.backward()
            gap_P = one.rewards_C.detach()[index.winner_P] - one.rewards_C.detach()[index.loser_P]
            totals["loss"] += float(loss.detach())
            totals["accuracy"] += float((gap_P > 0).sum() + 0.5 * (gap_P == 0).sum())
            totals["pairs"] += len(gap_P)
        return totals

    def state(self) -> Mapping[str, Any]:
        """The reward model's."""
        return self.trained.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.trained.load_state(state)
