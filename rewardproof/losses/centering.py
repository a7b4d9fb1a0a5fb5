"""Two ways to hold rewards near zero: the Bradley-Terry loss fixes differences only and lets their level drift."""

# Shapes: B pairs in the batch.

from torch import Tensor

from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape


def reward_l2(scores: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Mean square of all scores given, chosen and rejected together.

    .. math:: \frac{1}{2B} \sum_b (c_b^2 + r_b^2)

    This is exactly the term :math:`\frac{\eta}{2} \, \mathrm{mean}_B[c^2 + r^2]` of UMM-RM without its weight: multiply by :math:`\eta`
    itself, not by half of it, since the mean already runs over two scores a pair.

    Args:
        scores: Scores of every answer, any shape; for pairs the 2B scores of both sides.
        reduction: `mean`, `sum`, or `none` for the squares.

    Returns:
        Squared reward units, float32 (float64 if given float64).

    Raises:
        ConfigError: If the reduction is unknown.

    Example:
        >>> import torch
        >>> reward_l2(torch.tensor([3.0, 1.0]))  # (1/2) (3^2 + 1^2)
        tensor(5.)

    Reference:
        UMM-RM, arXiv:2512.00724; Coste et al., arXiv:2310.02743 (weight 0.001).
    """
    return reduce(full_precision(scores).square(), reduction)


def centering(chosen_B: Tensor, rejected_B: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Square of each pair's sum of scores: it holds the midpoint at zero and leaves the gap free.

    .. math:: \frac{1}{B} \sum_b (c_b + r_b)^2

    Args:
        chosen_B: Scores of the preferred answers, shape `(B,)`.
        rejected_B: Scores of the other answers, same shape.
        reduction: `mean` over the pairs, `sum`, or `none`.

    Returns:
        Squared reward units, float32 (float64 if given float64); TRL's `center_rewards_coefficient` multiplies exactly this.

    Raises:
        DataError: If the shapes differ.
        ConfigError: If the reduction is unknown.

    Example:
        >>> import torch
        >>> centering(torch.tensor([3.0]), torch.tensor([-3.0])), centering(torch.tensor([3.0]), torch.tensor([1.0]))
        (tensor(0.), tensor(16.))

    Reference:
        Eisenstein et al., Helping or Herding?, arXiv:2312.09244, eq. 2.
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    return reduce((full_precision(chosen_B) + full_precision(rejected_B)).square(), reduction)
