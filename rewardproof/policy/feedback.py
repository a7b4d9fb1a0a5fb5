"""A reward model that learns beside the policy it reads (R2M): after every update, from the rewards of the answers it has just judged.

The highest and the lowest reward of each prompt's answers become a preference pair, and a group's entropy is lowered:

    L = (1 − α) · −log σ(r_w − r_l)  +  α · H(softmax(standardised r))

Attention and head alone learn. The reward model's states are those of judging: its layers are frozen, so nothing is computed twice.

Reference:
    R2M, arXiv:2601.22664, eq. 5 to 7 and algorithm 1.
"""

# G prompts, K answers to each, B = G·K answers, D reward model's width.
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewardproof.artifacts import n_processes
from rewardproof.config import Section
from rewardproof.errors import ConfigError
from rewardproof.losses import bradley_terry, group_entropy, over_processes
from rewardproof.models.cross_attention import AttentionShape
from rewardproof.policy.learning import Descent, RewardSteps
from rewardproof.policy.rewards import Moment
from rewardproof.policy.rollouts import Rollouts
from rewardproof.policy.settings import Count, OnPolicy, Positive, Share
from rewardproof.scoring import PolicyFeedbackReward


class FeedbackLearning(Descent):
    """How the reward model learns after each update of the policy."""

    trains: Literal["all", "head", "none"] = "all"
    """`all`: attention and head; `head`: the head alone; `none`: the policy's states enter the reward, and nothing learns."""
    alpha: Share = 0.3
    """Weight of the entropy; the pairs' loss has the rest."""
    groups: Annotated[int, Field(ge=0)] = 1
    """Prompts of one optimiser step, over all processes; 0 for all of an update."""
    passes: Count = 1
    """Times that it goes over an update's prompts."""
    pair: Literal["annotation", "recomputed"] = "annotation"
    """Rewards by which a pair is chosen: those that the policy got, or those of the moment of learning."""
    states: Literal["last_epoch", "sampled"] = "last_epoch"
    """The policy's states to learn from: those of the last epoch of its update, or those when the answers were judged."""
    epsilon: Positive = 1e-2
    """Spread of a group's rewards below which its entropy counts less and less, in standard deviations of the initial policy's rewards."""


class PolicyFeedback(Section):
    """A reward that reads the policy's hidden states, and learns with the policy."""

    floor: Share = 0.6
    """Least weight of the reward model's own state, which the schedule comes down to; with 1 the policy is never read."""
    source: Literal["policy", "noise"] = "policy"
    """What is read: the policy's states, or Gaussian noise with the mean and variance of each text's states."""
    attention: AttentionShape = AttentionShape()
    """The cross-attention."""
    learning: FeedbackLearning = FeedbackLearning()
    """What it learns from."""


def check_feedback(feedback: PolicyFeedback, optimise: OnPolicy) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    learning, answers = feedback.learning, optimise.answers
    if learning.trains != "none" and answers < 2:
        raise ConfigError(
            f"optimise.answers={answers} with feedback.learning: expected 2 or more, since it learns from the highest and the lowest "
            "reward of a prompt's answers. Raise it, or write feedback.learning.trains=none."
        )
    if learning.trains == "all" and feedback.floor == 1:
        raise ConfigError(
            "feedback.floor=1 with feedback.learning.trains=all: expected a floor below 1, since at 1 the policy is never read and the "
            "attention to it gets no gradient. Lower it, or write feedback.learning.trains=head."
        )
    if learning.trains != "none" and learning.alpha and answers == 2:
        raise ConfigError(
            f"optimise.answers=2 with feedback.learning.alpha={learning.alpha:g}: expected 3 or more answers, since two rewards in units "
            "of their spread are always 1 and -1: the entropy is a constant and has no gradient. Raise answers, or write alpha=0."
        )
    if learning.trains != "none" and (learning.groups or optimise.prompts_per_step) % n_processes():
        raise ConfigError(
            f"feedback.learning.groups={learning.groups} on {n_processes()} processes: expected a multiple of their number, so that each "
            "takes as many prompts of every step; raise it, or write groups=0."
        )


class FeedbackLearner:
    """A reward model that reads the policy and learns from it; a `Learner`."""

    key: str = "feedback"
    counts: tuple[str, ...] = ("groups_without_a_pair",)

    def __init__(self, name: str, follower: PolicyFeedbackReward, settings: FeedbackLearning, *, answers: int, unit: float) -> None:
        """Let a reward model learn.

        Args:
            name: Of its stream.
            follower: What learns; the scorer of that stream.
            settings: How.
            answers: K, answers to a prompt.
            unit: Standard deviation of the initial policy's rewards.
        """
        self.follower, self.settings, self.answers, self.unit = follower, settings, answers, unit
        self.steps: RewardSteps | None = None
        if settings.trains != "none":
            follower.attention.requires_grad_(settings.trains == "all")
            follower.head.requires_grad_(True)
            trained = [parameter for parameter in follower.parts.parameters() if parameter.requires_grad]
            causes = f", or epsilon too small for rewards that hardly differ (now {settings.epsilon:g})"
            self.steps = RewardSteps(trained, settings, name=name, key="feedback.learning", causes=causes)
        self._sampled: Sequence[Tensor] = ()

    @property
    def reads_states(self) -> bool:
        """Unless no reward is ever mixed."""
        return self.follower.floor < 1

    def before(self, rollouts: Rollouts, moment: Moment) -> None:
        """Keep the states of the policy that sampled, where those are learned from."""
        if self.reads_states and self.settings.states == "sampled":
            self._sampled = moment.policy_states()

    def learn(self, rollouts: Rollouts, moment: Moment) -> Mapping[str, float]:
        """Steps on the answers just judged; gives the means of what was met.

        Raises:
            TrainingError: A gradient is not finite.
        """
        weight = self.follower.weight(moment.step, moment.steps)
        told = {"weight": weight}
        if self.steps is not None:
            told |= self._learn(self._states(rollouts, moment) if weight < 1 else (), weight)
        self._sampled = ()
        return told

    def state(self) -> Mapping[str, Any]:
        """What has learnt, and its optimiser."""
        optimizer = {} if self.steps is None else self.steps.optimizer.state_dict()
        return {"parts": self.follower.parts.state_dict(), "optimizer": optimizer}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.follower.parts.load_state_dict(state["parts"])
        if self.steps is not None:
            self.steps.optimizer.load_state_dict(state["optimizer"])

    def _states(self, rollouts: Rollouts, moment: Moment) -> list[Tensor]:
        states = self._sampled if self.settings.states == "sampled" else moment.policy_states()
        return self.follower.fed(rollouts.groups, states, step=moment.step)

    def _learn(self, states: Sequence[Tensor], weight: float) -> dict[str, float]:
        """All steps of an update."""
        settings, one, steps = self.settings, self.follower, self.steps
        assert one.latest is not None
        assert steps is not None
        own_BD, judged_GK = one.latest.states_BD, one.latest.rewards_B.view(-1, self.answers)
        size = settings.groups // n_processes() or len(judged_GK)
        totals: defaultdict[str, float] = defaultdict(float)
        for _ in range(settings.passes):
            for first in range(0, len(judged_GK), size):
                chosen_GK = judged_GK[first : first + size].to(own_BD.device)
                rows = slice(first * self.answers, (first + len(chosen_GK)) * self.answers)
                steps.clear()
                with torch.enable_grad():
                    rewards_GK = one.rewards(own_BD[rows], states[rows], weight).view(-1, self.answers)
                    losses_G, told = self._losses(rewards_GK, chosen_GK, unit=self.unit)
                    (losses_G.sum() / (len(losses_G) * n_processes())).backward()
                for key, value in {**told, "steps": 1.0, "gradient_norm": steps.take()}.items():
                    totals[key] += value
        return _means(totals, own_BD.device)

    def _losses(self, rewards_GK: Tensor, chosen_GK: Tensor, *, unit: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of each prompt, shape `(G,)`, and what is to be added up of it; a prompt whose rewards are all equal has no pair."""
        settings = self.settings
        by_GK = chosen_GK if settings.pair == "annotation" else rewards_GK.detach()
        best_G1, worst_G1 = by_GK.argmax(dim=1, keepdim=True), by_GK.argmin(dim=1, keepdim=True)
        ordered_G = (by_GK.gather(1, best_G1) > by_GK.gather(1, worst_G1))[:, 0]
        pair_G = bradley_terry(rewards_GK.gather(1, best_G1)[:, 0], rewards_GK.gather(1, worst_G1)[:, 0], reduction="none") * ordered_G
        losses_G = (1 - settings.alpha) * pair_G
        told = {"groups": len(pair_G), "pairs": int(ordered_G.sum()), "bradley_terry": float(pair_G.detach().sum())}
        if settings.alpha:
            entropy_G = group_entropy(rewards_GK, epsilon=settings.epsilon * unit)
            told["entropy"] = float(entropy_G.detach().sum())
            losses_G = losses_G + settings.alpha * entropy_G
        return losses_G, told | {"loss": float(losses_G.detach().sum())}


def _means(totals: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Means over all processes: of the losses over their prompts or pairs, of the gradient over its steps; and prompts without a pair."""
    names = sorted(totals.keys() - {"steps", "gradient_norm"})
    found = dict(zip(names, over_processes(torch.tensor([totals[name] for name in names], device=device)).tolist(), strict=True))
    groups, pairs = found.pop("groups"), found.pop("pairs")
    return {
        "bradley_terry": found.pop("bradley_terry") / max(pairs, 1),
        **{name: value / groups for name, value in found.items()},
        "gradient_norm": totals["gradient_norm"] / totals["steps"],
        "groups_without_a_pair": groups - pairs,
    }
