"""One member of a training run: dense training, upcycling, the mixture's training, merging, and what each of them reports."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Progress, RunDirectory
from rewardproof.data import Group
from rewardproof.evaluation import pair_accuracy
from rewardproof.merging import average
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import Merge, RoutingMass, measure_routing, merge_experts
from rewardproof.models.checkpoints import load_base, load_reward_model, save_reward_model
from rewardproof.models.families import family_of
from rewardproof.models.precision import default_device
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import group_key
from rewardproof.models.upcycling import is_upcycled, select_layers, upcycle
from rewardproof.training.batches import TrainingSet
from rewardproof.training.coefficients import LearnedCoefficients, find_coefficients
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.preparation import Prepared

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

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
        return Member(_loaded(str(finished)), {"resumed": str(finished)})
    seed = config.seed + number
    member = Member(_mixture_or_base(context, folder, seed))
    if config.upcycle is None or (config.start == "rm" and not is_upcycled(member.model)):
        member.summary["dense"] = _fit(context, member.model, folder / "checkpoints" / "dense", seed, "training")
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
            record=context.directory.log,
            progress=context.progress,
        )
    if config.members > 1:
        save_reward_model(member.model, context.tokenizer, finished)
    return member


def drop_checkpoints(context: MemberContext) -> None:
    """Delete the members' training checkpoints, once everything that they could be needed for is saved."""
    for number in range(context.config.members):
        shutil.rmtree(context.folder(number) / "checkpoints", ignore_errors=True)


def _loaded(path: str) -> PreTrainedModel:
    return load_reward_model(path)[0].to(default_device())  # pyright: ignore[reportArgumentType]


def _mixture_or_base(context: MemberContext, folder: Path, seed: int) -> PreTrainedModel:
    if context.config.upcycle is not None and context.resume and (folder / "moe").is_dir():
        return _loaded(str(folder / "moe"))
    torch.manual_seed(seed)
    return load_base(context.config.model, context.tokenizer).to(default_device())  # pyright: ignore[reportArgumentType]


def _fit(context: MemberContext, model: PreTrainedModel, folder: Path, seed: int, what: str) -> dict[str, Any]:
    config = context.config
    head = config.head.model_copy(update={"init": "keep"}) if what == "mixture" and config.start == "rm" else config.head
    result = fit(
        Fit(
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
            lora=config.lora,
            resume=context.resume,
            record=lambda entry: context.directory.log({"phase": what, "seed": seed, **entry}),
            progress=context.progress,
            what=what,
        )
    )
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
        member.summary["mixture"] = {"resumed": str(folder / "moe")}
    else:
        layers = select_layers(config.layers, len(family_of(member.model).layer_list(member.model)))
        upcycle(member.model, config.upcycle, layers=layers, seed=seed)
        member.summary["mixture"] = _fit(context, member.model, folder / "checkpoints" / "moe", seed, "mixture")
        save_reward_model(member.model, context.tokenizer, folder / "moe")
    if config.merge is None:
        routing = _routing_summary(_routing(member.model, context.prepared.train, config.compute))
        member.summary["mixture"] |= {"routing": routing, "divergence": expert_divergence(member.model)}


def _routing(model: PreTrainedModel, groups: TrainingSet, compute: Compute, *, limit: int = ROUTING_GROUPS) -> dict[int, RoutingMass]:
    sample = sorted((entry.group for entry in groups.groups), key=group_key)[:limit]
    return measure_routing(model, sample, tokens_per_batch=compute.tokens_per_batch, precision=compute.precision)


def _routing_summary(masses: Mapping[int, RoutingMass]) -> dict[str, Any]:
    return {str(layer): {"weights": mass.weights_E, "load": mass.load_n, "entropy": mass.entropy} for layer, mass in masses.items()}


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
    model = mixture.model
    masses = _routing(model, prepared.train, compute, limit=settings.routing_groups)
    divergence = expert_divergence(model)
    before = mixture.score_encoded(prepared.held_out_tokens)
    found = find_coefficients(
        model,
        masses,
        settings,
        sets=(prepared.merge_fit, prepared.merge_stop),
        compute=compute,
        folder=folder,
        seed=seed,
        record=record,
        progress=progress,
    )
    merge_experts(model, found.by_layer)
    after = mixture.score_encoded(prepared.held_out_tokens)
    return {
        "method": settings.method,
        "coefficients": {str(layer): coefficients_E for layer, coefficients_E in found.by_layer.items()},
        "learning": _learning_summary(found),
        "routing": _routing_summary(masses),
        "divergence": divergence,
        "held_out": _compare(prepared.held_out, before, after),
    }


def _learning_summary(found: LearnedCoefficients) -> dict[str, Any]:
    return {"steps": found.steps, "best_step": found.best_step, "loss_before": found.loss_before, "loss_after": found.loss_after}


def _compare(groups: Sequence[Group], before: Sequence[tuple[float, ...]], after: Sequence[tuple[float, ...]]) -> dict[str, Any] | None:
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
