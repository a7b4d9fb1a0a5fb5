"""How far a policy is from its reference: estimates of the KL divergence from sampled tokens, and the exact one over a vocabulary."""

# Shapes: … any, V vocabulary.

from typing import Literal

import torch
from torch import Tensor

from rewardproof.losses.reduction import full_precision

KL = Literal["k1", "k2", "k3"]


def sampled_kl(policy: Tensor, reference: Tensor, kind: KL = "k3") -> Tensor:
    r"""Estimate of KL(policy ‖ reference) from what the policy has sampled, in nats, shape as given.

    With :math:`l = \log \pi - \log \pi_\text{ref}` of a sample: :math:`k_1 = l`, without bias; :math:`k_2 = l^2 / 2`, with a bias that
    vanishes with the distance; :math:`k_3 = e^{-l} - 1 + l`, without bias and never negative.

    Args:
        policy: Log-probabilities of the sampled tokens, or of whole answers, under the policy that sampled them.
        reference: The same under the reference.
        kind: Which estimate.

    Example:
        >>> same = torch.tensor([-1.0, -2.0])
        >>> sampled_kl(same, same)
        tensor([0., 0.])

    Reference:
        J. Schulman, Approximating KL divergence, 2020.
    """
    gap = full_precision(policy) - full_precision(reference)
    if kind == "k1":
        return gap
    return 0.5 * gap**2 if kind == "k2" else torch.expm1(-gap) + gap


def exact_kl(policy_V: Tensor, reference_V: Tensor) -> Tensor:
    """KL(policy ‖ reference) over the whole vocabulary, in nats, the last dimension summed.

    Args:
        policy_V: Logits of the policy, shape `(…, V)`.
        reference_V: Logits of the reference, same shape.
    """
    policy_V, reference_V = full_precision(policy_V).log_softmax(dim=-1), full_precision(reference_V).log_softmax(dim=-1)
    return (policy_V.exp() * (policy_V - reference_V)).sum(dim=-1)
