r"""Reward-guided choice of the next token, among those that a policy finds likely: the paper's rule and the released sampler's.

The paper's rule takes one token of the K likeliest, with r the reward of the answer up to and including it:

.. math:: \arg\min_k\; r_k - \alpha \log \pi_k \quad\text{(lowers the reward)}, \qquad \arg\max_k\; r_k + \alpha \log \pi_k

The released sampler draws it from

.. math:: \text{softmax}\big((\text{softmax}(\pi / \tau) + \text{softmax}(\mp r / \tau)) / \tau\big),

whose first part is a softmax of probabilities: it all but forgets how likely the policy finds a token.

Reference:
    REFORM, arXiv:2507.06419, eq. 6; the sampler of its code, pankayaraj/ACL_2026_REFORM, commit 926943d.
"""

# R rows, K candidates of each.
from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewardproof.config import Section

Direction = Literal["down", "up"]
"""Whether an answer is sought whose reward is too low or too high."""
_SIGN = {"down": -1.0, "up": 1.0}


class Guidance(Section):
    """How tokens are chosen between a policy's likelihood and a reward."""

    form: Literal["argmin", "released"] = "argmin"
    """`argmin`: the paper's rule, which takes one token; `released`: the sampler of the paper's code, which draws one."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Tokens between which the reward decides, the policy's likeliest; 5 in the released code, not given in the paper."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the policy's log-probability against the reward, for `argmin`: 0 leaves the choice to the reward, a large one to the
    policy. The paper does not give it."""
    tau: Annotated[float, Field(gt=0)] = 0.6
    """Temperature of all three softmaxes, for `released`."""


def argmin_choice(log_probs_RK: Tensor, rewards_RK: Tensor, *, direction: Direction, alpha: float) -> Tensor:
    """The candidate that the paper's rule takes in every row, shape `(R,)`; of equal ones the first.

    Args:
        log_probs_RK: Log-probabilities under the policy, nats.
        rewards_RK: Rewards of the answers up to each candidate.
        direction: Whether rewards are to be low or high.
        alpha: Weight of the log-probabilities.

    Example:
        >>> log_probs, rewards = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.0, -1.0, 2.0]])
        >>> [argmin_choice(log_probs, rewards, direction=way, alpha=0.0).item() for way in ("down", "up")]
        [1, 2]
        >>> argmin_choice(log_probs, rewards, direction="up", alpha=10.0).item()
        0
    """
    return (_SIGN[direction] * rewards_RK + alpha * log_probs_RK).argmax(dim=-1)


def released_probabilities(log_probs_RK: Tensor, rewards_RK: Tensor, *, direction: Direction, tau: float) -> Tensor:
    """Probabilities with which the released sampler draws each candidate, shape `(R, K)`.

    Args:
        log_probs_RK: Log-probabilities of the likeliest tokens under the policy; of all tokens, so that these do not add up to one.
        rewards_RK: Rewards of the answers up to each candidate.
        direction: Whether rewards are to be low or high.
        tau: The temperature.

    Example:
        >>> log_probs, rewards = torch.tensor([[0.9, 0.05, 0.03, 0.01, 0.01]]).log(), torch.tensor([[0.0, 0.0, 0.0, 0.0, 50.0]])
        >>> released_probabilities(log_probs, rewards, direction="up", tau=0.6)[0, -1]
        tensor(0.5158)
    """
    likely_RK = (log_probs_RK.exp() / tau).softmax(dim=-1)
    wanted_RK = (_SIGN[direction] * rewards_RK / tau).softmax(dim=-1)
    return ((likely_RK + wanted_RK) / tau).softmax(dim=-1)


def guided_choice(log_probs_RK: Tensor, rewards_RK: Tensor, uniform_R: Tensor, guidance: Guidance, direction: Direction) -> Tensor:
    """The candidate taken in every row, shape `(R,)`; a row's number in [0, 1) decides where one is drawn."""
    if guidance.form == "argmin":
        return argmin_choice(log_probs_RK, rewards_RK, direction=direction, alpha=guidance.alpha)
    cumulative_RK = released_probabilities(log_probs_RK, rewards_RK, direction=direction, tau=guidance.tau).cumsum(dim=-1)
    place_R1 = torch.searchsorted(cumulative_RK, uniform_R[:, None] * cumulative_RK[:, -1:], right=True)
    return place_R1[:, 0].clamp(max=cumulative_RK.shape[1] - 1)
