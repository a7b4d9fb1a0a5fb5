"""The router of an upcycled block: softmax over the routed experts, top-k, and weights that sum to one with the shared expert's.

Because the weights of a token sum to one, a mixture of equal experts is the dense block, whatever the router says.
"""

# T tokens, D hidden width, E routed experts (the shared one is not among them), K routed experts a token uses.
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rewardproof.errors import DataError, ModelError

Mixing = Literal["s_max", "fixed", "random"]
RouteBy = Literal["token", "prompt"]


class Prompts(NamedTuple):
    """Where the prompts of a stream are.

    Attributes:
        group_T: The group that each token belongs to, shape `(T,)`.
        prompt_T: Whether the token is one of its group's prompt, shape `(T,)`.
        n_groups: Groups of the stream, G.
    """

    group_T: Tensor
    prompt_T: Tensor
    n_groups: int

    def mean(self, hidden_TD: Tensor) -> Tensor:
        """Mean hidden state over each group's prompt, shape `(G, D)`, float32."""
        group_P = self.group_T[self.prompt_T]
        sums_GD = hidden_TD.new_zeros(self.n_groups, hidden_TD.shape[1], dtype=torch.float32)
        sums_GD = sums_GD.index_add(0, group_P, hidden_TD[self.prompt_T].float())
        return sums_GD / torch.bincount(group_P, minlength=self.n_groups)[:, None]


class Routing(NamedTuple):
    """What the router decided for each token.

    Attributes:
        shared_T: Weight of the shared expert, shape `(T,)`.
        weights_TK: Weights of the chosen routed experts, shape `(T, K)`.
        chosen_TK: Their indices among the routed experts, shape `(T, K)`.
        probabilities_TE: Softmax over all routed experts, shape `(T, E)`.
        without_shared: The shared expert's weight is 0 by construction, so that it need not be computed.
    """

    shared_T: Tensor
    weights_TK: Tensor
    chosen_TK: Tensor
    probabilities_TE: Tensor
    without_shared: bool = False

    def at(self, index: Tensor) -> Routing:
        """The decisions of some rows."""
        return Routing(*(entry[index] for entry in self[:4]), without_shared=self.without_shared)

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
    # One choice has a constant weight. p / p would leave rounding noise as its gradient, which Adam scales up to whole steps.
    shares_TK = 1 + 0 * top_TK if n_routed == 1 else top_TK / top_TK.sum(dim=-1, keepdim=True)
    routed_TK = (1 - shared_weight) * shares_TK
    return Routing(shared_T, routed_TK, chosen_TK, probabilities_TE, without_shared=shared_weight == 0)


def route_hard(logits_TE: Tensor) -> Routing:
    """Give every token to its most probable routed expert alone, the shared one none; the router's gradient passes straight through.

    Example:
        >>> routing = route_hard(torch.tensor([[0.0, 1.0]]))
        >>> routing.shared_T, routing.weights_TK, routing.chosen_TK
        (tensor([0.]), tensor([[1.]]), tensor([[1]]))
    """
    probabilities_TE = logits_TE.softmax(dim=-1)
    top_T1, chosen_T1 = probabilities_TE.max(dim=-1, keepdim=True)
    return Routing(torch.zeros_like(top_T1[:, 0]), top_T1 / top_T1.detach(), chosen_T1, probabilities_TE, without_shared=True)


def route_at_random(n_tokens: int, n_experts: int, *, training: bool, device: torch.device) -> Routing:
    """Send every token to one routed expert drawn uniformly, and in evaluation to all of them with equal weights.

    Reference:
        Huang et al., Experts Weights Averaging, arXiv:2308.06093.
    """
    uniform_TE = torch.full((n_tokens, n_experts), 1 / n_experts, device=device)
    shared_T = uniform_TE.new_zeros(n_tokens)
    if not training:
        return Routing(shared_T, uniform_TE, torch.arange(n_experts, device=device).expand_as(uniform_TE), uniform_TE, without_shared=True)
    chosen_T1 = torch.randint(n_experts, (n_tokens, 1), device=device)
    return Routing(shared_T, torch.ones_like(shared_T)[:, None], chosen_T1, uniform_TE, without_shared=True)


class Router(nn.Module):
    """A linear router kept in float32; its output is the `Routing`, so that statistics travel in return values."""

    def __init__(
        self, width: int, n_experts: int, n_routed: int, *, mixing: Mixing, shared_weight: float, route_by: RouteBy = "token"
    ) -> None:
        """Make a router over `n_experts` routed experts with weights drawn from N(0, 0.02²); a random one has none to learn."""
        super().__init__()
        weight_ED = torch.empty(n_experts, width, dtype=torch.float32).normal_(std=0.02)
        if mixing == "random":
            self.register_buffer("weight", torch.zeros_like(weight_ED))
        else:
            self.weight = nn.Parameter(weight_ED)
        self.n_routed = n_routed
        self.mixing: Mixing = mixing
        self.shared_weight = shared_weight
        self.route_by: RouteBy = route_by
        self.hard = False
        self.only: int | None = None
        self.prompts: Prompts | None = None

    def forward(self, hidden_TD: Tensor) -> Routing:
        """Route tokens, shape `(T, D)`, outside autocast; by prompt, all tokens of a group get the routing of its prompt's mean state.

        Raises:
            ModelError: It routes by prompt and is called outside `knowing_prompts`.
        """
        with torch.autocast(hidden_TD.device.type, enabled=False):
            if self.route_by == "token":
                return self._routed(hidden_TD.float())
            if self.prompts is None:
                raise ModelError(
                    "Got hidden states alone, expected to know where the prompts are: this mixture routes by prompt, and only a packed "
                    "forward says so. Score it with RewardModel, or merge it into a stock model first."
                )
            routing = self._routed(self.prompts.mean(hidden_TD))
            return routing.at(self.prompts.group_T)

    def _routed(self, states_RD: Tensor) -> Routing:
        if self.mixing == "random" and self.only is None:
            return route_at_random(len(states_RD), len(self.weight), training=self.training, device=states_RD.device)
        logits_RE = states_RD @ self.weight.float().T
        if self.only is not None:
            return route_hard(nn.functional.one_hot(logits_RE.new_full((len(logits_RE),), self.only).long(), logits_RE.shape[1]).float())
        if self.hard:
            return route_hard(logits_RE)
        return route(logits_RE, self.n_routed, mixing=self.mixing, shared_weight=self.shared_weight)


def routes_by_prompt(model: nn.Module) -> bool:
    """Whether the prompt's tokens choose a mixture's experts."""
    return any(isinstance(module, Router) and module.route_by == "prompt" for module in model.modules())


@contextlib.contextmanager
def knowing_prompts(model: nn.Module, prompts: Prompts) -> Iterator[None]:
    """Tell the routers of a model that route by prompt where the prompts of its next stream are.

    Raises:
        DataError: A group has no prompt.
    """
    routers = [module for module in model.modules() if isinstance(module, Router) and module.route_by == "prompt"]
    if routers and len(prompts.group_T[prompts.prompt_T].unique()) < prompts.n_groups:
        raise DataError(
            "Got a group without a prompt, expected one: this mixture routes by prompt, and would route by the first answer instead. Give "
            "rows with a prompt, or train with upcycle.route_by=token."
        )
    for router in routers:
        router.prompts = prompts
    try:
        yield
    finally:
        for router in routers:
            router.prompts = None
