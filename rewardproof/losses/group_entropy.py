"""The entropy of a softmax over a group's standardised rewards: low where one answer stands out from others that are alike."""

# Shapes: P prompts, K answers to a prompt.

from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import full_precision


def group_entropy(rewards_PK: Tensor, *, epsilon: float = 0.0) -> Tensor:
    r"""Entropy of each group's softmax over its rewards in units of their spread, shape `(P,)`, in nats.

    .. math:: z = \frac{r - \bar r}{\sqrt{\tfrac1K \sum_k (r_k - \bar r)^2 + \epsilon^2}}, \qquad
              p = \mathrm{softmax}(z), \qquad H = -\sum_k p_k \log p_k

    Shift and scale of the rewards do not enter, so descent cannot widen gaps: it changes the shape of a group, towards one high reward and
    equal others. The gradient grows as 1 / spread until `epsilon` bounds it; with `epsilon = 0` it is NaN where all rewards are equal. Of
    two answers the standardised rewards are always 1 and -1: the entropy is a constant, and its gradient 0.

    Args:
        rewards_PK: Rewards of K answers to each prompt, any float dtype.
        epsilon: Spread, in reward units, below which a group counts less and less; the entropy of equal rewards is log K then.

    Raises:
        ConfigError: There is one answer a prompt.

    Example:
        >>> import torch
        >>> group_entropy(torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]))
        tensor([0.7909, 1.0131, 1.2052])

    Reference:
        R2M, arXiv:2601.22664, eq. 6; the standard deviation is the one with 1/K.
    """
    if rewards_PK.shape[1] < 2:
        raise ConfigError(
            f"The entropy of a group got {rewards_PK.shape[1]} answer a prompt, expected 3 or more: one answer has no spread. Sample more."
        )
    rewards_PK = full_precision(rewards_PK)
    centred_PK = rewards_PK - rewards_PK.mean(dim=1, keepdim=True)
    spread_P1 = (centred_PK.square().mean(dim=1, keepdim=True) + epsilon**2).sqrt()
    log_share_PK = (centred_PK / spread_P1).log_softmax(dim=1)
    return -(log_share_PK.exp() * log_share_PK).sum(dim=1)
