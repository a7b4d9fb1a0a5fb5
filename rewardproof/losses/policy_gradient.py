"""The clipped surrogate of a policy gradient, and the clipped error of its values, as weighted sums over tokens."""

# Shapes: B answers, T tokens.

from typing import Literal

import torch
from torch import Tensor

from rewardproof.losses.reduction import full_precision

Aggregate = Literal["token", "answer", "sum"]


def token_weights(mask_BT: Tensor, aggregate: Aggregate, *, n_tokens: float | None = None, n_answers: float | None = None) -> Tensor:
    """Weights with which tokens' losses add up to a batch's, zero outside the mask; parts of a batch add up to the whole.

    Args:
        mask_BT: Which tokens are an answer's.
        aggregate: `token`: the mean over all tokens of the batch, long answers weigh more; `answer`: the mean over an answer's tokens, then
            over answers; `sum`: the sum over an answer's tokens, then the mean over answers, the plain policy gradient.
        n_tokens: Tokens of the whole batch; those of the mask where left out.
        n_answers: Answers of the whole batch; the rows of the mask where left out.

    Example:
        >>> mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> [(torch.tensor([[1.0, 1.0], [4.0, 9.0]]) * token_weights(mask, kind)).sum().item() for kind in ("token", "answer", "sum")]
        [2.0, 2.5, 3.0]
    """
    mask_BT = full_precision(mask_BT)
    if aggregate == "token":
        return mask_BT / (n_tokens or mask_BT.sum())
    weights_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True) if aggregate == "answer" else mask_BT
    return weights_BT / (n_answers or len(mask_BT))


def clipped_surrogate(
    log_probs_BT: Tensor,
    sampled_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    *,
    clip: float = 0.2,
    whole_answers: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Loss whose descent raises the probability of what was better than expected, and how many tokens clipping decides.

    .. math:: -\sum w \min\left(\rho A,\; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, A\right), \qquad
        \rho = \pi(y) / \pi_\text{sampled}(y)

    Args:
        log_probs_BT: Log-probabilities of the sampled tokens under the policy, shape `(B, T)`.
        sampled_BT: The same when they were sampled; no gradient.
        advantages_BT: Advantage of each token; an answer's own is repeated over its tokens.
        weights_BT: As of `token_weights`; a token of weight 0 says nothing.
        clip: The width :math:`\epsilon`.
        whole_answers: One ratio for an answer, the product of its tokens', instead of one a token.

    Reference:
        Schulman et al., arXiv:1707.06347.
    """
    gap_BT = full_precision(log_probs_BT) - full_precision(sampled_BT.detach())
    gap_BT = torch.where(weights_BT > 0, gap_BT, 0.0)
    ratio_BT = (gap_BT.sum(dim=1, keepdim=True).expand_as(gap_BT) if whole_answers else gap_BT).exp()
    plain_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT
    decides_BT = (clipped_BT < plain_BT) & (weights_BT > 0)
    return -(weights_BT * torch.minimum(plain_BT, clipped_BT)).sum(), decides_BT.sum().detach()


def clipped_value_loss(values_BT: Tensor, sampled_BT: Tensor, returns_BT: Tensor, weights_BT: Tensor, *, clip: float = 0.2) -> Tensor:
    r"""Half the squared error of values, no smaller than if they had moved by at most `clip` since sampling.

    Args:
        values_BT: Values now, shape `(B, T)`.
        sampled_BT: Values when the answers were sampled.
        returns_BT: What they should have been.
        weights_BT: As of `token_weights`.
        clip: How far values may move.
    """
    values_BT, sampled_BT = full_precision(values_BT), full_precision(sampled_BT)
    near_BT = sampled_BT + (values_BT - sampled_BT).clamp(-clip, clip)
    error_BT = torch.maximum((values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2)
    return 0.5 * (weights_BT * error_BT).sum()
