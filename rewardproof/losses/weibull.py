"""The Weibull distribution as a variational posterior: its scale by its mean, samples with a gradient, its divergence from a Gamma prior.

A Weibull with shape k and scale λ has mean λ Γ(1 + 1/k); unlike a Gamma it can be sampled by a differentiable transform of uniform noise.
"""

import torch
from torch import Tensor

from rewardproof.losses.reduction import full_precision

EULER_GAMMA = 0.5772156649015329
"""Minus the mean of the logarithm of a standard exponential variable."""


def weibull_scale(mean: Tensor, shape: Tensor) -> Tensor:
    r"""The scale of the Weibull with a given mean, :math:`\lambda = m / \Gamma(1 + 1/k)`.

    Args:
        mean: Means m, >= 0, any shape.
        shape: Shapes k, > 0, broadcast against the means.

    Returns:
        Scales, float32 (float64 if given float64).

    Example:
        >>> weibull_scale(torch.tensor(3.0), torch.tensor(1.0))  # k = 1 is the exponential distribution
        tensor(3.)

    Reference:
        BNRM, arXiv:2602.10623, Algorithm 1, which prints exp(Γ(·)) for Γ(·).
    """
    return full_precision(mean) / torch.lgamma(1 + 1 / full_precision(shape)).exp()


def weibull_sample(scale: Tensor, shape: Tensor, uniform: Tensor) -> Tensor:
    r"""Samples by the inverse of the distribution function, with a gradient to both parameters.

    .. math:: \lambda \left(-\ln \max(1 - u, 10^{-10})\right)^{1/k}

    Args:
        scale: Scales λ, >= 0, any shape.
        shape: Shapes k, > 0, broadcast against the scales.
        uniform: Noise u in [0, 1), broadcast likewise.

    Returns:
        Samples, >= 0, float32 (float64 if given float64).

    Example:
        >>> weibull_sample(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.6321206))  # u = 1 - 1/e
        tensor(2.)

    Reference:
        BNRM, arXiv:2602.10623, eq. 8; Zhang et al., WHAI, arXiv:1803.01328.
    """
    waited = -(1 - full_precision(uniform)).clamp_min(1e-10).log()
    return full_precision(scale) * waited.pow(1 / full_precision(shape))


def weibull_gamma_kl(shape: Tensor, scale: Tensor, *, prior_shape: float = 1.0, prior_rate: float = 1.0) -> Tensor:
    r"""Divergence of a Weibull from a Gamma prior, posterior against prior, element by element.

    .. math::
        \mathrm{KL}\big(\mathrm{W}(k, \lambda) \,\|\, \mathrm{G}(a, b)\big) =
        \gamma \frac{a}{k} - a \ln \lambda + \ln k + b \lambda \Gamma(1 + 1/k) - \gamma - 1 - a \ln b + \ln \Gamma(a)

    Args:
        shape: The posterior's shapes k, > 0.
        scale: The posterior's scales λ, > 0.
        prior_shape: The prior's shape a, > 0.
        prior_rate: The prior's rate b, > 0 (the prior's mean is a/b).

    Returns:
        Divergences in nats, >= 0, float32 (float64 if given float64).

    Example:
        >>> weibull_gamma_kl(torch.tensor([1.0, 1.7]), torch.tensor([1.0, 0.4]))  # k = 1 is the exponential prior itself
        tensor([0.0000, 0.5661])

    Reference:
        BNRM, arXiv:2602.10623, eq. 9, which is printed with the two arguments exchanged.
    """
    k, scale = full_precision(shape), full_precision(scale)
    a, b = k.new_tensor(prior_shape), k.new_tensor(prior_rate)
    expected_log = EULER_GAMMA * a / k - a * scale.log()
    expected_mean = b * scale * torch.lgamma(1 + 1 / k).exp()
    return expected_log + k.log() + expected_mean - EULER_GAMMA - 1 - a * b.log() + torch.lgamma(a)
