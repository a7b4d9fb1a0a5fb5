"""Binary cross-entropy of a verdict, right or wrong, on logits."""

# Shapes: C answers.

import torch.nn.functional as F
from torch import Tensor

from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape


def verdict(logits_C: Tensor, labels_C: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Negative log-likelihood of labels of right and wrong.

    .. math:: -y \log \sigma(z) - (1 - y) \log (1 - \sigma(z))

    Args:
        logits_C: What the head says of each answer, shape `(C,)`, any float dtype.
        labels_C: 1 for a right answer and 0 for a wrong one, same shape.
        reduction: `mean` over the answers, `sum`, or `none` for one loss an answer.

    Returns:
        Loss in nats, float32 (float64 if given float64): a scalar, or shape `(C,)` with `none`.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> import torch
        >>> verdict(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]), reduction="none")
        tensor([0.1269, 2.1269])

    Reference:
        Hong et al., Cooper, arXiv:2508.05613 (VerifyRM).
    """
    require_same_shape(logits_C, labels_C, "logits and labels")
    logits_C = full_precision(logits_C)
    loss_C = F.binary_cross_entropy_with_logits(logits_C, labels_C.to(logits_C.dtype), reduction="none")
    return reduce(loss_C, reduction)
