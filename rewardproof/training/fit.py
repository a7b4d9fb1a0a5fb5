"""One training run of one reward model: freeze, store the trunk, start the head, train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rewardproof.artifacts import Progress, is_main, silent
from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError
from rewardproof.models.cost import products_per_token
from rewardproof.models.double_mixture import CapabilityExperts
from rewardproof.models.families import family_of, is_padded_only
from rewardproof.models.heads import Head, fit_probe, set_head, set_normal_head
from rewardproof.models.precision import Precision, computing_in, resolve_precision, weights_dtype
from rewardproof.models.trunk import FrozenTrunk, TrunkCache
from rewardproof.training.arguments import training_arguments
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Collator, TrainingGroup, TrainingSet, refuse_too_long
from rewardproof.training.callbacks import BestStateCallback, ProgressCallbackTo
from rewardproof.training.checkpoints import latest_whole
from rewardproof.training.end_states import EndStates, end_states_of
from rewardproof.training.freezing import add_adapters, freeze_all_but
from rewardproof.training.objective import Loss
from rewardproof.training.processes import agreed, start
from rewardproof.training.pulling import PullTogether
from rewardproof.training.sharding import whole_afterwards, without_sharding
from rewardproof.training.stored_trunk import stored_trunk
from rewardproof.training.trainer import PackedRewardModule, RewardTrainer


class Compute(Section):
    """How the work is laid on the machine; none of it changes what is computed beyond rounding."""

    precision: Precision = "auto"
    """`auto` is bf16 autocast over fp32 weights where the hardware has bf16, else fp32; `tf32` is fp32 with reduced matrix products."""
    tokens_per_batch: Annotated[int, Field(ge=1)] = 4096
    """Token budget of one forward pass."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for the activations of frozen layers; 0 runs the frozen layers every time instead."""
    attention: Literal["", "rewardproof_segments", "rewardproof_flex", "rewardproof_varlen"] = ""
    """Attention backend; empty is FlashAttention or FlexAttention on CUDA and per-segment attention elsewhere."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the saved weights."""

    @property
    def weights_dtype(self) -> torch.dtype:
        """`save_dtype` as torch's."""
        return weights_dtype(self.save_dtype)


@dataclass(slots=True)
class Fit:
    """Everything one training run needs.

    Attributes:
        model: The reward model; trained in place.
        train: Groups to train on.
        held_out: Groups for the accuracy during training.
        layers: Layers that train; all others and, unless all train, the embeddings are frozen.
        folder: Where checkpoints go.
        seed: Of data order.
        trainer: Settings for `TrainingArguments`.
        loss: The objective.
        compute: Precision, budgets, cache.
        head: How the head starts and its learning rate; with `None` it stays as it is and, if it trains at all, has the trainer's rate.
        head_seed: Of a head that is drawn; `seed` where left out.
        trunk_precision: Of the frozen layers, where it differs from that of the layers that train; empty where it does not.
        router_learning_rate: The routers' own rate.
        expert_learning_rate: The experts' own rate; 0 is the trainer's.
        lora: Settings for peft's `LoraConfig`; empty trains the weights themselves.
        auxiliaries: Further terms of the objective, made for the model that trains.
        judged: Groups of which such terms report something at the end, whole.
        experts: Experts by capability that lie on the model; where they are given, the network over them trains and nothing else need.
        patience: Evaluations on the held-out groups without a new best that end training, whose best state is then kept; 0 keeps the last.
        trainable: Chooses parameters by module instead of by layer (merge coefficients); `None` trains the layers.
        callbacks: More callbacks, given the module that trains.
        resume: Go on from the last checkpoint in `folder`.
        record: Receives every log record.
        progress: Receives what is being done, how far, of how much.
        what: The name of this run in the progress.
        look_at_states: Report what the head reads of the held-out groups, before and after training.
    """

    model: PreTrainedModel
    train: TrainingSet
    held_out: TrainingSet | None
    layers: range
    folder: Path
    seed: int
    trainer: Mapping[str, Any]
    loss: Loss
    compute: Compute
    head: Head | None = None
    head_seed: int | None = None
    trunk_precision: Precision | Literal[""] = ""
    router_learning_rate: float = 1e-3
    expert_learning_rate: float = 0.0
    lora: Mapping[str, Any] = field(default_factory=dict)
    auxiliaries: Callable[[PreTrainedModel], Sequence[AuxiliaryTerm]] = lambda _: ()
    judged: Sequence[EncodedGroup] = ()
    experts: CapabilityExperts | None = None
    patience: int = 0
    trainable: Callable[[PreTrainedModel], Sequence[nn.Parameter]] | None = None
    callbacks: Callable[[PackedRewardModule], list[TrainerCallback]] = lambda _: []
    resume: bool = False
    record: Callable[[Mapping[str, Any]], None] = lambda _: None
    progress: Progress = silent
    what: str = "training"
    look_at_states: bool = False


@dataclass(frozen=True, slots=True)
class FitResult:
    """Outcome of a training run.

    Attributes:
        steps: Optimiser steps done.
        seconds: Wall time of the optimisation.
        tokens_per_second: Trained tokens (shared prompts once) by second of it.
        trainable_parameters: How many numbers trained.
        tokens: Tokens trained on, a prompt that a group shares once.
        tflops: Floating-point operations of the matrix products, in 10^12: six a token in layers that train, two in frozen ones that run,
            and those of further terms of the objective.
        last: The last training record of the log.
        found: What further terms of the objective report.
        states: What the head reads of the held-out groups `before` and `after`, where that was asked for.
        best_step: The step whose state was kept, where the best was chosen.
    """

    steps: int
    seconds: float
    tokens_per_second: float
    trainable_parameters: int
    tokens: int
    tflops: float
    last: Mapping[str, float]
    found: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, EndStates] = field(default_factory=dict)
    best_step: int | None = None


def fit(run: Fit) -> FitResult:
    """Train a reward model in place.

    Raises:
        ConfigError: Nothing to train on, or settings that transformers refuses.
        TrainingError: The loss or the weights are no longer finite.
        StorageError: The disk is full.
    """
    if not len(run.train):
        raise ConfigError("No ordered pairs to train on, expected at least one; check the data and the report's counts of dropped rows.")
    sets = [part for part in (run.train, run.held_out) if part is not None]
    refuse_too_long(run.model, [entry.group for part in sets for entry in part.groups])
    start()
    adapters = _choose_trainable(run)
    with fed_module(run) as (module, collator):
        trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if run.head is not None:
            _start_head(run, module, collator)
        for term in module.terms:
            term.before(run, module, collator)
        before = _states(run, module, collator, when="before", step=0)
        with without_sharding() if run.trainable is not None else contextlib.nullcontext():
            result = _optimise(run, module, collator, trainable)
        states = before | _states(run, module, collator, when="after", step=result.steps)
        found = {name: value for term in module.terms for name, value in term.after(run, module, collator).items()}
    if adapters is not None:
        adapters.merge_and_unload()
    run.model.requires_grad_(True)
    run.model.eval()
    return replace(result, states=states, found=found)


@contextlib.contextmanager
def fed_module(run: Fit) -> Iterator[tuple[PackedRewardModule, Collator]]:
    """The model in its packed form and the collator that feeds it, its frozen layers' activations stored where the settings say so."""
    with _detached_trunk(run) as (trunk, cache):
        auxiliaries = [term.to(run.model.device) for term in run.auxiliaries(run.model)]
        module = PackedRewardModule(run.model, trunk=trunk, backend=run.compute.attention, auxiliaries=auxiliaries, experts=run.experts)
        yield module, Collator(tokens_per_batch=run.compute.tokens_per_batch, cache=cache)


def _states(run: Fit, module: PackedRewardModule, collator: Collator, *, when: str, step: int) -> dict[str, EndStates]:
    if not run.look_at_states or run.held_out is None:
        return {}
    found = agreed(end_states_of(module, run.held_out.groups, collator=collator, precision=run.compute.precision))
    if found is None:
        return {}
    run.record({"states": when, "step": step, **{f"states/{name}": value for name, value in asdict(found).items()}})
    return {when: found}


def _optimise(run: Fit, module: PackedRewardModule, collator: Collator, trainable: int) -> FitResult:
    device = run.model.device
    precision = resolve_precision(run.compute.precision, device)
    has_held_out = run.held_out is not None and len(run.held_out) > 0
    owned = {"bf16": precision == "bf16", "use_cpu": device.type == "cpu", "seed": run.seed, "data_seed": run.seed}
    if not has_held_out:
        owned["eval_strategy"] = "no"
    arguments = training_arguments(run.folder, {**owned, **run.trainer})
    if arguments.num_train_epochs == 0 and arguments.max_steps <= 0:
        return FitResult(0, 0.0, 0.0, trainable, 0, 0.0, {})
    if arguments.eval_strategy != "no" and not has_held_out:
        raise ConfigError(
            f"trainer.eval_strategy={run.trainer.get('eval_strategy')}: nothing is held out to evaluate on; give eval_data= or split=, "
            "or write trainer.eval_strategy=no."
        )
    trainer = RewardTrainer(
        module,
        arguments,
        train_set=run.train,
        held_out=run.held_out if has_held_out else None,
        collator=collator,
        loss=run.loss,
        precision=run.compute.precision,
        rates={
            "head": run.head.learning_rate if run.head else arguments.learning_rate,
            "router": run.router_learning_rate,
            "experts": run.expert_learning_rate or arguments.learning_rate,
        },
        record=run.record,
    )
    for callback in (*run.callbacks(module), ProgressCallbackTo(run.progress, run.what)):
        trainer.add_callback(callback)
    checkpoint = agreed(latest_whole(run.folder) if run.resume and is_main() else None)
    best: BestStateCallback | None = None
    if run.patience and has_held_out:
        resumed_at = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        best = BestStateCallback(module, patience=run.patience, folder=run.folder, resumed_at=resumed_at)
        trainer.add_callback(best)
    reduced = computing_in("tf32", device) if precision == "tf32" else contextlib.nullcontext()
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded and any(isinstance(callback, PullTogether) for callback in trainer.callback_handler.callbacks):
        raise ConfigError(
            "Got upcycle.share_rate with FSDP or DeepSpeed, expected DDP or one process: a process that holds a part of the experts cannot "
            "pull them together. Use examples/launch/ddp.yaml, or write upcycle.share_rate=0."
        )
    if sharded and not all(term.can_be_sharded for term in module.terms):
        names = ", ".join(type(term).__name__ for term in module.terms if not term.can_be_sharded)
        raise ConfigError(
            f"Got {names} with FSDP or DeepSpeed, expected DDP or one process: it reads weights that a process would hold a part "
            "of. Use examples/launch/ddp.yaml, or drop the term."
        )
    with reduced, whole_afterwards(module) if sharded else contextlib.nullcontext():
        seconds = trainer.train_from(checkpoint)
    if best is not None and best.history:
        best.restore()
    trainer.require_finite_weights()
    records = [entry for entry in trainer.state.log_history if "loss" in entry]
    speeds = [entry["tokens_per_second"] for entry in records if "tokens_per_second" in entry]
    speed = float(np.median(speeds)) if speeds else 0.0
    epochs = trainer.state.epoch or 0.0
    tokens = round(epochs * sum(entry.group.n_tokens for entry in run.train.groups))
    computed = tokens if run.experts is None else run.experts.learned_tokens
    tflops = (computed * _operations_per_token(run) + sum(term.operations(run, epochs) for term in module.terms)) / 1e12
    last = records[-1] if records else {}
    best_step = best.best_step if best is not None else None
    return FitResult(trainer.state.global_step, seconds, speed, trainable, tokens, tflops, last, best_step=best_step)


def _operations_per_token(run: Fit) -> int:
    """Those of the layers as they run now: frozen ones whose activations are stored do not."""
    if run.experts is not None:
        return 2 * run.experts.products(run.model)
    whole = products_per_token(run.model)
    layers = family_of(run.model).layer_list(run.model)
    trained = sum(products_per_token(layers[place]) for place in run.layers)
    return 6 * trained + 2 * (whole - trained)


def _choose_trainable(run: Fit) -> Any:
    """Freeze what does not train; gives peft's model where adapters train."""
    model, score = run.model, run.model.get_submodule("score")
    adapters = add_adapters(model, run.layers, run.lora, head=score) if run.lora else None
    if run.trainable is not None:
        model.requires_grad_(False)
        for parameter in run.trainable(model):
            parameter.requires_grad_(True)
    elif adapters is None:
        freeze_all_but(model, run.layers, head=score)
    return adapters


@contextlib.contextmanager
def _detached_trunk(run: Fit) -> Iterator[tuple[FrozenTrunk | None, TrunkCache | None]]:
    first = run.layers.start
    if first == 0 or not len(run.layers) or run.compute.trunk_cache_gb <= 0 or is_padded_only(run.model):
        yield None, None
        return
    everything = [entry.group for part in (run.train, run.held_out) if part is not None for entry in part.groups] + list(run.judged)
    cache = stored_trunk(
        run.model,
        first,
        everything,
        precision=resolve_precision(run.trunk_precision or run.compute.precision, run.model.device),
        limit_gb=run.compute.trunk_cache_gb,
        tokens_per_batch=run.compute.tokens_per_batch,
        progress=lambda done, total: run.progress("frozen layers", done, total),
    )
    if cache is None:
        yield None, None
        return
    trunk = FrozenTrunk(run.model, first)
    with trunk.detached():
        yield trunk, cache


def _start_head(run: Fit, module: PackedRewardModule, collator: Collator) -> None:
    assert run.head is not None
    if run.head.init == "zero":
        set_head(run.model, np.zeros(run.model.config.hidden_size))
    elif run.head.init == "normal":
        set_normal_head(run.model, seed=run.seed if run.head_seed is None else run.head_seed)
    elif run.head.init == "probe":
        differences = feature_differences(module, run.train.groups, collator=collator, precision=run.compute.precision)
        set_head(run.model, fit_probe(differences, penalty=run.head.probe_penalty))


def feature_differences(
    module: PackedRewardModule, groups: Sequence[TrainingGroup], *, collator: Collator, precision: Precision
) -> NDArray[np.float64]:
    """Winner's minus loser's head input for every ordered pair, shape `(P, D)`."""
    device = module.model.device
    rows: list[NDArray[np.float64]] = []
    module.eval()
    with torch.no_grad(), computing_in(precision, device):
        for stream in collator.streams(groups):
            states_CD = module.features(stream.to(device)).double().cpu().numpy()
            first = 0
            for size, pairs in zip(stream.batch.conversations_per_group, stream.batch.pairs, strict=True):
                rows += [states_CD[first + pair.winner] - states_CD[first + pair.loser] for pair in pairs]
                first += size
    return np.stack(rows)
