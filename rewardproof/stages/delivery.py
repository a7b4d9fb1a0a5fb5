"""What a training run delivers of its members: the only one, their average, or an ensemble of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_scale
from rewardproof.models.trunk import group_key
from rewardproof.scoring import ActivationRewardModel, AnyModel, DoubleMixture, ModelEnsemble, Scale
from rewardproof.stages.member_context import Member, MemberContext
from rewardproof.stages.members import average_members
from rewardproof.stages.training_report import scored

REFERENCE_GROUPS = 200
"""Training groups, chosen by a hash of their tokens, over which every member of an ensemble gets its zero and its unit."""


def deliver(context: MemberContext, members: Sequence[Member]) -> AnyModel:
    """Make the run's one scorer of its members.

    Raises:
        EvaluationError: A member of an ensemble gives all reference answers the same reward.
    """
    if context.config.ensemble is None:
        return context.reward_model(average_members([member.model for member in members]))
    models = {str(number): context.reward_model(member.model) for number, member in enumerate(members)}
    reference = sorted((entry.group for entry in context.prepared.train.groups), key=group_key)[:REFERENCE_GROUPS]
    scales = {name: Scale.of(scored(model, reference, context.progress), name=f"member {name}") for name, model in models.items()}
    return ModelEnsemble(models, scales, context.config.ensemble)


def save_delivered(context: MemberContext, delivered: AnyModel) -> None:
    """Write `OUT/model`; an ensemble's names the members where the run has left them, others have been written already."""
    target = context.directory.path / "model"
    if isinstance(delivered, DoubleMixture | ActivationRewardModel):
        return
    if isinstance(delivered, RewardModel):
        delivered.save(target, dtype=context.config.compute.weights_dtype)
        return
    reused = dict(enumerate(context.config.reuse))
    places = {name: _found(reused[int(name)]) if int(name) in reused else f"../members/{name}/model" for name in delivered.models}
    delivered.save(target, places, reference=f"answers of up to {REFERENCE_GROUPS} training groups")


def save_scale(context: MemberContext, delivered: AnyModel, rewards: Sequence[Sequence[float]]) -> None:
    """Leave a model's own mean and spread with it; an ensemble is in units of its members' already."""
    if isinstance(delivered, RewardModel):
        save_reward_scale(context.directory.path / "model", rewards)


def _found(spec: str) -> str:
    """A directory by its whole path, since the ensemble's own is elsewhere; a hub id as it is."""
    return str(Path(spec).resolve()) if Path(spec).exists() else spec
