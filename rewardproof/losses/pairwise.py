"""Losses of a preference pair beside Bradley-Terry: the hinge, Bradley-Terry on a normalised gap, and the reward-decoupled loss."""

# Shapes: B pairs in the batch.

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape

SMALLEST_NORM = 1e-6
"""Norm of a pair's rewards below which `normalised` divides by this instead: the direction of a zero vector is undefined."""


def hinge(chosen_B: Tensor, rejected_B: Tensor, *, margin_B: Tensor | float = 0.0, reduction: Reduction = "mean") -> Tensor:
    r"""How far the gap falls short of the margin; pairs beyond it cost nothing and teach nothing.

    .. math:: \max(0, m - (c - r))

    Args:
        chosen_B: Scores of the preferred answers, shape `(B,)`, any float dtype.
        rejected_B: Scores of the other answers, same shape.
        margin_B: Gap in reward units beyond which a pair costs nothing; one number or one a pair. With 0 constant rewards cost nothing.
        reduction: `mean` over the pairs, `sum`, or `none` for one loss a pair.

    Returns:
        Loss in reward units, float32 (float64 if given float64): a scalar, or shape `(B,)` with `none`.

    Raises:
        DataError: If chosen and rejected differ in shape, or a margin tensor has another shape than the pairs.
        ConfigError: If the reduction is unknown.

    Example:
        >>> hinge(torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.0]), margin_B=1.0, reduction="none")
        tensor([0.0000, 0.5000])

    Reference:
        Herbrich et al., Large Margin Rank Boundaries for Ordinal Regression, 2000; as a reward model's loss Hong et al., arXiv:2505.07271.
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    if isinstance(margin_B, Tensor) and margin_B.ndim:
        require_same_shape(margin_B, chosen_B, "margin_B and chosen")
    return reduce(F.relu(margin_B - (full_precision(chosen_B) - full_precision(rejected_B))), reduction)


def normalised(chosen_B: Tensor, rejected_B: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    r"""Bradley-Terry on the gap over the norm of the pair's two rewards, so that the scale of rewards says nothing.

    .. math:: -\log \sigma\left(\frac{c - r}{\tau \sqrt{c^2 + r^2}}\right)

    The fraction lies within :math:`\pm\sqrt2 / \tau`, so the loss never vanishes; its gradient grows as rewards come near zero.

    Args:
        chosen_B: Scores of the preferred answers, shape `(B,)`, any float dtype.
        rejected_B: Scores of the other answers, same shape.
        temperature: The divisor :math:`\tau`, above 0.
        reduction: `mean` over the pairs, `sum`, or `none` for one loss a pair.

    Returns:
        Loss in nats, float32 (float64 if given float64): a scalar, or shape `(B,)` with `none`.

    Raises:
        DataError: If chosen and rejected differ in shape.
        ConfigError: If the temperature is not positive or the reduction is unknown.

    Example:
        >>> small, large = (normalised(torch.tensor([3.0]) * scale, torch.tensor([1.0]) * scale) for scale in (1, 100))
        >>> small, bool(torch.isclose(small, large))
        (tensor(0.4261), True)

    Reference:
        Hong et al., arXiv:2505.07271, the baseline "BT-Norm".
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    if not temperature > 0:
        raise ConfigError(
            f"temperature={temperature} divides the normalised gap, expected a number above 0: it would turn preferences round. 1 is usual."
        )
    chosen_B, rejected_B = full_precision(chosen_B), full_precision(rejected_B)
    norm_B = (chosen_B.square() + rejected_B.square()).clamp_min(SMALLEST_NORM**2).sqrt()
    return reduce(-F.logsigmoid((chosen_B - rejected_B) / (temperature * norm_B)), reduction)


def decoupled(chosen_B: Tensor, rejected_B: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Bradley-Terry, and beside it the sign of either reward: chosen answers above zero, rejected ones below.

    .. math:: -\log \sigma(c - r) - \log \sigma(c) - \log \sigma(-r)

    Args:
        chosen_B: Scores of the preferred answers, shape `(B,)`, any float dtype.
        rejected_B: Scores of the other answers, same shape.
        reduction: `mean` over the pairs, `sum`, or `none` for one loss a pair.

    Returns:
        Loss in nats, float32 (float64 if given float64): a scalar, or shape `(B,)` with `none`.

    Raises:
        DataError: If chosen and rejected differ in shape.
        ConfigError: If the reduction is unknown.

    Example:
        >>> decoupled(torch.tensor([0.0, -100.0]), torch.tensor([0.0, 100.0]), reduction="none")
        tensor([  2.0794, 400.0000])

    Reference:
        Yuan et al., Eurus, arXiv:2404.02078 (the reward model's objective).
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    chosen_B, rejected_B = full_precision(chosen_B), full_precision(rejected_B)
    return reduce(-F.logsigmoid(torch.stack((chosen_B - rejected_B, chosen_B, -rejected_B))).sum(dim=0), reduction)
