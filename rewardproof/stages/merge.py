"""`rewardproof merge MOE OUT`, or `merge MODEL MODEL… OUT method=average`: experts into one dense model, or models into one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent
from rewardproof.config import Section, Strings
from rewardproof.errors import ConfigError, ModelError
from rewardproof.evaluation import pair_accuracy
from rewardproof.merging import average
from rewardproof.merging.experts import Merge
from rewardproof.models.checkpoints import forget_reward_scale, load_reward_model, load_tokenizer, save_reward_model, save_reward_scale
from rewardproof.models.precision import default_device
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import is_upcycled
from rewardproof.stages.experts_page import write_merge_page
from rewardproof.stages.members import merge_mixture
from rewardproof.stages.training_report import scored
from rewardproof.training.fit import Compute
from rewardproof.training.preparation import Prepared, Read, Sources, prepare


class MergeModels(Section):
    """What to merge and how."""

    models: Strings
    """One mixture, or two or more dense models of one architecture for `method=average`."""
    method: Literal["uniform", "routing_mass", "learned", "average"] = "learned"
    """Coefficients of the routed experts, or the uniform average of whole models (WARM)."""
    data: Strings = ()
    """Preferences on which routing is measured and coefficients are learned; a mixture needs them. Name the mixture's training data: the
    parts are drawn by hashes of the texts, so the same data, `split`, `held_out` and `read` give the same parts as in training."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of prompts held out for evaluation, as in training; 0 where the training run had its own `eval_data`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the remaining prompts that the experts did not train on, `merge.held_out` of the training run: `method=learned` learns
    the coefficients there. A mixture trained without a merge (`moe_unmerged`) saw them all."""
    shared_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Coefficient λ of the shared expert."""
    learn_shared_weight: bool = False
    """Learn λ too."""
    steps: Annotated[int, Field(ge=1)] = 60
    """Steps on the coefficients at most."""
    learning_rate: Annotated[float, Field(ge=0)] = 2e-2
    """AdamW's rate on the coefficients' logits."""
    max_length: int = 2048
    """Longest conversation, in tokens."""
    seed: int = 0
    """Of the data order."""
    read: Read = Read(on_bad="drop_unfit")
    """How the data is read."""
    compute: Compute = Compute()
    """Precision, budgets, cache."""


def check_settings(config: MergeModels) -> None:
    """Refuse what cannot be merged, before any work is done.

    Raises:
        ConfigError: Models and method do not fit each other, or a mixture comes without data.
    """
    if config.method == "average":
        if len(config.models) < 2:
            raise ConfigError(f"method=average got {len(config.models)} model, expected two or more; name them before OUT.")
        return
    if len(config.models) != 1:
        raise ConfigError(
            f"Got {len(config.models)} models for method={config.method}, expected one mixture; to average models write method=average."
        )
    if not config.data:
        raise ConfigError(
            "Missing data=: the router's weights are measured, and coefficients learned, on preferences; name the training data."
        )


def run(
    config: MergeModels,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Report:
    """Merge and save to `OUT/model`.

    Raises:
        CheckpointError: OUT holds something, or a model does not exist.
        ConfigError: Models and method do not fit each other, or a mixture comes without data.
        ModelError: A dense model was given where a mixture is expected, or the reverse.
    """
    check_settings(config)
    started = time.perf_counter()
    refuse_inputs_inside(out, (*config.models, *config.data))
    require_free(out, overwrite=overwrite, resume=False)
    if config.method == "average":
        return _average(config, out, overwrite=overwrite, started=started)
    spec = config.models[0]
    model, _ = load_reward_model(spec)
    if not is_upcycled(model):
        raise ModelError(
            f"{spec} is dense, expected a mixture of experts: it has nothing to merge. Give OUT/moe of a umm run, or method=average."
        )
    tokenizer = load_tokenizer(spec)
    held_out = config.held_out if config.method == "learned" else 0.0
    prepared = prepare(Sources(config.data, (), config.split, held_out, config.read, config.max_length), tokenizer)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    compute = config.compute
    mixture = RewardModel(
        model, tokenizer, precision=compute.precision, tokens_per_batch=compute.tokens_per_batch, backend=compute.attention
    )
    return _fold(config, mixture, prepared, RunDirectory(out, config, overwrite=overwrite, started=started), progress)


def _fold(config: MergeModels, mixture: RewardModel, prepared: Prepared, directory: RunDirectory, progress: Progress) -> Report:
    settings = Merge(**config.model_dump(include={"method", "held_out", "shared_weight", "learn_shared_weight", "steps", "learning_rate"}))
    summary = merge_mixture(
        mixture,
        settings,
        prepared=prepared,
        compute=config.compute,
        folder=directory.path / "checkpoints",
        seed=config.seed,
        record=directory.log,
        progress=progress,
    )
    shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
    forget_reward_scale(mixture.model)
    mixture.save(directory.path / "model", dtype=_save_dtype(config))
    accuracy = None
    if prepared.held_out_tokens:
        rewards = scored(mixture, prepared.held_out_tokens, progress)
        accuracy = pair_accuracy(prepared.held_out, rewards)
        save_reward_scale(directory.path / "model", rewards)
    held = summary["held_out"] or {}
    shown = "" if held.get("correlation") is None else f", rewards correlate {held['correlation']:.4f} with the mixture's"
    results: dict[str, Any] = {"rows": prepared.rows, "merge": summary, "accuracy": accuracy.as_dict() if accuracy else None}
    report = directory.finish(f"experts merged ({config.method}){shown}", results)
    write_merge_page(directory, report, summary)
    return report


def _average(config: MergeModels, out: Path | str, *, overwrite: bool, started: float) -> Report:
    loaded = [load_reward_model(spec) for spec in config.models]
    for spec, (model, _) in zip(config.models, loaded, strict=True):
        if is_upcycled(model):
            raise ModelError(f"{spec} is a mixture, expected dense models for method=average; merge its experts first.")
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    model, tokenizer = loaded[0]
    model.load_state_dict(average([entry.state_dict() for entry, _ in loaded]))
    forget_reward_scale(model)
    save_reward_model(model, tokenizer, directory.path / "model", dtype=_save_dtype(config))
    return directory.finish(f"{len(loaded)} models averaged", {"models": list(config.models)})


def _save_dtype(config: MergeModels) -> torch.dtype:
    return torch.bfloat16 if config.compute.save_dtype == "bf16" else torch.float32
