"""REINFORCE over Bernoulli masks: which heads to replace is learned from the losses that masks drawn at random lead to."""

# Shapes: M masks, L layers, H heads.

import torch
from torch import Tensor


def mask_probabilities(logits_LH: Tensor, *, clamp: float = 1e-3) -> Tensor:
    """Probability with which each head is replaced, kept away from 0 and 1, where nothing would ever be tried again.

    Args:
        logits_LH: A logit a head, any shape.
        clamp: Least distance from 0 and 1.

    Example:
        >>> mask_probabilities(torch.tensor([-1.0, 50.0]))
        tensor([0.2689, 0.9990])
    """
    return logits_LH.sigmoid().clamp(clamp, 1 - clamp)


def mask_objective(logits_LH: Tensor, masks_MLH: Tensor, losses_M: Tensor, *, clamp: float = 1e-3, epsilon: float = 1e-3) -> Tensor:
    r"""What descent lowers so that masks with low losses grow likelier; a score-function estimate with a standardised loss.

    .. math:: \sum_m \frac{\ell_m - \bar\ell}{s + \epsilon} \sum_{l,h} \log \mathrm{Bernoulli}(m_{lh}; p_{lh})

    :math:`\bar\ell` and :math:`s` are mean and standard deviation (of a sample) of the losses of this draw.

    Args:
        logits_LH: A logit a head, shape `(L, H)`.
        masks_MLH: The masks drawn, 1 where a head is replaced, shape `(M, L, H)`.
        losses_M: The loss that each mask led to, two or more, shape `(M,)`; no gradient flows through it.
        clamp: As of `mask_probabilities`; a head beyond it gets no gradient.
        epsilon: Added to the standard deviation, so that masks which all do alike move nothing far.

    Returns:
        A scalar.

    Example:
        >>> logits = torch.zeros(1, 2, requires_grad=True)
        >>> masks = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> mask_objective(logits, masks, torch.tensor([0.0, 2.0]), epsilon=0.0).backward()
        >>> logits.grad                        # the first head helped, the second was never tried
        tensor([[-0.7071,  0.0000]])

    Reference:
        Williams, Simple statistical gradient-following algorithms, 1992; over heads in Huang et al., arXiv:2406.15334.
    """
    chosen_MLH = masks_MLH.to(logits_LH.dtype)
    probabilities_LH = mask_probabilities(logits_LH, clamp=clamp)
    log_probs_M = (chosen_MLH * probabilities_LH.log() + (1 - chosen_MLH) * (1 - probabilities_LH).log()).flatten(1).sum(dim=1)
    losses_M = losses_M.detach().to(logits_LH.dtype)
    standardised_M = (losses_M - losses_M.mean()) / (losses_M.std() + epsilon)
    return torch.dot(standardised_M, log_probs_M)
