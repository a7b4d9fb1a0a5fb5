"""One member of a training run: dense training, a mixture, its merge; and the average of several members."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rewardproof.artifacts import is_main
from rewardproof.merging import average
from rewardproof.models.checkpoints import load_base, load_reward_model, set_reading
from rewardproof.models.depth import keep_first_layers
from rewardproof.models.factor_head import install_factors
from rewardproof.models.precision import default_device
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import is_upcycled
from rewardproof.stages.domain import matched, merge_with_domain, require_one_base
from rewardproof.stages.factors_page import dictionary_of, factors_summary
from rewardproof.stages.member_context import Member, MemberContext, fitted, remembered
from rewardproof.stages.mixture import train_mixture
from rewardproof.stages.weighing import Weighing, merge_mixture


def train_member(context: MemberContext, number: int) -> Member:
    """Train one member by what the recipe's sections say, or take it from `reuse` or an interrupted run."""
    config, folder = context.config, context.folder(number)
    if number < len(config.reuse):
        return Member(_loaded(config.reuse[number]), {"reused": config.reuse[number]})
    finished = folder / "model"
    if config.members > 1 and context.resume and finished.is_dir():
        return Member(_loaded(str(finished)), remembered(folder))
    seed = config.seed + number
    member = Member(_mixture_or_base(context, folder, seed))
    if config.domain is not None and not is_upcycled(member.model):
        require_one_base(member.model, config.domain.model)
    if config.upcycle is None or (config.start == "rm" and not is_upcycled(member.model)):
        start_K = dictionary_of(member.model)
        member.summary["dense"] = fitted(context.plan(member.model, folder / "checkpoints" / "dense", seed, "training"))
        if start_K is not None:
            member.summary["factors"] = factors_summary(context, member.model, start_K)
    if config.upcycle is not None:
        train_mixture(context, member, folder, seed)
    if config.merge is not None:
        work = Weighing(
            config.merge,
            prepared=context.prepared,
            compute=config.compute,
            folder=folder / "checkpoints" / "merge",
            seed=seed,
            record=lambda entry: context.directory.log({"seed": seed, **entry}),
            progress=context.progress,
        )
        member.summary["merge"] = merge_mixture(context.reward_model(member.model), work)
    if config.domain is not None:
        matches = matched(member.model, context.tokenizer, config.domain.model, several=config.domain.validate_on is not None)
        found = merge_with_domain(
            matches,
            config.domain,
            validation=context.prepared.validation,
            tokenizer=context.tokenizer,
            compute=config.compute,
            progress=context.progress,
        )
        member.model, member.summary["domain"] = found.model, found.summary
    if config.members > 1:
        context.remember(folder, member.summary)
        if is_main():
            save_reward_model(member.model, context.tokenizer, finished)
    return member


def drop_checkpoints(run: Path) -> None:
    """Delete the members' training checkpoints, once everything that they could be needed for is saved."""
    for folder in (run / "checkpoints", *run.glob("members/*/checkpoints")):
        shutil.rmtree(folder, ignore_errors=True)


def _loaded(path: str) -> PreTrainedModel:
    return load_reward_model(path)[0].to(default_device())  # pyright: ignore[reportArgumentType]


def _mixture_or_base(context: MemberContext, folder: Path, seed: int) -> PreTrainedModel:
    if context.config.upcycle is not None and context.resume and (folder / "moe").is_dir():
        return _loaded(str(folder / "moe"))
    return base_model(context, seed)


def base_model(context: MemberContext, seed: int) -> PreTrainedModel:
    """The language model that all parts of a run start from, as a reward model with an untrained head."""
    torch.manual_seed(seed)
    model = load_base(context.config.model, context.tokenizer)
    set_reading(model, "reference" if context.config.rule else "conversation")
    if context.config.depth:
        keep_first_layers(model, context.config.depth)
    if context.config.factors is not None:
        install_factors(model, context.config.factors, seed=context.head_seed(seed))
    return model.to(default_device())  # pyright: ignore[reportArgumentType]


def average_members(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """The members' uniform average; a single member is returned as it is."""
    if len(models) == 1:
        return models[0]
    models[0].load_state_dict(average([model.state_dict() for model in models]))
    return models[0]
