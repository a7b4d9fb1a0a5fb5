"""How far a reward model tells a policy's answers to one prompt apart (MetaRM)."""

# Shapes: P prompts, K answers to each.

from typing import Literal

import torch
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import full_precision

Spread = Literal["tanh", "sigmoid"]


def pairwise_spread(rewards_PK: Tensor, *, form: Spread = "tanh", epsilon: float = 1e-3) -> Tensor:
    r"""Bounded distance of two answers' rewards, over all pairs of a prompt's answers, averaged over the prompts.

    .. math:: \frac{1}{P} \sum_p \frac{2}{K^2} \sum_{i < j} s(d_{ij}), \qquad d_{ij} = \sqrt{(r_i - r_j)^2 + \epsilon^2} - \epsilon

    As published `s` is the logistic function and :math:`\epsilon` is 0: then a pair counts one half where its rewards are equal, and has
    a kink there. :math:`\tanh(d/2) = 2\sigma(d) - 1` has no such constant, and :math:`\epsilon` no kink.

    Args:
        rewards_PK: Rewards of K answers to each prompt.
        form: The function `s`: `sigmoid`, or `tanh` of half the distance.
        epsilon: In reward units; what differs by less counts less and less. 0 is the plain distance, whose gradient at 0 is taken as 0.

    Returns:
        Scalar in float32 (float64 if given float64).

    Raises:
        ConfigError: There is one answer a prompt.

    Example:
        >>> round(float(pairwise_spread(torch.tensor([[0.0, 0.0, 2.0]]), form="sigmoid", epsilon=0.0)), 4)
        0.5026

    Reference:
        Wang et al., arXiv:2401.06080, algorithm 1.
    """
    count = rewards_PK.shape[1]
    if count < 2:
        raise ConfigError(f"MetaRM got {count} answer a prompt, expected 2 or more: it compares a policy's answers. Sample more.")
    first_M, second_M = torch.triu_indices(count, count, offset=1, device=rewards_PK.device)
    rewards_PK = full_precision(rewards_PK)
    gap_PM = rewards_PK[:, first_M] - rewards_PK[:, second_M]
    distance_PM = (gap_PM**2 + epsilon**2).sqrt() - epsilon if epsilon else gap_PM.abs()
    told_PM = torch.sigmoid(distance_PM) if form == "sigmoid" else torch.tanh(distance_PM / 2)
    return (told_PM.sum(dim=1) * 2 / count**2).mean()
