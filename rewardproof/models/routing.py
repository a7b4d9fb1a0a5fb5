"""The router of an upcycled block: softmax over the routed experts, top-k, and weights that sum to one with the shared expert's.

Because the weights of a token sum to one, a mixture of equal experts is the dense block, whatever the router says.
"""

# T tokens, D hidden width, E routed experts (the shared one is not among them), K routed experts a token uses.
from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Mixing = Literal["s_max", "fixed"]


class Routing(NamedTuple):
    """What the router decided for each token.

    Attributes:
        shared_T: Weight of the shared expert, shape `(T,)`.
        weights_TK: Weights of the chosen routed experts, shape `(T, K)`.
        chosen_TK: Their indices among the routed experts, shape `(T, K)`.
        probabilities_TE: Softmax over all routed experts, shape `(T, E)`.
    """

    shared_T: Tensor
    weights_TK: Tensor
    chosen_TK: Tensor
    probabilities_TE: Tensor

    @property
    def selected_TE(self) -> Tensor:
        """Boolean mask of the chosen experts, shape `(T, E)`."""
        return torch.zeros_like(self.probabilities_TE, dtype=torch.bool).scatter_(1, self.chosen_TK, True)

    @property
    def weights_TE(self) -> Tensor:
        """Weights over all routed experts, zero where not chosen, shape `(T, E)`."""
        return torch.zeros_like(self.probabilities_TE).scatter(1, self.chosen_TK, self.weights_TK)


def route(logits_TE: Tensor, n_routed: int, *, mixing: Mixing, shared_weight: float) -> Routing:
    r"""Turn router logits into mixing weights that sum to one for every token.

    With :math:`p = \mathrm{softmax}(z)` over all E routed experts and S the k largest:

    .. math::
        \text{s\_max:}\quad w_0 = 1 - \max p, \qquad w_i = \max p \cdot \frac{e^{p_i}}{\sum_{j \in S} e^{p_j}} \\
        \text{fixed:}\quad w_0 = c, \qquad w_i = (1 - c) \frac{p_i}{\sum_{j \in S} p_j}

    Args:
        logits_TE: Router logits, shape `(T, E)`, float32.
        n_routed: Routed experts a token uses, k.
        mixing: Which of the two forms.
        shared_weight: The coefficient c of the `fixed` form; the `s_max` form does not use it.

    Example:
        >>> routing = route(torch.zeros(1, 3), 2, mixing="fixed", shared_weight=0.5)
        >>> routing.shared_T, routing.weights_TK
        (tensor([0.5000]), tensor([[0.2500, 0.2500]]))

    Reference:
        Ding et al., XFT, arXiv:2404.15247 (`s_max`); UMM-RM, arXiv:2512.00724.
    """
    probabilities_TE = logits_TE.softmax(dim=-1)
    top_TK, chosen_TK = probabilities_TE.topk(n_routed, dim=-1)
    if mixing == "s_max":
        largest_T = top_TK[:, 0]
        return Routing(1 - largest_T, largest_T[:, None] * top_TK.softmax(dim=-1), chosen_TK, probabilities_TE)
    shared_T = torch.full_like(top_TK[:, 0], shared_weight)
    return Routing(shared_T, (1 - shared_weight) * top_TK / top_TK.sum(dim=-1, keepdim=True), chosen_TK, probabilities_TE)


class Router(nn.Module):
    """A linear router kept in float32; its output is the `Routing`, so that statistics travel in return values."""

    def __init__(self, width: int, n_experts: int, n_routed: int, *, mixing: Mixing, shared_weight: float) -> None:
        """Make a router over `n_experts` routed experts with weights drawn from N(0, 0.02²)."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, width, dtype=torch.float32).normal_(std=0.02))
        self.n_routed = n_routed
        self.mixing: Mixing = mixing
        self.shared_weight = shared_weight

    def forward(self, hidden_TD: Tensor) -> Routing:
        """Route tokens, shape `(T, D)`, outside autocast."""
        with torch.autocast(hidden_TD.device.type, enabled=False):
            logits_TE = hidden_TD.float() @ self.weight.float().T
            return route(logits_TE, self.n_routed, mixing=self.mixing, shared_weight=self.shared_weight)
