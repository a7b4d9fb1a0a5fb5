r"""What the reward head reads, taken apart: the norm of the state, its angle to the head, the reward, and the directions that states fill.

A linear head's reward is :math:`r = \lVert w \rVert \, \lVert h \rVert \cos\psi`. The state :math:`h` comes after the last norm of the
model, so its length hardly varies and rewards may differ by the angle alone: the three are reported together.
"""

# C conversations, D hidden width.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewardproof.models.packed import PackedRewards
from rewardproof.models.precision import Precision, computing_in
from rewardproof.models.trunk import group_key
from rewardproof.statistics import effective_rank, is_constant, pearson
from rewardproof.statistics.checks import FloatArray
from rewardproof.training.batches import Collator, TrainingGroup
from rewardproof.training.trainer import PackedRewardModule

MOST_GROUPS = 512
"""Groups, chosen by a hash of their tokens, whose states are looked at: effective rank takes a singular value decomposition."""


@dataclass(frozen=True, slots=True)
class EndStates:
    """States at the ends of conversations, means and variances over conversations.

    Attributes:
        n_answers: Conversations.
        norm_mean: Length of the state.
        norm_variance: Its variance.
        cosine_mean: Cosine between state and head; `None` where the head is zero, or not one vector.
        cosine_variance: Its variance.
        reward_mean: Reward.
        reward_variance: Its variance.
        reward_norm_correlation: Correlation of reward and length; `None` where one of them is constant.
        reward_cosine_correlation: Correlation of reward and cosine, likewise.
        head_norm: Length of the head; `None` where it is not one vector.
        effective_rank: Exponential of the entropy of the states' normalised singular values, not centred.
    """

    n_answers: int
    norm_mean: float
    norm_variance: float
    cosine_mean: float | None
    cosine_variance: float | None
    reward_mean: float
    reward_variance: float
    reward_norm_correlation: float | None
    reward_cosine_correlation: float | None
    head_norm: float | None
    effective_rank: float


def end_states_of(
    module: PackedRewardModule, groups: Sequence[TrainingGroup], *, collator: Collator, precision: Precision
) -> EndStates | None:
    """Look at a model's states over up to `MOST_GROUPS` groups, without gradient and in evaluation mode; nothing where there are none."""
    chosen = sorted(groups, key=lambda entry: group_key(entry.group))[:MOST_GROUPS]
    if not chosen:
        return None
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    outputs: list[PackedRewards] = []
    with torch.no_grad(), computing_in(precision, device):
        for stream in collator.streams(chosen):
            outputs.append(module(stream.to(device), terms=False))
    module.train(was_training)
    states_CD = np.concatenate([output.states_CD.double().cpu().numpy() for output in outputs])
    rewards_C = np.concatenate([output.rewards_C.double().cpu().numpy() for output in outputs])
    weight = getattr(module.model.get_submodule("score"), "weight", None)
    head_D = weight.detach().double().cpu().numpy()[0] if weight is not None and weight.shape == (1, states_CD.shape[1]) else None
    return decomposed(states_CD, rewards_C, head_D)


def decomposed(states_CD: FloatArray, rewards_C: FloatArray, head_D: FloatArray | None) -> EndStates:
    """The quantities of `EndStates`.

    Args:
        states_CD: What the head read.
        rewards_C: What it made of it.
        head_D: Its weight, or nothing where it is not one vector.
    """
    norm_C = np.linalg.norm(states_CD, axis=1)
    head_norm = None if head_D is None else float(np.linalg.norm(head_D))
    cosine_C = states_CD @ head_D / (norm_C * head_norm) if head_D is not None and head_norm and norm_C.all() else None
    return EndStates(
        n_answers=len(states_CD),
        norm_mean=float(norm_C.mean()),
        norm_variance=float(norm_C.var()),
        cosine_mean=None if cosine_C is None else float(cosine_C.mean()),
        cosine_variance=None if cosine_C is None else float(cosine_C.var()),
        reward_mean=float(rewards_C.mean()),
        reward_variance=float(rewards_C.var()),
        reward_norm_correlation=_correlation(rewards_C, norm_C),
        reward_cosine_correlation=None if cosine_C is None else _correlation(rewards_C, cosine_C),
        head_norm=head_norm,
        effective_rank=effective_rank(states_CD),
    )


def _correlation(left_C: FloatArray, right_C: FloatArray) -> float | None:
    return None if is_constant(left_C) or is_constant(right_C) else pearson(left_C, right_C)
