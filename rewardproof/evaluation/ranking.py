"""Rank agreement: how far rewards order the answers to a prompt as the data's scores do, by Kendall's tau, every prompt counting once."""

# Shapes: G prompts.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.data.group import Group
from rewardproof.data.splitting import split_key
from rewardproof.errors import EvaluationError
from rewardproof.evaluation.scored import finite_row
from rewardproof.statistics import Interval, cluster_bootstrap, is_constant, kendall
from rewardproof.statistics.checks import FloatArray


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """What `rank_agreement` found.

    Attributes:
        tau: Mean of the prompts' tau-b, with an interval over prompts.
        n_prompts: Groups that it is a mean of.
        constant_scores: Groups left out because the data gives all their answers the same score, or none: nothing orders them.
        constant_rewards: Groups whose answers all have the same reward. Their tau is undefined and counts as 0, as that of a reward
            without relation to the scores: left out, they would hide a model that tells nothing apart.
        tied_pairs: Pairs of answers that the scores order and the rewards do not, in all groups counted.
    """

    tau: Interval
    n_prompts: int
    constant_scores: int
    constant_rewards: int
    tied_pairs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "tau": self.tau.as_dict()}


def rank_agreement(
    groups: Sequence[Group], rewards: Sequence[Sequence[float] | FloatArray] | FloatArray, *, seed: int = 0
) -> RankAgreement:
    """Mean per-prompt Kendall tau between rewards and the data's scores.

    Args:
        groups: Prompts with their answers and the data's scores.
        rewards: The rewards of every group's answers, in the groups' order.
        seed: Seed of the bootstrap over prompts.

    Returns:
        The mean with its interval, and the prompts on which tau is not defined.

    Raises:
        EvaluationError: If rewards and groups do not match, a number is not finite, or the data orders no group.

    Example:
        >>> from rewardproof.data.group import Message
        >>> answers = tuple((Message("assistant", text),) for text in ("yes", "no", "maybe"))
        >>> groups = [Group((Message("user", prompt),), answers, scores=(2.0, 1.0, 0.0)) for prompt in "ab"]
        >>> found = rank_agreement(groups, [[3.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
        >>> found.tau.estimate, found.constant_rewards, found.tied_pairs
        (0.5, 1, 3)
    """
    if len(groups) != len(rewards):
        raise EvaluationError(
            f"{len(rewards)} lists of rewards for {len(groups)} groups; expected one a group. Score the same rows that you evaluate."
        )
    kept = [
        (split_key(group), np.asarray(group.scores, dtype=np.float64), finite_row(group, row))
        for group, row in zip(groups, rewards, strict=True)
        if group.scores is not None and not is_constant(group.scores)
    ]
    if not kept:
        raise EvaluationError(
            f"none of {len(groups)} groups has two different scores; expected at least one. A rank correlation with a constant is "
            "undefined: give rows with scores."
        )
    constant = [is_constant(rewards_A) for _, _, rewards_A in kept]
    tau_G = [0.0 if flat else kendall(rewards_A, scores_A) for flat, (_, scores_A, rewards_A) in zip(constant, kept, strict=True)]
    return RankAgreement(
        tau=cluster_bootstrap(tau_G, [prompt for prompt, _, _ in kept], seed=seed),
        n_prompts=len(kept),
        constant_scores=len(groups) - len(kept),
        constant_rewards=sum(constant),
        tied_pairs=sum(_tied(scores_A, rewards_A) for _, scores_A, rewards_A in kept),
    )


def _tied(scores_A: FloatArray, rewards_A: FloatArray) -> int:
    better, worse = np.nonzero(scores_A[:, None] > scores_A[None, :])
    return int((rewards_A[better] == rewards_A[worse]).sum())
