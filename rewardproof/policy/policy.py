"""A policy: a causal language model in its packed form, with value heads where an estimator needs them.

What is frozen is computed once: layers below the first that trains give their output for the sampled answers once, and the reference,
another setting of the upper layers, and every pass of the update start from it.
"""

# T tokens of a stream, L answer tokens, D hidden width, S reward streams.
from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch
from rewardproof.losses import exact_kl
from rewardproof.models.families import is_padded_only
from rewardproof.models.packed import hidden_states, next_token_log_probs, target_log_probs
from rewardproof.models.precision import Precision
from rewardproof.models.trunk import FrozenTrunk, trunk_states


class PolicyOutput(NamedTuple):
    """What one pass over a stream gives.

    Attributes:
        log_probs_L: Log-probability of each answer token, at the sampling temperature.
        states_LD: Final hidden state from which each answer token is chosen.
        values_LS: Value of that state, one a stream; `S` is 0 without value heads.
        states_TD: Final hidden states of the whole stream.
    """

    log_probs_L: Tensor
    states_LD: Tensor
    values_LS: Tensor
    states_TD: Tensor


class Policy(nn.Module):
    """A causal model that gives a packed stream's log-probabilities and values; data-parallel wrappers wrap it.

    It stays in evaluation mode: with dropout the ratio to the policy that sampled would not be 1 before the first update.
    """

    def __init__(self, model: PreTrainedModel, *, n_values: int = 0, first_layer: int = 0, temperature: float = 1.0) -> None:
        """Join a model and its value heads.

        Args:
            model: A causal model; what trains in it has been chosen.
            n_values: Value heads, one a reward stream; they start at zero.
            first_layer: First layer that trains; what enters it may be computed once and fed.
            temperature: At which answers are sampled.
        """
        super().__init__()
        self.model = model
        self.config = model.config
        self.temperature = temperature
        self.first_layer = 0 if is_padded_only(model) else first_layer
        self.trunk = FrozenTrunk(model, self.first_layer) if self.first_layer else None
        self.values = nn.Linear(model.config.hidden_size, n_values, device=model.device) if n_values else None
        if self.values is not None:
            nn.init.zeros_(self.values.weight)
            nn.init.zeros_(self.values.bias)
        self.eval()

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None = None) -> PolicyOutput:
        """One pass over a stream, from the frozen layers' output where it is given."""
        states_TD = self.states(batch, trunk_TD)
        states_LD = states_TD[batch.logit_index_L]
        log_probs_L = target_log_probs(self.model, states_LD, batch.target_L, temperature=self.temperature)
        return PolicyOutput(log_probs_L, states_LD, self._values(states_LD), states_TD)

    def _values(self, states_LD: Tensor) -> Tensor:
        """In full precision: advantages are differences of values."""
        if self.values is None:
            return states_LD.new_zeros(len(states_LD), 0)
        with torch.autocast(states_LD.device.type, enabled=False):
            return self.values(states_LD.float())

    def states(self, batch: PackedBatch, trunk_TD: Tensor | None = None) -> Tensor:
        """Final hidden states of the stream, shape `(T, D)`."""
        if self.trunk is None or trunk_TD is None:
            return hidden_states(self.model, batch)
        with self.trunk.detached(), self.trunk.feeding(trunk_TD):
            return hidden_states(self.model, batch)

    def trunk_of(self, groups: Sequence[EncodedGroup], *, precision: Precision) -> Tensor | None:
        """What enters the first layer that trains, shape `(T, D)`; nothing where all layers train."""
        if self.trunk is None:
            return None
        return torch.cat(trunk_states(self.model, groups, self.first_layer, precision=precision))

    def frozen_copy(self, dtype: torch.dtype | None = None) -> Policy:
        """The policy as it is now, without value heads; what does not train is shared, unless a dtype is asked for.

        The copy's parameters are marked as the policy's are, although nobody trains them: by that mark attention chooses how it computes,
        and two equal models should round alike.
        """
        shared = [] if dtype is not None else [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        model = copy.deepcopy(self.model, {id(parameter): parameter for parameter in shared})
        model.eval()
        for parameter in model.parameters() if dtype is not None else ():
            parameter.data = parameter.data.to(dtype)  # not model.to(dtype), which would round the rotary frequencies too
        return Policy(model, first_layer=self.first_layer, temperature=self.temperature)

    def sampler(self, precision: Precision) -> Policy:
        """A copy to sample with, that `follow`s: in bf16 where passes are made in it, which is about twice as fast."""
        return self.frozen_copy(torch.bfloat16 if precision == "bf16" else None)

    @torch.no_grad()
    def follow(self, policy: Policy) -> None:
        """Take over the trained parameters of the policy that this one is a copy of."""
        own = dict(self.model.named_parameters())
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                own[name].copy_(parameter)


@torch.no_grad()
def divergence(policy: Policy, reference: Policy, batch: PackedBatch, trunk_TD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact KL divergence from the reference at each answer token, and the policy's entropy there, in nats, shape `(L,)` each."""
    both = [one.states(batch, trunk_TD)[batch.logit_index_L] for one in (policy, reference)]
    kls: list[Tensor] = []
    entropies: list[Tensor] = []
    own, other = (
        next_token_log_probs(one.model, states_LD, temperature=one.temperature)
        for one, states_LD in zip((policy, reference), both, strict=True)
    )
    for own_LV, other_LV in zip(own, other, strict=True):
        kls.append(exact_kl(own_LV, other_LV))
        entropies.append(-(own_LV.exp() * own_LV).sum(dim=-1))
    return torch.cat(kls), torch.cat(entropies)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """No gradient and no dropout while the context is open."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.train(was)
