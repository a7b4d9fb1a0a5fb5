"""The clipped surrogate of a policy gradient, and the clipped error of its values."""

# Shapes: B answers, T tokens.

from typing import Literal

import torch
from torch import Tensor

from rewardproof.losses.reduction import full_precision

Aggregate = Literal["token", "answer", "sum"]


def masked_mean(values_BT: Tensor, mask_BT: Tensor, aggregate: Aggregate) -> Tensor:
    """One number of tokens' values.

    Args:
        values_BT: One a token.
        mask_BT: Which tokens are an answer's.
        aggregate: `token`: mean over all tokens of the batch, long answers weigh more; `answer`: mean over an answer's tokens, then over
            answers; `sum`: sum over an answer's tokens, then mean over answers, the plain policy gradient.

    Example:
        >>> values, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> [masked_mean(values, mask, kind).item() for kind in ("token", "answer", "sum")]
        [2.0, 2.5, 3.0]
    """
    values_BT = full_precision(values_BT)
    mask_BT = mask_BT.to(values_BT.dtype)
    total_B = (values_BT * mask_BT).sum(dim=1)
    if aggregate == "token":
        return total_B.sum() / mask_BT.sum()
    return (total_B / mask_BT.sum(dim=1) if aggregate == "answer" else total_B).mean()


def clipped_surrogate(
    log_probs_BT: Tensor,
    sampled_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float = 0.2,
    aggregate: Aggregate = "token",
    whole_answers: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Loss whose descent raises the probability of what was better than expected, and the share of tokens where clipping decides.

    .. math:: -\min\left(\rho A,\; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, A\right), \qquad \rho = \pi(y) / \pi_\text{sampled}(y)

    Args:
        log_probs_BT: Log-probabilities of the sampled tokens under the policy, shape `(B, T)`.
        sampled_BT: The same when they were sampled; no gradient.
        advantages_BT: Advantage of each token; an answer's own is repeated over its tokens.
        mask_BT: Which tokens are an answer's.
        clip: The width :math:`\epsilon`.
        aggregate: As in `masked_mean`.
        whole_answers: One ratio for an answer, the product of its tokens', instead of one a token.

    Reference:
        Schulman et al., arXiv:1707.06347.
    """
    gap_BT = full_precision(log_probs_BT) - full_precision(sampled_BT.detach())
    gap_BT = gap_BT * mask_BT.to(gap_BT.dtype)
    ratio_BT = (gap_BT.sum(dim=1, keepdim=True).expand_as(gap_BT) if whole_answers else gap_BT).exp()
    plain_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT
    decides_BT = (clipped_BT < plain_BT).to(plain_BT.dtype)
    return masked_mean(-torch.minimum(plain_BT, clipped_BT), mask_BT, aggregate), masked_mean(decides_BT, mask_BT, "token").detach()


def clipped_value_loss(values_BT: Tensor, sampled_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float = 0.2) -> Tensor:
    r"""Half the squared error of values, no smaller than if they had moved by at most `clip` since sampling; mean over tokens.

    Args:
        values_BT: Values now, shape `(B, T)`.
        sampled_BT: Values when the answers were sampled.
        returns_BT: What they should have been.
        mask_BT: Which tokens are an answer's.
        clip: How far values may move.
    """
    values_BT, sampled_BT = full_precision(values_BT), full_precision(sampled_BT)
    near_BT = sampled_BT + (values_BT - sampled_BT).clamp(-clip, clip)
    error_BT = torch.maximum((values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2)
    return 0.5 * masked_mean(error_BT, mask_BT, "token")
