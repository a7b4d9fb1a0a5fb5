"""How much better an action was than expected: GAE over tokens, and two estimators that compare answers to one prompt."""

# Shapes: B answers, T tokens, P prompts, K answers to a prompt.

import torch
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import full_precision
from rewardproof.losses.totals import Total, own_part


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, discount: float = 1.0, trace: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimates and the returns that values learn from, zero outside the mask.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_{l \ge 0} (\gamma \lambda)^l \delta_{t+l}, \qquad R_t = A_t + V_t

    Args:
        rewards_BT: Reward received at each token, shape `(B, T)`; an answer's own reward stands at its last token.
        values_BT: Value of the state in which each token is chosen, same shape.
        mask_BT: Which tokens are an answer's, without gaps; after the last the value is 0.
        discount: The factor :math:`\gamma`.
        trace: The factor :math:`\lambda`: 1 is the plain return less the value, 0 the one-step error.

    Example:
        >>> advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1, 2), trace=1.0)
        >>> advantages, returns
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))

    Reference:
        Schulman et al., arXiv:1506.02438.
    """
    rewards_BT, values_BT = full_precision(rewards_BT), full_precision(values_BT)
    mask_BT = mask_BT.to(values_BT.dtype)
    advantages_BT = torch.zeros_like(values_BT)
    running_B = following_B = torch.zeros_like(values_BT[:, 0])
    for place in range(values_BT.shape[1] - 1, -1, -1):
        inside_B = mask_BT[:, place]
        error_B = rewards_BT[:, place] + discount * following_B - values_BT[:, place]
        running_B = inside_B * (error_B + discount * trace * running_B)
        following_B = inside_B * values_BT[:, place]
        advantages_BT[:, place] = running_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def leave_one_out(rewards_PK: Tensor) -> Tensor:
    """Each answer's reward less the mean of the other answers to its prompt (RLOO), shape `(P, K)`.

    Raises:
        ConfigError: There are no others.

    Example:
        >>> leave_one_out(torch.tensor([[1.0, 0.0, 0.5]]))
        tensor([[ 0.7500, -0.7500,  0.0000]])

    Reference:
        Ahmadian et al., arXiv:2402.14740.
    """
    count = _several(rewards_PK, "RLOO")
    rewards_PK = full_precision(rewards_PK)
    return (rewards_PK - rewards_PK.mean(dim=1, keepdim=True)) * count / (count - 1)


def group_relative(rewards_PK: Tensor, *, scaled: bool = True, epsilon: float = 1e-4) -> Tensor:
    """Each answer's reward less its prompt's mean, over the prompt's standard deviation (GRPO), shape `(P, K)`.

    Args:
        rewards_PK: Rewards of K answers to each prompt.
        scaled: Divide by the standard deviation, with K - 1; without it prompts keep their own spread (Dr. GRPO).
        epsilon: Added to the standard deviation; answers of equal reward get 0.

    Raises:
        ConfigError: There is one answer a prompt.

    Reference:
        Shao et al., arXiv:2402.03300; without the scale Liu et al., arXiv:2503.20783.
    """
    _several(rewards_PK, "GRPO")
    rewards_PK = full_precision(rewards_PK)
    centred_PK = rewards_PK - rewards_PK.mean(dim=1, keepdim=True)
    return centred_PK / (rewards_PK.std(dim=1, keepdim=True) + epsilon) if scaled else centred_PK


def whitened(values_BT: Tensor, mask_BT: Tensor, *, total: Total = own_part, epsilon: float = 1e-8) -> Tensor:
    """Values less their mean over the masked tokens, over their standard deviation; zero outside the mask.

    Args:
        values_BT: One a token.
        mask_BT: Which tokens count.
        total: Sums over the processes that hold parts of the batch.
        epsilon: Added to the variance.
    """
    values_BT = full_precision(values_BT)
    mask_BT = mask_BT.to(values_BT.dtype)
    count, summed = total(torch.stack((mask_BT.sum(), (values_BT * mask_BT).sum())))
    centred_BT = (values_BT - summed / count) * mask_BT
    return centred_BT / (total((centred_BT**2).sum()) / count + epsilon).sqrt()


def _several(rewards_PK: Tensor, name: str) -> int:
    count = rewards_PK.shape[1]
    if count < 2:
        raise ConfigError(f"{name} got {count} answer a prompt, expected 2 or more: it compares an answer with the others. Sample more.")
    return count
