"""Losses that keep a router from sending every token to the same experts.

All of them are over the normal experts only: the shared expert sees every token and has nothing to balance. A token's weight (0 for
padding) enters every sum, so that a batch with pads and the same batch without them have the same loss. The sums over tokens go through
`total`, which adds those of the other processes where a batch is spread over several.
"""

# Shapes: T tokens, E normal experts.

import math

import torch
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses.reduction import full_precision, require_same_shape
from rewardproof.losses.totals import Total, own_part


def squared_variation(usage_E: Tensor) -> Tensor:
    r"""Squared coefficient of variation, :math:`\mathrm{var} / (\mathrm{mean}^2 + 10^{-10})` with the unbiased variance; 0 for one expert.

    Args:
        usage_E: How much each expert is used, shape `(E,)`.

    Returns:
        Scalar >= 0, 0 where all experts are used alike.

    Example:
        >>> squared_variation(torch.tensor([1.0, 3.0]))  # variance 2, mean 2
        tensor(0.5000)

    Reference:
        Shazeer et al., arXiv:1701.06538, eq. 7.
    """
    if usage_E.shape[-1] == 1:
        return usage_E.sum() * 0.0
    return usage_E.var(unbiased=True) / (usage_E.mean().square() + 1e-10)


def importance_load_balance(
    probabilities_TE: Tensor,
    selected_TE: Tensor,
    *,
    token_weight_T: Tensor | None = None,
    load_TE: Tensor | None = None,
    total: Total = own_part,
) -> Tensor:
    r"""Unevenness of the probability mass and of the number of tokens that the experts get.

    .. math:: \mathrm{cv}^2\Big(\sum_t w_t\, p_{t,i}\, [i \in S_t]\Big) + \mathrm{cv}^2\Big(\sum_t w_t\, l_{t,i}\Big)

    Args:
        probabilities_TE: Router probabilities over all normal experts, shape `(T, E)`.
        selected_TE: True (or 1) where the token goes to the expert, same shape.
        token_weight_T: Weight of each token, 0 for padding; all 1 if absent.
        load_TE: Each token's expected load from `smooth_load`; if absent the selection itself is counted, which has no gradient.
        total: Makes the batch's sums of this process's sums over tokens.

    Returns:
        Scalar >= 0, 0 where importance and load are both even.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> probabilities = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
        >>> importance_load_balance(probabilities, probabilities > 0.5)
        tensor(0.)
        >>> importance_load_balance(probabilities, torch.tensor([[True, False], [True, False]]))
        tensor(4.)

    Reference:
        Shazeer et al., arXiv:1701.06538, eq. 6 to 11; UMM-RM, arXiv:2512.00724.
    """
    require_same_shape(probabilities_TE, selected_TE, "probabilities and selected")
    probabilities_TE = full_precision(probabilities_TE)
    selected_TE = selected_TE.to(probabilities_TE.dtype).detach()
    if load_TE is None:
        load_TE = selected_TE
    else:
        require_same_shape(load_TE, selected_TE, "load and selected")
        load_TE = full_precision(load_TE)
    weight_T = _weights(probabilities_TE, token_weight_T)
    importance_E, load_E = total(torch.stack((weight_T @ (probabilities_TE * selected_TE), weight_T @ load_TE))).unbind()
    return squared_variation(importance_E) + squared_variation(load_E)


def smooth_load(logits_TE: Tensor, noisy_logits_TE: Tensor, noise_std_TE: Tensor, k: int) -> Tensor:
    r"""Probability that each expert is among a token's top k if its own noise were drawn again: a load with a gradient.

    .. math:: \Phi\big((z_{t,i} - \tau_{t,i}) / \sigma_{t,i}\big)

    The threshold is the k-th largest of the *other* experts' noisy logits: the (k+1)-th of all where the expert is in, else the k-th.
    Membership is decided on the noisy logit (the released LLaMA-MoE code compares the noise alone).

    Args:
        logits_TE: Router logits without noise, shape `(T, E)`.
        noisy_logits_TE: The same with the noise that chose the experts.
        noise_std_TE: Standard deviation of that noise, > 0.
        k: Experts a token uses, `1 <= k < E`.

    Returns:
        Probabilities, shape `(T, E)`: give them to `importance_load_balance` as `load_TE`.

    Raises:
        DataError: If the shapes differ.
        ConfigError: If `k` is not in `[1, E)`.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 1.0]])
        >>> smooth_load(logits, logits, torch.ones(1, 3), k=1)
        tensor([[0.1587, 0.1587, 0.8413]])

    Reference:
        Shazeer et al., arXiv:1701.06538, eq. 8 to 10.
    """
    require_same_shape(logits_TE, noisy_logits_TE, "logits and noisy logits")
    require_same_shape(logits_TE, noise_std_TE, "logits and noise deviations")
    n_experts = logits_TE.shape[-1]
    if not 1 <= k < n_experts:
        raise ConfigError(
            f"k={k} of {n_experts} experts; expected 1 <= k < {n_experts}. Where every expert is used the load cannot be uneven: "
            "leave load_TE out."
        )
    logits_TE, noisy_TE = full_precision(logits_TE), full_precision(noisy_logits_TE)
    top_TK = noisy_TE.topk(k + 1, dim=-1).values
    last_in_T1, first_out_T1 = top_TK[:, k - 1 : k], top_TK[:, k : k + 1]
    threshold_TE = torch.where(noisy_TE > first_out_T1, first_out_T1, last_in_T1)
    distance_TE = (logits_TE - threshold_TE) / full_precision(noise_std_TE)
    return 0.5 * (1.0 + torch.erf(distance_TE / math.sqrt(2.0)))


def switch_balance(
    probabilities_TE: Tensor, selected_TE: Tensor, *, token_weight_T: Tensor | None = None, total: Total = own_part
) -> Tensor:
    r"""Alignment of where tokens go with where the router's mass is, 1 for perfectly uniform routing.

    .. math:: E \sum_i f_i P_i

    Here f is each expert's share of all selections (it sums to 1 for any k) and P its mean probability.

    Args:
        probabilities_TE: Router probabilities over all normal experts, shape `(T, E)`; rows sum to 1.
        selected_TE: True (or 1) where the token goes to the expert, same shape; carries no gradient.
        token_weight_T: Weight of each token, 0 for padding; all 1 if absent.
        total: Makes the batch's sums of this process's sums over tokens.

    Returns:
        Scalar; 1 for uniform routing, E where one expert gets everything, 0 where no token has weight.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> switch_balance(probabilities, probabilities > 0.5)
        tensor(1.)
        >>> switch_balance(probabilities[:1], probabilities[:1] > 0.5)
        tensor(2.)

    Reference:
        Fedus et al., Switch Transformers, arXiv:2101.03961, eq. 4 to 6.
    """
    require_same_shape(probabilities_TE, selected_TE, "probabilities and selected")
    probabilities_TE = full_precision(probabilities_TE)
    weight_T = _weights(probabilities_TE, token_weight_T)
    own_count_E = weight_T @ selected_TE.to(probabilities_TE.dtype).detach()
    sums_3E = total(torch.stack((own_count_E, weight_T @ probabilities_TE, weight_T.sum().expand_as(own_count_E))))
    count_E, mass_E, n_tokens = sums_3E[0], sums_3E[1], sums_3E[2, 0]
    tiny = torch.finfo(mass_E.dtype).tiny
    share_E = count_E / count_E.sum().clamp_min(tiny)
    return probabilities_TE.shape[-1] * (share_E * mass_E).sum() / n_tokens.clamp_min(tiny)


def _weights(probabilities_TE: Tensor, token_weight_T: Tensor | None) -> Tensor:
    if token_weight_T is None:
        return probabilities_TE.new_ones(probabilities_TE.shape[0])
    require_same_shape(token_weight_T, probabilities_TE[:, 0], "token weights and tokens")
    return token_weight_T.to(probabilities_TE.dtype)
