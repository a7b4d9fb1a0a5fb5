"""Contrastive losses of two noisy views of the same features: SimCSE, and SwAV with its prototypes.

Products are formed outside autocast: a cosine rounded to bf16 and divided by a temperature of 0.05 is off by a tenth.
"""

# Shapes: N features, D width, K prototypes.

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import Reduction, full_precision, reduce, require_same_shape


def simcse(first_ND: Tensor, second_ND: Tensor, *, temperature: float, reduction: Reduction = "mean") -> Tensor:
    r"""How far a feature's two views are from being each other's nearest among the second views of all features.

    .. math:: \ell_i = -\log \frac{e^{\cos(s_i, t_i) / \tau}}{\sum_j e^{\cos(s_i, t_j) / \tau}}

    Args:
        first_ND: The first view of every feature, shape `(N, D)`, any float dtype; the anchors.
        second_ND: The second view of the same features, in the same order.
        temperature: The temperature :math:`\tau`.
        reduction: `mean` over the features, `sum`, or `none` for one loss a feature.

    Returns:
        Loss in nats, float32 (float64 if given float64): 0 for a single feature, at most :math:`2 / \tau + \log N`.

    Raises:
        DataError: If the views differ in shape.
        ConfigError: If the temperature is not positive or the reduction is unknown.

    Example:
        >>> apart = torch.eye(2)
        >>> simcse(apart, apart, temperature=1.0)  # log(1 + 1/e)
        tensor(0.3133)

    Reference:
        Gao et al., SimCSE, arXiv:2104.08821, eq. 1; of reward features: Wang et al., arXiv:2401.06080, section 3.1.
    """
    require_same_shape(first_ND, second_ND, "the two views")
    _require_positive(temperature, "temperature")
    with torch.autocast(first_ND.device.type, enabled=False):
        cosine_NN = F.normalize(full_precision(first_ND), dim=1) @ F.normalize(full_precision(second_ND), dim=1).T
        own_N = torch.arange(len(cosine_NN), device=cosine_NN.device)
        return reduce(F.cross_entropy(cosine_NN / temperature, own_N, reduction="none"), reduction)


def swav(
    first_ND: Tensor,
    second_ND: Tensor,
    prototypes_KD: Tensor,
    *,
    temperature: float,
    epsilon: float = 0.05,
    iterations: int = 3,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""How badly each view predicts which prototypes the other was assigned to.

    .. math:: \ell_i = -\sum_k q^s_{ik} \log p^t_{ik} - \sum_k q^t_{ik} \log p^s_{ik},
              \qquad p^t_i = \mathrm{softmax}_k (t_i^\top c_k / \tau), \quad q^t = \mathrm{sinkhorn}(t^\top c)

    Features and prototypes are divided by their norms, as in SwAV; assignments carry no gradient.

    Args:
        first_ND: The first view of every feature, shape `(N, D)`, any float dtype.
        second_ND: The second view of the same features, in the same order.
        prototypes_KD: The prototypes :math:`c_k`, shape `(K, D)`.
        temperature: The temperature :math:`\tau` of the predictions.
        epsilon: Sharpness of the assignments; see `sinkhorn`.
        iterations: Of `sinkhorn`.
        reduction: `mean` over the features, `sum`, or `none` for one loss a feature.

    Returns:
        Loss in nats, float32 (float64 if given float64).

    Raises:
        DataError: If the views differ in shape.
        ConfigError: If temperature, epsilon or iterations are not positive, or the reduction is unknown.

    Example:
        >>> swav(torch.eye(2), torch.eye(2), torch.eye(2), temperature=0.1) < 1e-3  # every feature has a prototype of its own
        tensor(True)

    Reference:
        Caron et al., SwAV, arXiv:2006.09882, eq. 1 and 2; of reward features: Wang et al., arXiv:2401.06080, section 3.1.
    """
    require_same_shape(first_ND, second_ND, "the two views")
    _require_positive(temperature, "temperature")
    with torch.autocast(first_ND.device.type, enabled=False):
        directions_KD = F.normalize(full_precision(prototypes_KD), dim=1)
        first_NK, second_NK = (F.normalize(full_precision(view), dim=1) @ directions_KD.T for view in (first_ND, second_ND))
        of_first_NK, of_second_NK = (sinkhorn(view, epsilon=epsilon, iterations=iterations) for view in (first_NK, second_NK))
        predicted_N = (of_first_NK * (second_NK / temperature).log_softmax(dim=1)).sum(dim=1)
        return reduce(-predicted_N - (of_second_NK * (first_NK / temperature).log_softmax(dim=1)).sum(dim=1), reduction)


def sinkhorn(scores_NK: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Soft assignments of features to prototypes that use every prototype alike.

    .. math:: q = \mathrm{diag}(u) \, e^{S / \epsilon} \, \mathrm{diag}(v)

    with `u` and `v` such that every row sums to 1 (exactly) and every column to `N / K` (the closer, the more iterations).

    Args:
        scores_NK: Similarities of features and prototypes, shape `(N, K)`.
        epsilon: Weight of the assignments' entropy: 0 would be hard.
        iterations: Rounds of normalising columns and then rows, in logarithms.

    Returns:
        Assignments, shape `(N, K)`, without a gradient.

    Raises:
        ConfigError: If epsilon or iterations are not positive.

    Example:
        >>> sinkhorn(torch.tensor([[0.9, 0.8], [0.9, 0.1]]), epsilon=0.1, iterations=100).round(decimals=2)
        tensor([[0.0300, 0.9700],
                [0.9700, 0.0300]])

    Reference:
        Cuturi, Sinkhorn Distances, arXiv:1306.0895; as used here: Caron et al., arXiv:2006.09882, eq. 3 and 4.
    """
    _require_positive(epsilon, "epsilon")
    _require_positive(iterations, "iterations")
    log_NK = full_precision(scores_NK.detach()) / epsilon
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(dim=0, keepdim=True)
        log_NK = log_NK - log_NK.logsumexp(dim=1, keepdim=True)
    return log_NK.exp()


def _require_positive(value: float, name: str) -> None:
    if not value > 0:
        raise ConfigError(f"{name}={value}; expected a positive number, because it divides or is counted; 0.05 and 3 rounds are usual.")
