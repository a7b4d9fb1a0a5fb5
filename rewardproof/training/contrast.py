"""Contrastive terms of the objective: two views of what the head reads, made by dropout, are to be told from all others of the stream.

Decoder-only language models have no dropout of their own, so it is applied here, to each conversation's pooled feature (the final hidden
state that the head reads). In evaluation it is off: both views are the feature itself.

Reference:
    Wang et al., Secrets of RLHF in Large Language Models, Part II, arXiv:2401.06080, section 3.1.
"""

# C conversations of a stream, P ordered pairs, N features that are contrasted, D hidden width, K prototypes.
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.config import Section
from rewardproof.data.packing import PackedBatch
from rewardproof.losses import simcse, swav
from rewardproof.models.packed import Auxiliary, PackedRewards, head_rewards
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream
from rewardproof.training.objective import Loss, PairIndex, pair_losses


class Contrast(Section):
    """A contrastive term beside the loss of pairs. What it is contrasted with is the stream, so `compute.tokens_per_batch` matters."""

    method: Literal["simcse", "swav"] = "simcse"
    """`simcse`: a view is to be nearest to the feature's other view; `swav`: to predict which prototypes the other is assigned to."""
    on: Literal["features", "differences"] = "features"
    """What is contrasted: every answer's feature, or for every pair the difference of its features, in both directions (`-diff`)."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """β, the term's weight; published: 1 for SimCSE, 0.1 for SwAV, 0.5 for SwAV on differences."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """τ; the paper gives none. SimCSE's own is 0.05, SwAV's 0.1."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability that an entry of the feature is dropped in a view."""
    augmented: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pairs' loss that is on the views, the rest being on the features as they are; the paper has both and gives no share."""
    prototypes: Annotated[int, Field(ge=2)] = 50
    """K of `swav`; published: 50, and 20 on differences."""
    epsilon: Annotated[float, Field(gt=0)] = 0.05
    """Sharpness of `swav`'s assignments; SwAV's own."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Rounds of Sinkhorn in `swav`; SwAV's own."""


def contrast_terms(settings: Contrast | None, loss: Loss, seed: int) -> Callable[[PreTrainedModel], list[AuxiliaryTerm]]:
    """What makes the term for a model that trains; none where there are no settings."""

    def make(model: PreTrainedModel) -> list[AuxiliaryTerm]:
        if settings is None:
            return []
        return [ContrastTerm(settings, loss, rewards=partial(head_rewards, model), width=model.config.hidden_size, seed=seed)]

    return make


class ContrastTerm(AuxiliaryTerm):
    r"""The pairs' loss on two views of the features, and the views' contrastive loss.

    .. math:: \sum_g \Big( a \, \tfrac12 \sum_{v \in \{s, t\}} \tfrac{1}{|P_g|} \sum_{p \in P_g} \ell(r^v_p)
              + \beta \, \tfrac{1}{|A_g|} \sum_{i \in A_g} \ell_i \Big)

    It leaves the pairs' loss on the features as they are a share :math:`1 - a`, so that :math:`\beta` counts relative to one whole loss.
    A contrastive loss belongs to a batch, not to a group: feature i is contrasted with all features of the stream. Its own part
    :math:`\ell_i` is summed with weights by which each group counts once, as in the rest of the objective.
    """

    def __init__(self, settings: Contrast, loss: Loss, *, rewards: Callable[[Tensor], Tensor], width: int, seed: int) -> None:
        """Draw the prototypes, if there are any.

        Args:
            settings: Of the term.
            loss: The objective, for the pairs' loss on the views.
            rewards: The model's head, `(C, D)` to `(C,)`.
            width: D.
            seed: Of the prototypes.
        """
        super().__init__()
        self.settings = settings
        self.loss = loss
        self.rewards = rewards
        if settings.method == "swav":
            draw = torch.randn(settings.prototypes, width, generator=torch.Generator().manual_seed(seed))
            self.prototypes_KD = nn.Parameter(F.normalize(draw, dim=1))

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """Both parts on one stream."""
        settings, index = self.settings, PairIndex.of(stream.batch, output.states_CD.device)
        views = [F.dropout(output.states_CD, settings.dropout, self.training) for _ in range(2)]
        first_ND, second_ND = (_contrasted(view_CD, index, settings.on) for view_CD in views)
        contrast = (_weights(stream.batch, index, settings.on) * self._losses(first_ND, second_ND)).sum()
        loss, metrics = settings.weight * contrast, {"contrast/loss": float(contrast.detach())}
        if settings.augmented:
            of_views_2P = torch.stack([pair_losses(self.rewards(view_CD), index, self.loss) for view_CD in views])
            augmented = (index.weight_P * of_views_2P.mean(dim=0)).sum()
            loss, metrics = loss + settings.augmented * augmented, {**metrics, "contrast/pairs": float(augmented.detach())}
        return Auxiliary(loss, metrics, pairs=1 - settings.augmented)

    def _losses(self, first_ND: Tensor, second_ND: Tensor) -> Tensor:
        settings = self.settings
        if settings.method == "simcse":
            return simcse(first_ND, second_ND, temperature=settings.temperature, reduction="none")
        return swav(
            first_ND,
            second_ND,
            self.prototypes_KD,
            temperature=settings.temperature,
            epsilon=settings.epsilon,
            iterations=settings.iterations,
            reduction="none",
        )


def _contrasted(view_CD: Tensor, index: PairIndex, on: Literal["features", "differences"]) -> Tensor:
    """What is contrasted of a view, shape `(N, D)`: its features, or chosen minus rejected of every pair and then rejected minus chosen."""
    if on == "features":
        return view_CD
    difference_PD = view_CD[index.winner_P] - view_CD[index.loser_P]
    return torch.cat((difference_PD, -difference_PD))


def _weights(batch: PackedBatch, index: PairIndex, on: Literal["features", "differences"]) -> Tensor:
    """Weights that sum to 1 over what is contrasted of each group, shape `(N,)`."""
    if on == "differences":
        return torch.cat((index.weight_P, index.weight_P)) / 2
    sizes = torch.tensor(batch.conversations_per_group, device=index.weight_P.device)
    return (1 / sizes).repeat_interleave(sizes)
