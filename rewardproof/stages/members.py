"""One member of a training run: dense training, upcycling, the mixture's training, merging, and what each of them reports."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from rewardproof.artifacts import Progress, RunDirectory, is_main
from rewardproof.data import Group
from rewardproof.evaluation import pair_accuracy
from rewardproof.merging import average
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import Merge, RoutingMass, measure_routing, merge_experts
from rewardproof.merging.specialisation import dense_blocks
from rewardproof.models.checkpoints import load_base, load_reward_model, save_reward_model
from rewardproof.models.families import family_of
from rewardproof.models.precision import default_device
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import group_key
from rewardproof.models.upcycling import Upcycle, is_upcycled, select_layers, upcycle
from rewardproof.stages.specialists import specialisation_summary
from rewardproof.training.batches import TrainingSet
from rewardproof.training.coefficients import LearnedCoefficients, find_coefficients
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.preparation import Prepared
from rewardproof.training.pulling import PullTogether
from rewardproof.training.specialising import HardStart, average_branches, of_cluster, prompt_clusters, put_branches, start_routers

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

SUMMARY = "summary.json"
"""What is to be reported of a finished part of a member, kept beside its checkpoints."""
ROUTING_GROUPS = 256
"""Training groups on which the routing of a mixture that is not merged is measured."""


@dataclass(frozen=True, slots=True)
class MemberContext:
    """What all members of a run share."""

    config: Train
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    directory: RunDirectory
    resume: bool
    progress: Progress

    @property
    def save_dtype(self) -> torch.dtype:
        """Precision of saved weights."""
        return torch.bfloat16 if self.config.compute.save_dtype == "bf16" else torch.float32

    def reward_model(self, model: PreTrainedModel) -> RewardModel:
        """The model ready to score, its frozen layers' activations shared with the run's other models."""
        compute = self.config.compute
        wrapped = RewardModel(model, self.tokenizer, precision=compute.precision, tokens_per_batch=compute.tokens_per_batch)
        first = select_layers(self.config.layers, len(family_of(model).layer_list(model))).start if self.config.layers != "top:0" else 0
        return wrapped.share_trunk(first, limit_gb=compute.trunk_cache_gb)

    def folder(self, number: int) -> Path:
        """Where a member keeps its own files: the run directory itself where there is only one."""
        return self.directory.path if self.config.members == 1 else self.directory.path / "members" / str(number)


@dataclass(slots=True)
class Member:
    """A trained member: its model, and what to report of it."""

    model: PreTrainedModel
    summary: dict[str, Any] = field(default_factory=dict)


def train_member(context: MemberContext, number: int) -> Member:
    """Train one member by what the recipe's sections say, or take it from `reuse` or an interrupted run."""
    config, folder = context.config, context.folder(number)
    if number < len(config.reuse):
        return Member(_loaded(config.reuse[number]), {"reused": config.reuse[number]})
    finished = folder / "model"
    if config.members > 1 and context.resume and finished.is_dir():
        return Member(_loaded(str(finished)), _remembered(folder))
    seed = config.seed + number
    member = Member(_mixture_or_base(context, folder, seed))
    if config.upcycle is None or (config.start == "rm" and not is_upcycled(member.model)):
        member.summary["dense"] = _fit(_plan(context, member.model, folder / "checkpoints" / "dense", seed, "training"))
    if config.upcycle is not None:
        _train_mixture(context, member, folder, seed)
    if config.merge is not None:
        member.summary["merge"] = merge_mixture(
            context.reward_model(member.model),
            config.merge,
            prepared=context.prepared,
            compute=config.compute,
            folder=folder / "checkpoints" / "merge",
            seed=seed,
            record=lambda entry: context.directory.log({"seed": seed, **entry}),
            progress=context.progress,
        )
    if config.members > 1:
        _remember(context, folder, member.summary)
        if is_main():
            save_reward_model(member.model, context.tokenizer, finished)
    return member


def drop_checkpoints(run: Path) -> None:
    """Delete the members' training checkpoints, once everything that they could be needed for is saved."""
    for folder in (run / "checkpoints", *run.glob("members/*/checkpoints")):
        shutil.rmtree(folder, ignore_errors=True)


def _remember(context: MemberContext, folder: Path, summary: Mapping[str, Any]) -> None:
    """Keep what is to be reported of a finished part beside its checkpoints, for a run that goes on from that part."""
    context.directory.write_json(str((folder / "checkpoints" / SUMMARY).relative_to(context.directory.path)), summary)


def _remembered(folder: Path) -> dict[str, Any]:
    file = folder / "checkpoints" / SUMMARY
    return json.loads(file.read_text()) if file.is_file() else {}


def _loaded(path: str) -> PreTrainedModel:
    return load_reward_model(path)[0].to(default_device())  # pyright: ignore[reportArgumentType]


def _mixture_or_base(context: MemberContext, folder: Path, seed: int) -> PreTrainedModel:
    if context.config.upcycle is not None and context.resume and (folder / "moe").is_dir():
        return _loaded(str(folder / "moe"))
    torch.manual_seed(seed)
    return load_base(context.config.model, context.tokenizer).to(default_device())  # pyright: ignore[reportArgumentType]


def _plan(context: MemberContext, model: PreTrainedModel, folder: Path, seed: int, what: str) -> Fit:
    config = context.config
    head = config.head.model_copy(update={"init": "keep"}) if what == "mixture" and config.start == "rm" else config.head
    return Fit(
        model=model,
        train=context.prepared.train,
        held_out=context.prepared.held_out_set,
        layers=select_layers(config.layers, len(family_of(model).layer_list(model))),
        folder=folder,
        seed=seed,
        trainer=config.trainer,
        loss=config.loss,
        compute=config.compute,
        head=head,
        router_learning_rate=config.upcycle.router_learning_rate if config.upcycle else 0.0,
        expert_learning_rate=config.upcycle.expert_learning_rate if config.upcycle else 0.0,
        lora=config.lora,
        resume=context.resume,
        record=lambda entry: context.directory.log({"phase": what, "seed": seed, **entry}),
        progress=context.progress,
        what=what,
    )


def _fit(plan: Fit) -> dict[str, Any]:
    result = fit(plan)
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "trainable_parameters": result.trainable_parameters,
        "last": dict(result.last),
    }


def _train_mixture(context: MemberContext, member: Member, folder: Path, seed: int) -> None:
    config = context.config
    assert config.upcycle is not None
    if is_upcycled(member.model):
        member.summary = _remembered(folder)
    else:
        plan = _plan(context, member.model, folder / "checkpoints" / "moe", seed, "mixture")
        chosen = [index for index in select_layers(config.upcycle.layers, plan.layers.stop) if index in plan.layers]
        start = dense_blocks(member.model, chosen)
        labels_G = _clusters(plan, config.upcycle, chosen)
        branches = _branches(context, plan, labels_G, member.summary) if config.upcycle.branch_epochs else []
        if branches:
            average_branches(member.model, [branch.state_dict() for branch in branches])
            plan = replace(plan, head=config.head.model_copy(update={"init": "keep"}))
        upcycle(member.model, config.upcycle, layers=plan.layers, seed=seed)
        if branches:
            put_branches(member.model, branches)
        if labels_G is not None:
            start_routers(plan, labels_G)
        member.summary["mixture"] = _fit(replace(plan, callbacks=lambda module: _expert_callbacks(module, config.upcycle)))
        member.summary["experts"] = specialisation_summary(context, member.model, start)
        _remember(context, folder, member.summary)
        if is_main():
            save_reward_model(member.model, context.tokenizer, folder / "moe")
    if config.merge is None:
        routing = _routing_summary(_routing(context.reward_model(member.model), context.prepared.train))
        member.summary["mixture"] = {**member.summary.get("mixture", {}), "routing": routing, "divergence": expert_divergence(member.model)}


def _expert_callbacks(module: nn.Module, settings: Upcycle | None) -> list[TrainerCallback]:
    assert settings is not None
    hard = [HardStart(module, settings.hard_share)] if settings.hard_share else []
    return [*hard, PullTogether(module, settings.share_rate)] if settings.share_rate else list(hard)


def _clusters(plan: Fit, settings: Upcycle, layers: Sequence[int]) -> NDArray[np.int64] | None:
    """Cluster of every training group's prompt, where routers or branches need it."""
    return prompt_clusters(plan, min(layers), settings.n_experts - 1) if settings.router_init == "clusters" and layers else None


def _branches(context: MemberContext, plan: Fit, labels_G: NDArray[np.int64] | None, summary: dict[str, Any]) -> list[PreTrainedModel]:
    """A dense model for each cluster of prompts, trained on that cluster alone; what is to be reported of them goes into the summary."""
    assert labels_G is not None
    assert context.config.upcycle is not None
    trained: list[PreTrainedModel] = []
    for number in range(int(labels_G.max()) + 1):
        model = copy.deepcopy(plan.model)
        what = f"branch {number + 1}"
        found = _fit(
            replace(
                plan,
                model=model,
                train=TrainingSet(of_cluster(plan.train.groups, labels_G, number)),
                folder=plan.folder.parent / f"branch-{number + 1}",
                trainer={**plan.trainer, "num_train_epochs": context.config.upcycle.branch_epochs},
                record=lambda entry, what=what: context.directory.log({"phase": what, "seed": plan.seed, **entry}),
                what=what,
            )
        )
        summary.setdefault("branches", []).append(found)
        trained.append(model)
    return trained


def _routing(mixture: RewardModel, groups: TrainingSet, *, limit: int = ROUTING_GROUPS) -> dict[int, RoutingMass]:
    sample = sorted((entry.group for entry in groups.groups), key=group_key)[:limit]
    return measure_routing(mixture, sample)


def _routing_summary(masses: Mapping[int, RoutingMass]) -> dict[str, Any]:
    return {str(layer): {"weights": mass.weights_E, "load": mass.load_n, "entropy": mass.entropy} for layer, mass in masses.items()}


@dataclass(frozen=True, slots=True)
class WeighedExperts:
    """What was found on data about a mixture that is still to be folded.

    Attributes:
        by_layer: Coefficients by layer, shape `(E,)` each.
        rewards: The mixture's rewards of the held-out groups.
        summary: Method, coefficients, learning and routing, for the report.
    """

    by_layer: dict[int, torch.Tensor]
    rewards: list[tuple[float, ...]]
    summary: dict[str, Any]


def weigh_experts(
    mixture: RewardModel,
    settings: Merge,
    *,
    prepared: Prepared,
    compute: Compute,
    folder: Path,
    seed: int,
    record: Callable[[Mapping[str, Any]], None],
    progress: Progress,
) -> WeighedExperts:
    """Measure a mixture's routing, find its coefficients and score the held-out groups; the mixture is left as it is."""
    masses = _routing(mixture, prepared.train, limit=settings.routing_groups)
    rewards = mixture.score_encoded(prepared.held_out_tokens)
    found = find_coefficients(
        mixture.model,
        masses,
        settings,
        sets=(prepared.merge_fit, prepared.merge_stop),
        compute=compute,
        folder=folder,
        seed=seed,
        record=record,
        progress=progress,
    )
    learning, routing = _learning_summary(found), _routing_summary(masses)
    return WeighedExperts(
        found.by_layer, rewards, {**coefficients_summary(settings, found.by_layer), "learning": learning, "routing": routing}
    )


def coefficients_summary(settings: Merge, by_layer: Mapping[int, torch.Tensor]) -> dict[str, Any]:
    """Method and coefficients, for the report."""
    return {"method": settings.method, "coefficients": {str(layer): coefficients_E for layer, coefficients_E in by_layer.items()}}


def merge_mixture(
    mixture: RewardModel,
    settings: Merge,
    *,
    prepared: Prepared,
    compute: Compute,
    folder: Path,
    seed: int,
    record: Callable[[Mapping[str, Any]], None],
    progress: Progress,
) -> dict[str, Any]:
    """Fold a mixture into its dense form, in place, and report what that changed.

    Returns:
        Coefficients, routing, divergence of the experts, and how the merged model's rewards relate to the mixture's on held-out pairs.
    """
    divergence = expert_divergence(mixture.model)
    found = weigh_experts(mixture, settings, prepared=prepared, compute=compute, folder=folder, seed=seed, record=record, progress=progress)
    merge_experts(mixture.model, found.by_layer)
    after = mixture.score_encoded(prepared.held_out_tokens)
    return found.summary | {"divergence": divergence, "held_out": compare_rewards(prepared.held_out, found.rewards, after)}


def _learning_summary(found: LearnedCoefficients) -> dict[str, Any]:
    return {"steps": found.steps, "best_step": found.best_step, "loss_before": found.loss_before, "loss_after": found.loss_after}


def compare_rewards(
    groups: Sequence[Group], before: Sequence[tuple[float, ...]], after: Sequence[tuple[float, ...]]
) -> dict[str, Any] | None:
    """How the merged model's rewards relate to the mixture's; `None` without groups."""
    if not groups:
        return None
    mixture, merged = np.concatenate([np.asarray(row) for row in before]), np.concatenate([np.asarray(row) for row in after])
    return {
        "correlation": float(np.corrcoef(mixture, merged)[0, 1]) if mixture.std() > 0 and merged.std() > 0 else None,
        "mixture_accuracy": pair_accuracy(groups, before).overall.as_dict(),
        "merged_accuracy": pair_accuracy(groups, after).overall.as_dict(),
        "mixture_reward_std": float(mixture.std()),
        "merged_reward_std": float(merged.std()),
    }


def average_members(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """The members' uniform average; a single member is returned as it is."""
    if len(models) == 1:
        return models[0]
    models[0].load_state_dict(average([model.state_dict() for model in models]))
    return models[0]
