"""A mixture from a dense model: parts of the prompts, branches, upcycling, training, and what is reported of its experts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rewardproof.artifacts import is_main
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.specialisation import dense_blocks
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import Upcycle, is_upcycled, select_layers, upcycle
from rewardproof.stages.member_context import Member, MemberContext, fitted, remembered
from rewardproof.stages.specialists import specialisation_summary
from rewardproof.stages.weighing import routing_masses, routing_summary
from rewardproof.training.batches import TrainingSet
from rewardproof.training.fit import Fit
from rewardproof.training.pulling import PullTogether
from rewardproof.training.specialising import HardStart, average_branches, of_part, prompt_parts, put_branches, start_routers


def train_mixture(context: MemberContext, member: Member, folder: Path, seed: int) -> None:
    """Upcycle a member's dense model, train the mixture and save it to `folder/moe`, or take it from there; report its experts."""
    config = context.config
    assert config.upcycle is not None
    if is_upcycled(member.model):
        member.summary = remembered(folder)
    else:
        plan = context.plan(member.model, folder / "checkpoints" / "moe", seed, "mixture")
        chosen = [index for index in select_layers(config.upcycle.layers, plan.layers.stop) if index in plan.layers]
        start = dense_blocks(member.model, chosen)
        labels_G = _parts(plan, config.upcycle, chosen)
        branches = _branches(context, plan, labels_G, member.summary) if config.upcycle.branch_epochs else []
        if branches:
            average_branches(member.model, [branch.state_dict() for branch in branches])
            plan = replace(plan, head=config.head.model_copy(update={"init": "keep"}))
        upcycle(member.model, config.upcycle, layers=plan.layers, seed=seed)
        if branches:
            put_branches(member.model, branches)
        if labels_G is not None:
            start_routers(plan, labels_G)
        member.summary["mixture"] = fitted(replace(plan, callbacks=lambda module: _expert_callbacks(module, config.upcycle)))
        member.summary["experts"] = specialisation_summary(context, member.model, start)
        context.remember(folder, member.summary)
        if is_main():
            save_reward_model(member.model, context.tokenizer, folder / "moe")
    if config.merge is None:
        routing = routing_summary(routing_masses(context.reward_model(member.model), context.prepared.train))
        member.summary["mixture"] = {**member.summary.get("mixture", {}), "routing": routing, "divergence": expert_divergence(member.model)}


def _expert_callbacks(module: nn.Module, settings: Upcycle | None) -> list[TrainerCallback]:
    assert settings is not None
    hard = [HardStart(module, settings.hard_share)] if settings.hard_share else []
    return [*hard, PullTogether(module, settings.share_rate)] if settings.share_rate else list(hard)


def _parts(plan: Fit, settings: Upcycle, layers: Sequence[int]) -> NDArray[np.int64] | None:
    """Part of the prompts that every training group belongs to, where routers or branches need it."""
    if settings.router_init == "random" or not layers:
        return None
    return prompt_parts(plan, min(layers), settings.n_experts - 1, by=settings.router_init)


def _branches(context: MemberContext, plan: Fit, labels_G: NDArray[np.int64] | None, summary: dict[str, Any]) -> list[PreTrainedModel]:
    """A dense model for each part of the prompts, trained on that part alone; what is to be reported of them goes into the summary."""
    assert labels_G is not None
    assert context.config.upcycle is not None
    trained: list[PreTrainedModel] = []
    for number in range(int(labels_G.max()) + 1):
        model = copy.deepcopy(plan.model)
        what = f"branch {number + 1}"
        found = fitted(
            replace(
                plan,
                model=model,
                train=TrainingSet(of_part(plan.train.groups, labels_G, number)),
                folder=plan.folder.parent / f"branch-{number + 1}",
                trainer={**plan.trainer, "num_train_epochs": context.config.upcycle.branch_epochs, "max_steps": -1},
                record=lambda entry, what=what: context.directory.log({"phase": what, "seed": plan.seed, **entry}),
                what=what,
            )
        )
        summary.setdefault("branches", []).append(found)
        trained.append(model)
    return trained
