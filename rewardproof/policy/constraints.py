"""Constrained RLHF: the `constrained:` section of a recipe, and thresholds by the names of the streams they are for."""

# B answers, T tokens, S streams.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewardproof.config import Section, nearest_hint
from rewardproof.errors import ConfigError
from rewardproof.policy.settings import Count, NotNegative, OnPolicy, Positive
from rewardproof.scoring import Scale
from rewardproof.training.processes import gathered

PREFIX = "constraint/"
"""Of its numbers in the log."""
Within = Annotated[float, Field(gt=0, lt=1)]


class Multipliers(Section):
    """How the multipliers learn."""

    learning_rate: Positive = 0.1
    """Of stochastic gradient descent on them."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of it; with much of it multipliers stick where they are."""
    steps: Count = 1
    """Of descent, after each update of the policy. (The paper's release makes one a minibatch and epoch.)"""
    start: float = 0.0
    """Every multiplier at first. (The release draws one number from N(0, 0.01²) for all.)"""
    max_grad_norm: NotNegative = 0.5
    """Longest gradient, of all multipliers together; 0 for any. (0.5 is the release's; the paper names none.)"""


class Search(Section):
    """Thresholds sought while the policy learns (NM-PPO): Nelder and Mead's search, each point a stretch of the one run."""

    validation: Within = 0.1
    """Share of the training prompts that thresholds are scored on; the policy neither learns nor is judged on them."""
    prompts: Annotated[int, Field(ge=2)] = 32
    """Of them, chosen by a hash of their text, for one score."""
    answers: Count = 4
    """Answers to each."""
    cap: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Share of the run's updates after which thresholds that are not reached are scored as they are. (1/8 is the paper's; the release has
    1/10.)"""
    tolerance: Positive = 0.05
    """How near a value counts as at its threshold, and thresholds as ones that have been scored; with `units=spread`, in standard
    deviations of the initial policy's answers."""
    relative: bool = True
    """With `units=own`, whether the tolerance is a share of the threshold. (The release has 5e-3 of the reward's unit.)"""
    step: Positive = 0.5
    """Size of the first simplex: thresholds above the initial policy's values, in standard deviations of its answers' scores."""


class Constraints(Section):
    """What the values of the reward streams shall do, and what learns that they do it."""

    sense: Literal["at_least", "equal", "at_most", "near"] = "equal"
    """`at_least` (μ-PPO): stay near the reference while every value reaches its threshold; `equal` (ξ-PPO): while it equals it; `at_most`
    (All-PPO): raise the rewards, by their `weights`, while no value exceeds it; `near` (PPO-SAT): no multipliers, every answer is rewarded
    for how near its scores are to the thresholds."""
    thresholds: dict[str, float] = {}
    """By the name of the stream, in the scorer's own units; empty where `proxy_points` or `search` finds them."""
    squash: bool = True
    """Whether multipliers count by their sigmoid (`equal`: tanh), the objective by the number of streams less their sum; else the plain
    Lagrangian, the multipliers of an inequality kept from falling below 0."""
    units: Literal["spread", "own"] = "spread"
    """Units of rewards and violations: standard deviations over the initial policy's answers, as everywhere here, or the scorer's own, as
    in the paper."""
    multipliers: Multipliers = Multipliers()
    """How they learn; not used by `near`."""
    search: Search | None = None
    """Seek the thresholds in the run; absent where they are given."""


def check_constraints(settings: Constraints, optimise: OnPolicy) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    if settings.sense in ("at_least", "equal") and not optimise.penalised:
        raise ConfigError(
            f"constrained.sense={settings.sense} with kl.coefficient={optimise.kl.coefficient:g} and kl.place={optimise.kl.place}: "
            "expected a coefficient above 0, in the reward, since the divergence is the objective, a stream with values of its own, and "
            "without it there is nothing to optimise. Write optimise.kl={coefficient: 1.0, place: reward}."
        )
    if settings.sense in ("at_least", "equal") and optimise.kl.target:
        raise ConfigError(
            f"optimise.kl.target={optimise.kl.target:g} with constrained.sense={settings.sense}, expected 0: the multipliers say how much "
            "the divergence counts, and two that steer it would work against each other. Drop it."
        )
    changed = {
        "cut_penalty": optimise.cut_penalty,
        "reward_limit": optimise.reward_limit,
        "redistribute.share": 0.0 if optimise.redistribute.initial == "drop" else optimise.redistribute.share,
    }
    if wrong := [f"optimise.{name}={value:g}" for name, value in changed.items() if value]:
        raise ConfigError(
            f"{', '.join(wrong)} with constrained: expected 0 (or redistribute.initial=drop), since thresholds are meant for scores and an "
            "answer's return would not be its score any more. Drop them."
        )
    if settings.search is not None and settings.sense == "near":
        raise ConfigError(
            "constrained.search with sense=near, expected values that are to reach thresholds: there are no multipliers that would follow "
            "thresholds as they move. Write constrained.sense=equal."
        )


def refuse_other_names(thresholds: Mapping[str, float], names: Sequence[str], *, key: str = "constrained.thresholds") -> None:
    """Refuse thresholds for other streams than there are.

    Raises:
        ConfigError: Names what is missing or unknown.
    """
    for name in thresholds:
        if name not in names:
            raise ConfigError(
                f"{key} has {name!r}{nearest_hint(name, names)}, expected the names of the rewards: {', '.join(names)}. A threshold holds "
                "for the stream of its name, wherever that stands in reward=; correct the name."
            )
    if missing := [name for name in names if name not in thresholds]:
        raise ConfigError(
            f"{key} has none for {', '.join(missing)}, expected one for every reward: a stream without one would count nowhere. Add it, or "
            "drop the reward."
        )


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds by name, in the scorers' own units, and the units in which rewards come."""

    values: Mapping[str, float]
    scales: Mapping[str, Scale]

    def standardised(self, names: Sequence[str]) -> Tensor:
        """In units of the rewards, in the order of the names, shape `(S,)`, float64."""
        found = [self.scales[name].standardised([self.values[name]])[0] for name in names]
        return torch.tensor(found, dtype=torch.float64)

    def told(self, names: Sequence[str], returns_S: Tensor) -> dict[str, float]:
        """For the log, by stream: the mean return of an episode and its threshold, in the scorer's own units."""
        found: dict[str, float] = {}
        for name, value in zip(names, returns_S.tolist(), strict=True):
            scale = self.scales[name]
            found |= {f"{PREFIX}{name}/value": value * scale.std + scale.mean, f"{PREFIX}{name}/threshold": self.values[name]}
        return found


def episode_means(rewards_SBT: Tensor) -> Tensor:
    """Each stream's undiscounted return, its mean over all processes' episodes, shape `(S,)`, float64; long answers count as short ones."""
    parts = gathered((rewards_SBT.double().sum(dim=2).sum(dim=1), rewards_SBT.shape[1]))
    return torch.stack([total_S for total_S, _ in parts]).sum(dim=0) / sum(count for _, count in parts)
