"""The upcycled feed-forward block: one always-on shared expert, routed experts, and a router.

Two kinds of experts. `FullExperts` are copies of the dense matrices, fused into 3-D parameters (index 0 is the shared expert).
`DeltaExperts` are one shared base plus a low-rank difference for every routed expert; the large products of the base are computed once.
"""

# T tokens, D hidden width, F feed-forward width, E experts, R rank of a difference.
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewardproof.models.families import Weights
from rewardproof.models.routing import Router, Routing

Activation = Callable[[Tensor], Tensor]


def feed_forward(hidden_TD: Tensor, weights: Weights, activation: Activation) -> Tensor:
    """One feed-forward block in the common orientation of `families.py`: gated where it has a `gate`."""
    up_TF = F.linear(hidden_TD, weights["up"], weights.get("up_bias"))
    if "gate" in weights:
        hidden_TF = activation(F.linear(hidden_TD, weights["gate"], weights.get("gate_bias"))) * up_TF
        return F.linear(hidden_TF, weights["down"], weights.get("down_bias"))
    return F.linear(activation(up_TF), weights["down"], weights.get("down_bias"))


def _computing_dtype(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class FullExperts(nn.Module):
    """Exact copies of the dense block in fused parameters of shape `(E, …)`; expert 0 is the shared one."""

    def __init__(self, dense: Weights, n_experts: int) -> None:
        """Copy the dense matrices `n_experts` times."""
        super().__init__()
        self.names = tuple(dense)
        self.n_experts = n_experts
        for name, matrix in dense.items():
            self.register_parameter(name, nn.Parameter(matrix.detach().expand(n_experts, *matrix.shape).clone()))

    def stack(self, name: str) -> Tensor:
        """All experts' copies of one matrix, shape `(E, …)`."""
        return self.get_parameter(name)

    def expert(self, index: int) -> Weights:
        """The matrices of one expert."""
        return {name: self.get_parameter(name)[index] for name in self.names}

    def forward(self, hidden_TD: Tensor, routing: Routing, activation: Activation) -> Tensor:
        """Mix the shared expert with each token's routed experts, without dropping any token."""
        # One unbind instead of an index for every expert: the backward pass then writes the stacked gradient once.
        unbound = {name: self.get_parameter(name).unbind() for name in self.names}
        experts = [{name: unbound[name][number] for name in self.names} for number in range(self.n_experts)]
        output_TD = routing.shared_T[:, None].to(hidden_TD.dtype) * feed_forward(hidden_TD, experts[0], activation)
        if hidden_TD.is_cuda and self.groupable(_computing_dtype(hidden_TD)):
            return output_TD + self._grouped(hidden_TD, routing, activation)
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for number in range(1, self.n_experts):
            token_M, slot_M = (routing.chosen_TK == number - 1).nonzero(as_tuple=True)
            expert_MD = feed_forward(hidden_TD[token_M], experts[number], activation)
            parts.append(routing.weights_TK[token_M, slot_M][:, None].to(expert_MD.dtype) * expert_MD)
            places.append(token_M)
        return output_TD.index_add(0, torch.cat(places), torch.cat(parts).to(output_TD.dtype))

    def groupable(self, dtype: torch.dtype) -> bool:
        """Whether torch has grouped products and takes these shapes: their rows have to begin at multiples of 16 bytes."""
        return hasattr(F, "grouped_mm") and all(width * dtype.itemsize % 16 == 0 for width in self.stack("up").shape[1:])

    def _grouped(self, hidden_TD: Tensor, routing: Routing, activation: Activation) -> Tensor:
        """Routed experts as grouped matrix products over tokens sorted by expert; autocast is applied by hand."""
        dtype = _computing_dtype(hidden_TD)
        n_routed = routing.chosen_TK.shape[1]
        expert_S, order_S = routing.chosen_TK.flatten().sort(stable=True)
        token_S = order_S // n_routed
        offsets_E = torch.bincount(expert_S, minlength=self.n_experts - 1).cumsum(0).to(torch.int32)
        sorted_SD = hidden_TD[token_S].to(dtype)

        def product(rows: Tensor, name: str) -> Tensor:
            made = F.grouped_mm(rows, self.stack(name)[1:].to(dtype).transpose(1, 2), offs=offsets_E)
            return made + self.stack(f"{name}_bias")[1:][expert_S].to(dtype) if f"{name}_bias" in self.names else made

        up_SF = product(sorted_SD, "up")
        up_SF = activation(product(sorted_SD, "gate")) * up_SF if "gate" in self.names else activation(up_SF)
        weight_S = routing.weights_TK.flatten()[order_S]
        down_SD = product(up_SF, "down") * weight_S[:, None].to(dtype)
        return torch.zeros_like(hidden_TD).index_add(0, token_S, down_SD.to(hidden_TD.dtype))


class DeltaExperts(nn.Module):
    """A trainable base shared by all, and a low-rank difference `B A` for every routed expert; the shared expert is the base alone.

    Reference:
        DeRS, arXiv:2503.01359.
    """

    def __init__(self, dense: Weights, n_experts: int, rank: int) -> None:
        """Take the dense matrices as the base; differences start at zero (B = 0)."""
        super().__init__()
        self.names = tuple(dense)
        self.n_experts = n_experts
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

    def expert(self, index: int) -> Weights:
        """The matrices of one expert, base plus difference."""
        return {name: self.stack(name)[index] for name in self.names}

    def stack(self, name: str) -> Tensor:
        """All experts' versions of one matrix, shape `(E, …)`, formed in the parameters' own precision."""
        base = self.get_parameter(name)
        if base.ndim == 1:
            return base.expand(self.n_experts, *base.shape)
        delta = self.get_parameter(f"{name}_b") @ self.get_parameter(f"{name}_a")
        return torch.cat((base[None], base[None] + delta))

    def forward(self, hidden_TD: Tensor, routing: Routing, activation: Activation) -> Tensor:
        """Mix as `FullExperts` would, with the base's products computed once for shared and routed experts."""
        base_up_TF = F.linear(hidden_TD, self.get_parameter("up"), self._bias("up_bias"))
        gated = "gate" in self.names
        base_gate_TF = F.linear(hidden_TD, self.get_parameter("gate"), self._bias("gate_bias")) if gated else base_up_TF
        base_TF = activation(base_gate_TF) * base_up_TF if gated else activation(base_up_TF)
        mixed_TF = routing.shared_T[:, None].to(base_TF.dtype) * base_TF
        low_rank: list[Tensor] = []
        places: list[Tensor] = []
        for number in range(self.n_experts - 1):
            token_M, slot_M = (routing.chosen_TK == number).nonzero(as_tuple=True)
            rows_MD = hidden_TD[token_M]
            up_MF = base_up_TF[token_M] + self._difference("up", number, rows_MD)
            gate_MF = base_gate_TF[token_M] + self._difference("gate", number, rows_MD) if gated else up_MF
            hidden_MF = activation(gate_MF) * up_MF if gated else activation(up_MF)
            weighted_MF = routing.weights_TK[token_M, slot_M][:, None].to(hidden_MF.dtype) * hidden_MF
            mixed_TF = mixed_TF.index_add(0, token_M, weighted_MF.to(mixed_TF.dtype))
            low_rank.append(self._difference("down", number, weighted_MF))
            places.append(token_M)
        output_TD = F.linear(mixed_TF, self.get_parameter("down"), self._bias("down_bias"))
        return output_TD.index_add(0, torch.cat(places), torch.cat(low_rank).to(output_TD.dtype))

    def _bias(self, name: str) -> Tensor | None:
        return self.get_parameter(name) if name in self.names else None

    def _difference(self, name: str, number: int, rows: Tensor) -> Tensor:
        return F.linear(F.linear(rows, self.get_parameter(f"{name}_a")[number]), self.get_parameter(f"{name}_b")[number])


class UpcycledSparseMoeBlock(nn.Module):
    """Takes the place of `layer.mlp`. The name's ending lets ZeRO-3 launchers mark it as one leaf."""

    def __init__(self, experts: FullExperts | DeltaExperts, router: Router, activation: Activation) -> None:
        """Join experts and router; the activation is the dense block's own."""
        super().__init__()
        self.experts = experts
        self.router = router
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Feed-forward output of the same shape as the input, `(…, D)`."""
        hidden_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.router(hidden_TD)
        return self.experts(hidden_TD, routing, self.activation).reshape(hidden_states.shape)
