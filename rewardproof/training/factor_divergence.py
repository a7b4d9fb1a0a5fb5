"""The divergence of a factor head's posteriors from their priors, as a term of the objective, and what its factors do while it trains."""

# C conversations, G groups, K factors, T tokens, D hidden width.
from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.packing import PackedBatch
from rewardproof.losses import weibull_gamma_kl
from rewardproof.models.factor_head import Factors, dead_factors, factor_head_of, factors_in_effect, travelled
from rewardproof.models.packed import Auxiliary, PackedRewards, by_conversation
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream


class FactorDivergence(AuxiliaryTerm):
    r"""Both divergences, each by its weight, whatever the loss of a pair is.

    .. math:: \eta_\theta \, \mathrm{KL}(q(\theta) \| p(\theta)) + \eta_\Phi \, \mathrm{KL}(q(\Phi) \| p(\Phi))

    Both are means over factors; that of θ is averaged over a group's conversations too. It is taken behind a dropout mask of its own: the
    expectation is that of a mask shared with the reward.

    Reference:
        BNRM, arXiv:2602.10623, eq. 9.
    """

    def __init__(self, model: PreTrainedModel, settings: Factors) -> None:
        """Remember the model's head, which stays the model's, and where its dictionary starts.

        Raises:
            ModelError: The model has no head of factors.
        """
        super().__init__()
        self._head = (factor_head_of(model),)  # in a tuple, or its parameters would be this module's too
        self.settings = settings
        self.needs_tokens = settings.kl_over != "scored"
        self.start_K: Tensor
        self.register_buffer("start_K", self._head[0].dictionary().detach().clone(), persistent=False)

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The term on one stream."""
        settings, batch = self.settings, stream.batch
        (head,) = self._head
        states_D = output.states_CD if output.states_TD is None else output.states_TD
        theta, phi = head.theta(states_D), head.phi()
        kl_K = weibull_gamma_kl(theta.shape, theta.scale, prior_shape=settings.theta_prior[0], prior_rate=settings.theta_prior[1])
        kl_C = self._of_conversations(kl_K.mean(dim=-1), batch)
        theta_kl = (kl_C / _size_of_group(batch, kl_C)).sum()
        phi_kl = weibull_gamma_kl(phi.shape, phi.scale, prior_shape=settings.phi_prior[0], prior_rate=settings.phi_prior[1]).mean()
        loss = settings.kl_theta * theta_kl + settings.kl_phi * batch.n_groups * phi_kl
        phi_K, active_CK = head.dictionary().detach(), head.activations(output.states_CD.detach()).detach()
        found = {
            "kl_phi": float(phi_kl.detach()),
            "dead": float(dead_factors(active_CK, phi_K).float().mean()),
            "in_effect": factors_in_effect(active_CK, phi_K),
            "phi_travelled": travelled(phi_K, self.start_K),
        }
        metrics = {"factors/kl_theta": float(theta_kl.detach())}
        return Auxiliary(loss, metrics | {f"factors/{name}": value * batch.n_groups for name, value in found.items()})

    def _of_conversations(self, values: Tensor, batch: PackedBatch) -> Tensor:
        """Divergences of conversations, `(C,)`, by those of positions; a prompt that several share counts in each of them."""
        if self.settings.kl_over == "scored":
            return values
        reduce = torch.mean if self.settings.kl_over == "valid" else torch.sum
        return torch.stack([reduce(values_L) for values_L in by_conversation(batch, values)])


def _size_of_group(batch: PackedBatch, like_C: Tensor) -> Tensor:
    sizes_G = torch.tensor(batch.conversations_per_group, device=like_C.device)
    return sizes_G.repeat_interleave(sizes_G).to(like_C.dtype)
