"""Lagrange multipliers as weights of advantages: squashed or plain, for values that shall reach, equal, or stay below a threshold."""

# Shapes: N constrained streams.

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Sense = Literal["at_least", "equal", "at_most"]
SIGNS: dict[Sense, float] = {"at_least": 1.0, "equal": 1.0, "at_most": -1.0}
"""Whether more of a stream serves its constraint."""


class Mixture(NamedTuple):
    """With what weights advantages are mixed.

    Attributes:
        objective: Of the objective's.
        constraint_N: Of each constrained stream's.
    """

    objective: Tensor
    constraint_N: Tensor


def multiplier_weights(multipliers_N: Tensor, sense: Sense, *, squash: bool = True) -> Tensor:
    """What multipliers count for: in (0, 1) for an inequality, in (-1, 1) for an equality; themselves where they are not squashed.

    Example:
        >>> multiplier_weights(torch.tensor([0.0, 2.0]), "at_least"), multiplier_weights(torch.tensor([0.0, 2.0]), "equal")
        (tensor([0.5000, 0.8808]), tensor([0.0000, 0.9640]))
    """
    if not squash:
        return multipliers_N
    return multipliers_N.tanh() if sense == "equal" else multipliers_N.sigmoid()


def mixture(multipliers_N: Tensor, sense: Sense, *, squash: bool = True) -> Mixture:
    r"""The weights of the mixed advantage.

    .. math:: A = \Big(N - \sum_i \sigma(\mu_i)\Big) A_0 + \sum_i \sigma(\mu_i) A_i

    With :math:`\tanh` in the place of :math:`\sigma` for an equality, and :math:`-\sigma(\mu_i)` before :math:`A_i` where a value must not
    exceed its threshold. Multipliers that are not squashed give the plain Lagrangian, :math:`A_0 + \sum_i \mu_i A_i`.

    Args:
        multipliers_N: The multipliers.
        sense: What the values shall do.
        squash: Whether multipliers are squashed.

    Example:
        >>> mixture(torch.zeros(2), "equal")
        Mixture(objective=tensor(2.), constraint_N=tensor([0., 0.]))

    Reference:
        Moskovitz et al., arXiv:2310.04373, eq. 4.4.
    """
    weights_N = multiplier_weights(multipliers_N, sense, squash=squash)
    objective = len(multipliers_N) - weights_N.sum() if squash else torch.ones_like(weights_N.sum())
    return Mixture(objective, SIGNS[sense] * weights_N)


def multiplier_loss(excess_N: Tensor, multipliers_N: Tensor, sense: Sense, *, squash: bool = True) -> Tensor:
    r"""Loss whose descent raises the multiplier of what falls short and lowers that of what is met; a scalar.

    .. math:: \sum_i (v_i - \theta_i)\, \sigma(\mu_i)

    Args:
        excess_N: Mean return of an episode less its threshold.
        multipliers_N: The multipliers; the loss has a gradient for them.
        sense: What the values shall do; `at_most` turns the excess round.
        squash: Whether multipliers are squashed.

    Reference:
        Moskovitz et al., arXiv:2310.04373, section 4.
    """
    return (SIGNS[sense] * excess_N.detach() * multiplier_weights(multipliers_N, sense, squash=squash)).sum()
