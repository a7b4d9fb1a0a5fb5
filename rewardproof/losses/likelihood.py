"""A language model's loss on the preferred answers, which keeps a reward model's hidden states those of a model that can write them."""

import torch.nn.functional as F
from torch import Tensor

from rewardproof.losses.reduction import Reduction, full_precision, reduce


def chosen_likelihood(log_prob_B: Tensor, *, beta: float = 0.1, reduction: Reduction = "mean") -> Tensor:
    r"""Loss of preferred answers by their log-probabilities, with no reference model and no rejected answer.

    .. math:: -\log \sigma\big(\beta \log \pi(y_c \mid x)\big)

    For the log-probability of a whole answer this is very nearly :math:`-\beta \log \pi`, and it flattens only for answers of a few
    likely tokens.

    Args:
        log_prob_B: Log-probability of every preferred answer, summed over its tokens, shape `(B,)`, <= 0.
        beta: The factor β; 0 takes the negative log-likelihood itself.
        reduction: `mean`, `sum`, or `none` for one loss an answer.

    Returns:
        Nats, float32 (float64 if given float64).

    Raises:
        ConfigError: If the reduction is unknown.

    Example:
        >>> import torch
        >>> chosen_likelihood(torch.tensor([-20.0])), chosen_likelihood(torch.tensor([-20.0]), beta=0.0)
        (tensor(2.1269), tensor(20.))

    Reference:
        Yang et al., Regularizing Hidden States (GRM), arXiv:2406.10216, the SFT form.
    """
    log_prob_B = full_precision(log_prob_B)
    return reduce(-F.logsigmoid(beta * log_prob_B) if beta else -log_prob_B, reduction)
