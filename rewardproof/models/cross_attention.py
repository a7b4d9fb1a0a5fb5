"""One state that attends to another model's states: how a reward model reads a policy.

Queries come from one vector, so neither keys nor values are ever formed: `q (h W_k)ᵀ = (q W_kᵀ) hᵀ` and `a (h W_v) = (a h) W_v`. A text of
S tokens costs two products with its states instead of two with `S` rows of the projections.
"""

# B answers, S tokens of one, D width of the state that asks, P width of the policy's states, N heads, E width of a head.
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rewardproof.config import Section
from rewardproof.errors import ConfigError


class AttentionShape(Section):
    """The cross-attention from a reward model's final state to a policy's states."""

    width: Annotated[int, Field(ge=1)] = 2048
    """Of queries, keys and values, all heads together."""
    heads: Annotated[int, Field(ge=1)] = 1
    """Heads that the width is divided among."""
    norm: Literal["none", "rms"] = "none"
    """`rms` brings what enters the projections, of both models, to a mean square of 1; it has no parameters."""
    init: Literal["xavier", "normal", "zero_output"] = "xavier"
    """How the projections start: `xavier`, uniform; `normal`, N(0, .02²); `zero_output`, `xavier` with an output projection of 0, so that
    attention gives nothing until it has learnt."""


class CrossAttention(nn.Module):
    """softmax(q kᵀ / √E) v, projected: no bias, no mask, in float32."""

    def __init__(self, own_width: int, policy_width: int, shape: AttentionShape, *, seed: int) -> None:
        """Draw the projections.

        Args:
            own_width: D, of the state that asks and of what is given back.
            policy_width: P, of the states that are read.
            shape: Width, heads, norm and start.
            seed: Of the draw.

        Raises:
            ConfigError: The width cannot be divided among the heads.
        """
        super().__init__()
        if shape.width % shape.heads:
            raise ConfigError(
                f"attention.width={shape.width} with attention.heads={shape.heads}: expected a multiple, since heads share it evenly. "
                "Change one of them."
            )
        self.shape = shape
        self.query = nn.Linear(own_width, shape.width, bias=False)
        self.key = nn.Linear(policy_width, shape.width, bias=False)
        self.value = nn.Linear(policy_width, shape.width, bias=False)
        self.output = nn.Linear(shape.width, own_width, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for linear in (self.query, self.key, self.value, self.output):
            if shape.init == "normal":
                nn.init.normal_(linear.weight, std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(linear.weight, generator=generator)
        if shape.init == "zero_output":
            nn.init.zeros_(self.output.weight)

    def forward(self, own_BD: Tensor, policy_states: Sequence[Tensor]) -> Tensor:
        """What each state finds in its own text, shape `(B, D)`.

        Args:
            own_BD: States that ask.
            policy_states: For each of them the states of its text, `(S, P)`; texts have lengths of their own, and no pads.
        """
        heads, head_width = self.shape.heads, self.shape.width // self.shape.heads
        query_BNE = self.query(self._normed(own_BD)).view(-1, heads, head_width)
        probe_BNP = torch.einsum("bne,nep->bnp", query_BNE, self.key.weight.view(heads, head_width, -1)) * head_width**-0.5
        read_BNP = torch.stack(
            [self._read(probe_NP, self._normed(states_SP)) for probe_NP, states_SP in zip(probe_BNP, policy_states, strict=True)]
        )
        value_BNE = torch.einsum("bnp,nep->bne", read_BNP, self.value.weight.view(heads, head_width, -1))
        return self.output(value_BNE.flatten(start_dim=1))

    def _normed(self, states: Tensor) -> Tensor:
        return functional.rms_norm(states, states.shape[-1:]) if self.shape.norm == "rms" else states

    @staticmethod
    def _read(probe_NP: Tensor, states_SP: Tensor) -> Tensor:
        """Means of a text's states, weighted by what each head looks for."""
        return (probe_NP @ states_SP.T).softmax(dim=-1) @ states_SP
