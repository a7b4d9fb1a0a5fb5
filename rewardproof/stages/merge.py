"""`rewardproof merge MOE OUT`, or `merge MODEL MODEL… OUT method=average|domain`: experts into one dense model, or models into one."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent
from rewardproof.config import Floats, Section, Strings
from rewardproof.errors import ConfigError, ModelError
from rewardproof.evaluation import pair_accuracy
from rewardproof.merging import average
from rewardproof.merging.experts import Merge, unmeasured_coefficients
from rewardproof.merging.streaming import StoredMixture, merge_stored, open_mixture
from rewardproof.models.checkpoints import forget_reward_scale, load_reward_model
from rewardproof.models.precision import default_device
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model, save_reward_scale
from rewardproof.models.upcycling import is_upcycled
from rewardproof.stages.domain import SWEEP
from rewardproof.stages.domain_verb import check_merge, merge_models
from rewardproof.stages.experts_page import write_merge_page
from rewardproof.stages.training_report import scored
from rewardproof.stages.weighing import WeighedExperts, Weighing, coefficients_summary, compare_rewards, weigh_experts
from rewardproof.training.fit import Compute
from rewardproof.training.preparation import Prepared, Read, Sources, prepare


class MergeModels(Section):
    """What to merge and how."""

    models: Strings
    """One mixture; two or more dense models of one architecture for `method=average`; a dense model and a language model for `domain`."""
    method: Literal["uniform", "routing_mass", "learned", "average", "domain"] = "learned"
    """Coefficients of the routed experts, the uniform average of whole models (WARM), or a reward model with a domain's language model
    (DogeRM)."""
    data: Strings = ()
    """Preferences on which routing is measured and coefficients are learned; `uniform` and `average` do without, and with data `uniform`
    compares mixture and merged model. Name the mixture's training data: the parts are drawn by hashes of the texts, so the same data,
    `split`, `held_out` and `read` give the same parts as in training. For `domain`: validation preferences, all of which λ is chosen on;
    never those that the merged model will be judged by."""
    weight: Annotated[float, Field(ge=0, le=1)] | Literal["choose"] = "choose"
    """Of the language model in `domain`, λ; `choose` takes that of `weights` with the highest accuracy on `data`, the smaller of equals."""
    weights: Floats = SWEEP
    """What `choose` tries."""
    reward_weight: Annotated[float, Field(ge=0)] | Literal["rest"] = "rest"
    """Of the reward model in `domain`: the `rest`, 1 − λ, or a number that does not depend on λ."""
    domain_tokens: Literal["leave", "add"] = "leave"
    """Tokens that only the language model has: left out, so that the reward model reads as before, or added to its tokenizer with their
    rows copied."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of prompts held out for evaluation, as in training; 0 where the training run had its own `eval_data`."""
    split_seed: int = 0
    """Which of the possible splits, as in training."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the remaining prompts that the experts did not train on, `merge.held_out` of the training run: `method=learned` learns
    the coefficients there. A mixture trained without a merge (`moe_unmerged`) saw them all."""
    shared_weight: Annotated[float, Field(ge=0, le=1)] | Literal["measured"] = 0.5
    """Coefficient λ of the shared expert, or `measured`, its mean weight over tokens of the data."""
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
    if config.method == "domain":
        check_merge(config)
        return
    if len(config.models) != 1:
        raise ConfigError(
            f"Got {len(config.models)} models for method={config.method}, expected one mixture; to average models write method=average."
        )
    if not config.data and (config.method != "uniform" or config.shared_weight == "measured"):
        raise ConfigError(
            "Missing data=: the router's weights are measured, and coefficients learned, on preferences; name the training data, or write "
            "method=uniform with a number for shared_weight, which needs none."
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
    if config.method == "domain":
        return merge_models(config, out, overwrite=overwrite, started=started, progress=progress)
    if config.method == "average":
        return _average(config, out, overwrite=overwrite, started=started)
    stored = open_mixture(config.models[0])
    settings = Merge(**config.model_dump(include={"method", "held_out", "shared_weight", "learn_shared_weight", "steps", "learning_rate"}))
    if not config.data:
        directory = RunDirectory(out, config, overwrite=overwrite, started=started)
        by_layer = unmeasured_coefficients({layer: block.experts.n_experts for layer, block in stored.blocks.items()}, settings)
        divergence = merge_stored(stored, by_layer, directory.path / "model", dtype=config.compute.weights_dtype)
        return _finish(directory, stored, coefficients_summary(settings, by_layer) | {"divergence": divergence, "held_out": None}, {})
    held_out = config.held_out if config.method == "learned" else 0.0
    sources = Sources(config.data, (), config.split, held_out, config.read, config.max_length, config.split_seed)
    prepared = prepare(sources, stored.tokenizer)
    mixture = _load(config.models[0], config)
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    work = Weighing(
        settings,
        prepared=prepared,
        compute=config.compute,
        folder=directory.path / "checkpoints",
        seed=config.seed,
        record=directory.log,
        progress=progress,
    )
    weighed = weigh_experts(mixture, work)
    del mixture
    gc.collect()  # the trainer's cycles would keep the experts in memory while the merged model is made
    shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
    divergence = merge_stored(stored, weighed.by_layer, directory.path / "model", dtype=config.compute.weights_dtype)
    return _judge(config, stored, prepared, directory, replace(weighed, summary=weighed.summary | {"divergence": divergence}), progress)


def _load(spec: str, config: MergeModels) -> RewardModel:
    model, tokenizer = load_reward_model(spec)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    compute = config.compute
    return RewardModel(model, tokenizer, precision=compute.precision, tokens_per_batch=compute.tokens_per_batch, backend=compute.attention)


def _judge(
    config: MergeModels, stored: StoredMixture, prepared: Prepared, directory: RunDirectory, weighed: WeighedExperts, progress: Progress
) -> Report:
    accuracy, rewards = None, []
    if prepared.held_out_tokens:
        rewards = scored(_load(str(directory.path / "model"), config), prepared.held_out_tokens, progress)
        accuracy = pair_accuracy(prepared.held_out, rewards)
        save_reward_scale(directory.path / "model", rewards)
    summary = weighed.summary | {"held_out": compare_rewards(prepared.held_out, weighed.rewards, rewards)}
    return _finish(directory, stored, summary, {"rows": prepared.rows, "accuracy": accuracy.as_dict() if accuracy else None})


def _finish(directory: RunDirectory, stored: StoredMixture, summary: dict[str, Any], results: dict[str, Any]) -> Report:
    held = summary["held_out"] or {}
    shown = "" if held.get("correlation") is None else f", rewards correlate {held['correlation']:.4f} with the mixture's"
    memory = {"mixture_gb": round(stored.path.stat().st_size / 1e9, 2)}
    report = directory.finish(
        f"experts merged ({summary['method']}){shown}", {"rows": {}, "accuracy": None, **results, "merge": summary, **memory}
    )
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
    save_reward_model(model, tokenizer, directory.path / "model", dtype=config.compute.weights_dtype)
    return directory.finish(f"{len(loaded)} models averaged", {"models": list(config.models)})
