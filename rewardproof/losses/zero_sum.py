r"""Batch-wise sum-to-zero regularisation: a penalty on the mean reward of a batch, which pairs alone leave free.

With `m` the mean of a batch's 2B rewards it is a function of their sum alone, so every reward has the same gradient: it moves the level of
the batch and leaves its spread to the pairs. It is neither `reward_l2`, which pulls each reward by its own size, nor `centering`, which
pulls each pair's sum.
"""

# Shapes: B pairs in the batch.

from typing import Literal, get_args

from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import full_precision

ZeroSum = Literal["mean_squared", "sum_squared"]


def zero_sum(rewards_sum: Tensor, n_pairs: Tensor | float, *, form: ZeroSum = "mean_squared") -> Tensor:
    r"""The penalty of a batch, from the sum :math:`S` of its 2B rewards.

    .. math:: \text{mean\_squared:}\; B \, m^2 = \frac{S^2}{4B}, \qquad \text{sum\_squared:}\; S^2, \qquad m = \frac{S}{2B}

    Args:
        rewards_sum: Sum of the rewards of both sides of all pairs, a scalar.
        n_pairs: The number of pairs :math:`B`, above 0; a ranking whose pairs are averaged is one, and so is its sum.
        form: `mean_squared`, whose gradient with respect to each reward is :math:`m`, or `sum_squared`, :math:`4B` times as much.

    Returns:
        Squared reward units, float32 (float64 if given float64).

    Raises:
        ConfigError: If the form is unknown.

    Example:
        >>> import torch
        >>> rewards = torch.tensor([3.0, 1.0, 2.0, 0.0], requires_grad=True)  # two pairs, m = 1.5
        >>> penalty = zero_sum(rewards.sum(), 2)
        >>> penalty.backward()
        >>> penalty.detach(), rewards.grad
        (tensor(4.5000), tensor([1.5000, 1.5000, 1.5000, 1.5000]))

    Reference:
        Hong et al., arXiv:2505.07271; `mean_squared` is the form of the released code.
    """
    return zero_sum_slope(rewards_sum, n_pairs, form=form) * full_precision(rewards_sum) / 2


def zero_sum_part(part: Tensor, rewards_sum: Tensor, n_pairs: Tensor | float, *, form: ZeroSum = "mean_squared") -> Tensor:
    r"""One part's share of the penalty of a batch that is computed in parts.

    The penalty is not linear in the parts' sums :math:`S_k`, but its slope at the whole sum is the same for all of them. With the slope
    :math:`P'(S)` held constant,

    .. math:: P'(S) \left(S_k - \tfrac12 \bar S_k\right), \qquad \bar S_k \text{ without gradient,}

    adds up to :math:`P'(S) \, S / 2 = P(S)` over the parts, since the penalty is quadratic, and has the gradient :math:`P'(S)` of the
    penalty itself.

    Args:
        part: Sum of the part's rewards, with a gradient.
        rewards_sum: The whole batch's sum.
        n_pairs: The whole batch's pairs.
        form: As in `zero_sum`.

    Returns:
        A scalar; over the parts of a batch it adds up to `zero_sum` of the whole, in value and in gradient.

    Raises:
        ConfigError: If the form is unknown.

    Example:
        >>> import torch
        >>> parts = torch.tensor([4.0, 2.0])
        >>> sum(zero_sum_part(part, parts.sum(), 2) for part in parts), zero_sum(parts.sum(), 2)
        (tensor(4.5000), tensor(4.5000))
    """
    part = full_precision(part)
    return zero_sum_slope(rewards_sum, n_pairs, form=form).detach() * (part - part.detach() / 2)


def zero_sum_slope(rewards_sum: Tensor, n_pairs: Tensor | float, *, form: ZeroSum) -> Tensor:
    """Derivative of the penalty with respect to the sum, which is that with respect to every single reward.

    Raises:
        ConfigError: If the form is unknown.

    Example:
        >>> import torch
        >>> zero_sum_slope(torch.tensor(6.0), 2, form="mean_squared"), zero_sum_slope(torch.tensor(6.0), 2, form="sum_squared")
        (tensor(1.5000), tensor(12.))
    """
    if form not in get_args(ZeroSum):
        raise ConfigError(f"form={form!r} is unknown; expected one of {', '.join(get_args(ZeroSum))}, which differ 4B-fold. Correct it.")
    return full_precision(rewards_sum) / (2 * n_pairs) if form == "mean_squared" else 2 * full_precision(rewards_sum)
