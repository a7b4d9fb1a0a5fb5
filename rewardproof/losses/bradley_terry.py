"""The Bradley-Terry loss of a preference pair, with a margin and with labels that may be wrong."""

# Shapes: B pairs in the batch.

import torch.nn.functional as F
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape


def bradley_terry(
    chosen_B: Tensor,
    rejected_B: Tensor,
    *,
    margin_B: Tensor | float = 0.0,
    label_smoothing: Tensor | float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Negative log-likelihood of the recorded choices.

    .. math:: -(1 - s) \log \sigma(c - r - m) - s \log \sigma(r - c - m)

    With `m = 0` the second term is the usual label smoothing; with a margin it is the loss of the swapped pair, so that `s = 1` is
    exactly a flipped label.

    Args:
        chosen_B: Scores of the preferred answers, shape `(B,)`, any float dtype.
        rejected_B: Scores of the other answers, same shape.
        margin_B: Gap in reward units below which a correct pair still costs more than log 2; one number or one a pair.
        label_smoothing: Probability in [0, 1] that a label is wrong; one number or one a pair.
        reduction: `mean` over the pairs, `sum`, or `none` for one loss a pair.

    Returns:
        Loss in nats, float32 (float64 if given float64): a scalar, or shape `(B,)` with `none`.

    Raises:
        DataError: If chosen and rejected differ in shape, or a margin or smoothing tensor has another shape than the pairs.
        ConfigError: If a `label_smoothing` number is outside [0, 1] or the reduction is unknown.

    Example:
        >>> import torch
        >>> bradley_terry(torch.tensor([2.0]), torch.tensor([0.0]))
        tensor(0.1269)
        >>> bradley_terry(torch.tensor([2.0]), torch.tensor([0.0]), margin_B=2.0)
        tensor(0.6931)

    Reference:
        Stiennon et al., arXiv:2009.01325; margin: Touvron et al., arXiv:2307.09288, eq. 2; smoothing: Wang et al., arXiv:2401.06080, eq. 5.
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    for name, value in (("margin_B", margin_B), ("label_smoothing", label_smoothing)):
        if isinstance(value, Tensor) and value.ndim:
            require_same_shape(value, chosen_B, f"{name} and chosen")
    gap_B = full_precision(chosen_B) - full_precision(rejected_B)
    loss_B = -F.logsigmoid(gap_B - margin_B)
    if isinstance(label_smoothing, Tensor):
        smoothing = label_smoothing.to(gap_B)
    elif not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(
            f"label_smoothing={label_smoothing} is not a probability; expected a number in [0, 1], usually below 0.5. "
            "It is the chance that a label is wrong; 0 switches it off."
        )
    elif label_smoothing == 0.0:
        return reduce(loss_B, reduction)
    else:
        smoothing = label_smoothing
    return reduce((1.0 - smoothing) * loss_B - smoothing * F.logsigmoid(-gap_B - margin_B), reduction)
