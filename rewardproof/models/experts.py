"""The upcycled feed-forward block: one always-on shared expert, routed experts, and a router.

Two kinds of experts. `FullExperts` are copies of the dense matrices, fused into 3-D parameters (index 0 is the shared expert).
`DeltaExperts` are one shared base plus a low-rank difference for every routed expert; the large products of the base are computed once.
"""

# T tokens, D hidden width, F feed-forward width, E experts, n routed experts, K of them a token uses, S = T K choices, R = T + S rows of
# full experts; of delta experts, R is the rank of a difference, I and O are a matrix' inputs and outputs.
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewardproof.models.families import Weights
from rewardproof.models.grouped import grouped_linear
from rewardproof.models.precision import computing_dtype
from rewardproof.models.routing import Router, Routing

Activation = Callable[[Tensor], Tensor]


def feed_forward(hidden_TD: Tensor, weights: Weights, activation: Activation) -> Tensor:
    """One feed-forward block in the common orientation of `families.py`: gated where it has a `gate`."""
    up_TF = F.linear(hidden_TD, weights["up"], weights.get("up_bias"))
    if "gate" in weights:
        hidden_TF = activation(F.linear(hidden_TD, weights["gate"], weights.get("gate_bias"))) * up_TF
        return F.linear(hidden_TF, weights["down"], weights.get("down_bias"))
    return F.linear(activation(up_TF), weights["down"], weights.get("down_bias"))


class Dispatched(NamedTuple):
    """The routed (token, expert) choices sorted by expert.

    Attributes:
        token_S: Their tokens, shape `(S,)`.
        weight_S: Their weights, shape `(S,)`.
        routed_n: How many each routed expert gets, shape `(n,)`.
    """

    token_S: Tensor
    weight_S: Tensor
    routed_n: Tensor


def dispatched(routing: Routing) -> Dispatched:
    """Sort choices by expert."""
    expert_S, order_S = routing.chosen_TK.flatten().sort(stable=True)
    routed_n = torch.bincount(expert_S, minlength=routing.probabilities_TE.shape[1])
    return Dispatched(order_S // routing.chosen_TK.shape[1], routing.weights_TK.flatten()[order_S], routed_n)


class FullExperts(nn.Module):
    """Exact copies of the dense block in fused parameters of shape `(E, …)`; expert 0 is the shared one."""

    def __init__(self, dense: Weights, n_experts: int, *, dropout: float = 0.0) -> None:
        """Copy the dense matrices `n_experts` times; while training, routed experts drop that share of their inner units."""
        super().__init__()
        self.names = tuple(dense)
        self.n_experts = n_experts
        self.dropout = dropout
        for name, matrix in dense.items():
            self.register_parameter(name, nn.Parameter(matrix.detach().expand(n_experts, *matrix.shape).clone()))

    def stack(self, name: str) -> Tensor:
        """All experts' copies of one matrix, shape `(E, …)`."""
        return self.get_parameter(name)

    def matrix(self, name: str, index: int) -> Tensor:
        """One matrix of one expert."""
        return self.get_parameter(name)[index]

    def expert(self, index: int) -> Weights:
        """The matrices of one expert."""
        return {name: self.matrix(name, index) for name in self.names}

    def products_with(self, n_routed: int) -> int:
        """Multiplications of one token with the shared expert and so many routed ones."""
        return (n_routed + 1) * sum(matrix.numel() for matrix in self.expert(0).values() if matrix.ndim == 2)

    def forward(self, hidden_TD: Tensor, routing: Routing, activation: Activation) -> Tensor:
        """Mix the shared expert with each token's routed experts, without dropping any token."""
        n_tokens = len(hidden_TD)
        token_S, weight_S, routed_n = dispatched(routing)
        narrow_TD = hidden_TD.to(computing_dtype(hidden_TD))
        # Rows of the shared expert first, then those of each routed one: every matrix of the block is one grouped product.
        n_shared = 0 if routing.without_shared else n_tokens
        rows_RD = torch.cat((narrow_TD[:n_shared], narrow_TD.index_select(0, token_S)))
        counts_E = torch.cat((routed_n.new_tensor([n_shared]), routed_n))
        up_RF = self._product(rows_RD, "up", counts_E)
        hidden_RF = activation(self._product(rows_RD, "gate", counts_E)) * up_RF if "gate" in self.names else activation(up_RF)
        if self.dropout and self.training:
            hidden_RF = torch.cat((hidden_RF[:n_shared], F.dropout(hidden_RF[n_shared:], self.dropout)))
        shared_TD, routed_SD = self._product(hidden_RF, "down", counts_E).split((n_shared, len(token_S)))
        output_TD = torch.zeros_like(hidden_TD) if n_shared == 0 else routing.shared_T[:, None].to(hidden_TD.dtype) * shared_TD
        return output_TD.index_add(0, token_S, (weight_S[:, None].to(routed_SD.dtype) * routed_SD).to(output_TD.dtype))

    def _product(self, rows_RX: Tensor, name: str, counts_E: Tensor) -> Tensor:
        made = grouped_linear(rows_RX, self.stack(name), counts_E)
        bias = f"{name}_bias"
        if bias not in self.names:
            return made
        return made + self.stack(bias).to(made.dtype).repeat_interleave(counts_E, dim=0, output_size=len(made))


class DeltaExperts(nn.Module):
    """A trainable base shared by all, and a low-rank difference `B A` for every routed expert; the shared expert is the base alone.

    Reference:
        DeRS, arXiv:2503.01359.
    """

    def __init__(self, dense: Weights, n_experts: int, rank: int, *, dropout: float = 0.0) -> None:
        """Take the dense matrices as the base; differences start at zero (B = 0). Dropout as in `FullExperts`."""
        super().__init__()
        self.names = tuple(dense)
        self.n_experts = n_experts
        self.dropout = dropout
        self.rank = rank
        for name, matrix in dense.items():
            self.register_parameter(name, nn.Parameter(matrix.detach().clone()))
            if matrix.ndim == 2:
                rows, columns = matrix.shape
                bound = columns**-0.5
                kind = {"dtype": matrix.dtype, "device": matrix.device}
                self.register_parameter(
                    f"{name}_a", nn.Parameter(torch.empty(n_experts - 1, rank, columns, **kind).uniform_(-bound, bound))
                )
                self.register_parameter(f"{name}_b", nn.Parameter(torch.zeros(n_experts - 1, rows, rank, **kind)))

    def matrix(self, name: str, index: int) -> Tensor:
        """One matrix of one expert, base plus difference; the others' are not formed."""
        base = self.get_parameter(name)
        if index == 0 or base.ndim == 1:
            return base
        return base + self.get_parameter(f"{name}_b")[index - 1] @ self.get_parameter(f"{name}_a")[index - 1]

    def expert(self, index: int) -> Weights:
        """The matrices of one expert, base plus difference."""
        return {name: self.matrix(name, index) for name in self.names}

    def stack(self, name: str) -> Tensor:
        """All experts' versions of one matrix, shape `(E, …)`, formed in the parameters' own precision."""
        base = self.get_parameter(name)
        if base.ndim == 1:
            return base.expand(self.n_experts, *base.shape)
        delta = self.get_parameter(f"{name}_b") @ self.get_parameter(f"{name}_a")
        return torch.cat((base[None], base[None] + delta))

    def products_with(self, n_routed: int) -> int:
        """Multiplications of one token with the base and, for each routed expert it chooses, the differences of all of them."""
        matrices = [name for name in self.names if self.get_parameter(name).ndim == 2]
        low_rank = sum(self.get_parameter(f"{name}_{side}").numel() for name in matrices for side in "ab")
        return sum(self.get_parameter(name).numel() for name in matrices) + n_routed * low_rank

    def forward(self, hidden_TD: Tensor, routing: Routing, activation: Activation) -> Tensor:
        """Mix as `FullExperts` would, with the base's products computed once for shared and routed experts.

        Tokens keep their order: the differences of all routed experts are one product of width n R, in which those that a token did not
        choose are zero. That is cheaper than sorting what is F wide as long as n R is small beside D.
        """
        base_up_TF = F.linear(hidden_TD, self.get_parameter("up"), self._bias("up_bias"))
        gated = "gate" in self.names
        base_gate_TF = F.linear(hidden_TD, self.get_parameter("gate"), self._bias("gate_bias")) if gated else base_up_TF
        base_TF = activation(base_gate_TF) * base_up_TF if gated else activation(base_up_TF)
        mixed_TF = routing.shared_T[:, None].to(base_TF.dtype) * base_TF
        differences = []
        for chosen_T, weight_T in zip(routing.chosen_TK.unbind(1), routing.weights_TK.unbind(1), strict=True):
            chosen_Tn = F.one_hot(chosen_T, self.n_experts - 1).to(base_TF.dtype)
            up_TF = self._plus_difference(base_up_TF, "up", hidden_TD, chosen_Tn)
            gate_TF = self._plus_difference(base_gate_TF, "gate", hidden_TD, chosen_Tn) if gated else up_TF
            hidden_TF = F.dropout(activation(gate_TF) * up_TF if gated else activation(up_TF), self.dropout, self.training)
            weight_T1 = weight_T[:, None].to(base_TF.dtype)
            mixed_TF = torch.addcmul(mixed_TF, weight_T1, hidden_TF)
            differences.append((hidden_TF, weight_T1 * chosen_Tn))
        output_TD = F.linear(mixed_TF, self.get_parameter("down"), self._bias("down_bias"))
        for hidden_TF, weighted_Tn in differences:
            output_TD = self._plus_difference(output_TD, "down", hidden_TF, weighted_Tn)
        return output_TD

    def _bias(self, name: str) -> Tensor | None:
        return self.get_parameter(name) if name in self.names else None

    def _plus_difference(self, base_TO: Tensor, name: str, rows_TI: Tensor, weight_Tn: Tensor) -> Tensor:
        """`base_TO` plus the routed experts' differences of one matrix, each as much as `weight_Tn` says."""
        down_nRI, up_nOR = self.get_parameter(f"{name}_a"), self.get_parameter(f"{name}_b")
        narrow_TnR = F.linear(rows_TI, down_nRI.flatten(0, 1)).unflatten(1, (-1, self.rank)) * weight_Tn[:, :, None]
        return torch.addmm(base_TO, narrow_TnR.flatten(1), up_nOR.transpose(1, 2).flatten(0, 1))


class UpcycledSparseMoeBlock(nn.Module):
    """Takes the place of `layer.mlp`. The name's ending lets ZeRO-3 launchers mark it as one leaf."""

    def __init__(self, experts: FullExperts | DeltaExperts, router: Router, activation: Activation) -> None:
        """Join experts and router; the activation is the dense block's own."""
        super().__init__()
        self.experts = experts
        self.router = router
        self.activation = activation

    def products(self) -> int:
        """Multiplications of one token with the shared expert and the routed ones that it chooses."""
        return self.experts.products_with(self.router.n_routed)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Feed-forward output of the same shape as the input, `(…, D)`."""
        hidden_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.router(hidden_TD)
        return self.experts(hidden_TD, routing, self.activation).reshape(hidden_states.shape)
