"""Losses of a language model on preference pairs, of the log-probabilities that it gives whole answers: DPO, IPO, hinge, SimPO.

An answer's log-probability is the sum over its tokens, but for SimPO, which takes the mean. What length explains can be
taken out of a pair's gap.
"""

# Shapes: B pairs in the batch.

import torch.nn.functional as F
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape


def log_ratio_gap(chosen_B: Tensor, rejected_B: Tensor, reference_chosen_B: Tensor, reference_rejected_B: Tensor) -> Tensor:
    r"""The gap of two answers' log-ratios to the reference, in nats, shape `(B,)`.

    .. math:: \Delta = \log \frac{\pi(y_w | x)}{\pi_\text{ref}(y_w | x)} - \log \frac{\pi(y_l | x)}{\pi_\text{ref}(y_l | x)}

    Args:
        chosen_B: Log-probabilities of the preferred answers under the model that trains.
        rejected_B: Of the other answers.
        reference_chosen_B: Of the preferred answers under the reference; no gradient flows there.
        reference_rejected_B: Of the other answers under the reference.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> import torch
        >>> log_ratio_gap(torch.tensor([-3.0]), torch.tensor([-9.0]), torch.tensor([-4.0]), torch.tensor([-8.0]))
        tensor([2.])
    """
    require_same_shape(chosen_B, rejected_B, "chosen and rejected")
    require_same_shape(reference_chosen_B, reference_rejected_B, "chosen and rejected under the reference")
    require_same_shape(chosen_B, reference_chosen_B, "log-probabilities and those under the reference")
    # Each answer's own log-ratio first: both terms are small, where log-probabilities of long answers are in the hundreds.
    better_B = full_precision(chosen_B) - full_precision(reference_chosen_B.detach())
    return better_B - (full_precision(rejected_B) - full_precision(reference_rejected_B.detach()))


def without_length(gap_B: Tensor, longer_B: Tensor, *, alpha: float, beta: float) -> Tensor:
    r"""The gap left to learn where the reward that is learnt loses :math:`\alpha` a token: :math:`\beta \Delta` plus the length's part.

    .. math:: \Delta + \frac{\alpha}{\beta} (|y_w| - |y_l|)

    The policy of that reward is :math:`\pi \propto \pi_\text{ref} \exp((r - \alpha |y|) / \beta)`, so the data's reward is
    :math:`\beta \log \pi / \pi_\text{ref} + \alpha |y|`: a preference that length alone explains needs no gap.

    Args:
        gap_B: The gap of each pair, shape `(B,)`.
        longer_B: Tokens of the preferred answer less those of the other.
        alpha: Price of a token; below 0 length is sought.
        beta: What makes an implicit reward of a log-ratio.

    Raises:
        ConfigError: `beta` is not positive.
        DataError: If the shapes differ.

    Example:
        >>> import torch
        >>> without_length(torch.tensor([0.0]), torch.tensor([20]), alpha=0.01, beta=0.1)
        tensor([2.])

    Reference:
        Park et al., arXiv:2403.19159.
    """
    require_same_shape(gap_B, longer_B, "gaps and differences of length")
    gap_B = full_precision(gap_B)
    return gap_B + alpha / _positive(beta, "beta") * longer_B.to(gap_B)


def dpo(gap_B: Tensor, *, beta: float = 0.1, reduction: Reduction = "mean") -> Tensor:
    r"""Bradley-Terry on the implicit rewards :math:`\beta \log \pi / \pi_\text{ref}`.

    .. math:: -\log \sigma(\beta \Delta)

    Of mean log-probabilities without a reference it is SimPO's loss (its margin left out).

    Args:
        gap_B: The gap of each pair, shape `(B,)`.
        beta: Inverse of the temperature; the implicit reward in nats.
        reduction: `mean` over the pairs, `sum`, or `none` for one loss a pair.

    Returns:
        Nats, float32 (float64 if given float64).

    Raises:
        ConfigError: `beta` is not positive, or the reduction is unknown.

    Example:
        >>> import torch
        >>> dpo(torch.zeros(3), beta=0.1)
        tensor(0.6931)

    Reference:
        Rafailov et al., arXiv:2305.18290, eq. 7. SimPO: Meng et al., arXiv:2405.14734.
    """
    return reduce(-F.logsigmoid(_positive(beta, "beta") * full_precision(gap_B)), reduction)


def policy_hinge(gap_B: Tensor, *, beta: float = 0.1, reduction: Reduction = "mean") -> Tensor:
    r"""Linear until the implicit reward's gap is 1: SLiC-HF's ranking loss on log-ratios.

    .. math:: \max(0, 1 - \beta \Delta)

    Args:
        gap_B: The gap of each pair, shape `(B,)`.
        beta: What makes an implicit reward of a log-ratio.
        reduction: As of `dpo`.

    Raises:
        ConfigError: `beta` is not positive, or the reduction is unknown.

    Example:
        >>> import torch
        >>> policy_hinge(torch.tensor([0.0, 5.0, 20.0]), beta=0.1, reduction="none")
        tensor([1.0000, 0.5000, 0.0000])

    Reference:
        Zhao et al., SLiC-HF, arXiv:2305.10425; with a reference: Liu et al., arXiv:2309.06657.
    """
    return reduce(F.relu(1 - _positive(beta, "beta") * full_precision(gap_B)), reduction)


def ipo(gap_B: Tensor, *, tau: float = 0.1, scale: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    r"""Squared distance of the gap, summed over tokens, from the finite value at which it is to stop.

    .. math:: \left(\Delta - \frac{1}{2 \tau}\right)^2 \cdot \text{scale}

    As :math:`\tau` falls the target and with it the gradient grow; a `scale` of :math:`\tau` or :math:`\tau^2` takes that back. With
    :math:`\tau = \beta / 2` and `scale` :math:`\beta^2` it is :math:`(\beta \Delta - 1)^2`.

    Args:
        gap_B: The gap of each pair, shape `(B,)`.
        tau: Strength of the regularisation towards the reference.
        scale: Factor.
        reduction: As of `dpo`.

    Returns:
        Squared nats, float32 (float64 if given float64).

    Raises:
        ConfigError: `tau` is not positive, or the reduction is unknown.

    Example:
        >>> import torch
        >>> ipo(torch.tensor([0.0, 5.0]), tau=0.1, reduction="none")
        tensor([25.,  0.])

    Reference:
        Azar et al., arXiv:2310.12036, eq. 17.
    """
    return reduce(scale * (full_precision(gap_B) - 1 / (2 * _positive(tau, "tau"))).square(), reduction)


def _positive(value: float, name: str) -> float:
    if value <= 0:
        raise ConfigError(
            f"Got {name}={value}, expected a positive number: at 0 no gap costs less than another, below it the worse answer is learned. "
            "Write 0.1."
        )
    return value
