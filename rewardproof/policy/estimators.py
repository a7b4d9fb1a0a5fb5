"""PPO, RLOO and GRPO as what they differ in: how an answer's rewards become the advantages of its tokens."""

# B answers, T tokens, S streams, K answers to a prompt.
from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rewardproof.losses import Total, gae, group_relative, leave_one_out, own_part, whitened

Estimator = Literal["ppo", "rloo", "grpo"]


class Advantages(NamedTuple):
    """What an update learns from.

    Attributes:
        advantages_BT: Advantage of each token, all streams weighed together.
        returns_SBT: What values should have been; empty where there are no values.
    """

    advantages_BT: Tensor
    returns_SBT: Tensor


def by_values(
    rewards_SBT: Tensor,
    values_SBT: Tensor,
    mask_BT: Tensor,
    weights_S: Tensor,
    *,
    discount: float,
    trace: float,
    whiten: bool,
    whiten_streams: bool = False,
    total: Total = own_part,
) -> Advantages:
    """PPO: generalised advantage estimates of each stream against its own values, weighed, and whitened over the batch's tokens.

    Args:
        rewards_SBT: Rewards a token.
        values_SBT: Values of the states, by stream.
        mask_BT: Which tokens are an answer's.
        weights_S: Weights of the streams.
        discount: Of GAE.
        trace: Of GAE.
        whiten: Give the advantages mean 0 and standard deviation 1.
        whiten_streams: Do that to each stream's, before they are weighed.
        total: Sums over the processes that hold parts of the batch.
    """
    pairs = [gae(rewards, values, mask_BT, discount=discount, trace=trace) for rewards, values in zip(rewards_SBT, values_SBT, strict=True)]
    own = [whitened(advantages, mask_BT, total=total) if whiten_streams else advantages for advantages, _ in pairs]
    advantages_BT = torch.einsum("s,sbt->bt", weights_S, torch.stack(own))
    if whiten:
        advantages_BT = whitened(advantages_BT, mask_BT, total=total)
    return Advantages(advantages_BT, torch.stack([returns for _, returns in pairs]))


def by_comparison(
    rewards_SBT: Tensor,
    mask_BT: Tensor,
    weights_S: Tensor,
    *,
    answers: int,
    scaled: bool | None,
    token_weight: float = 0.0,
    epsilon: float = 1e-4,
) -> Advantages:
    """RLOO and GRPO: an answer's whole reward against those of the other answers to its prompt, the same for all its tokens.

    A token's own reward may be added as its distance from the answer's mean, which leaves the answer's whole advantage what it is.

    Args:
        rewards_SBT: Rewards a token.
        mask_BT: Which tokens are an answer's.
        weights_S: Weights of the streams.
        answers: K, answers to a prompt, consecutive rows.
        scaled: `None` is RLOO; else GRPO, with its division by the prompt's standard deviation or without.
        token_weight: Of the tokens' own rewards.
        epsilon: Added to the standard deviation that GRPO divides by.
    """
    reward_PK = torch.einsum("s,sbt->b", weights_S, rewards_SBT).view(-1, answers)
    advantage_PK = leave_one_out(reward_PK) if scaled is None else group_relative(reward_PK, scaled=scaled, epsilon=epsilon)
    advantages_BT = advantage_PK.reshape(-1, 1) * mask_BT
    if token_weight:
        own_BT = torch.einsum("s,sbt->bt", weights_S, rewards_SBT)
        mean_B1 = own_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True)
        advantages_BT = advantages_BT + token_weight * (own_BT - mean_B1) * mask_BT
    return Advantages(advantages_BT, rewards_SBT.new_zeros(0, *mask_BT.shape))
