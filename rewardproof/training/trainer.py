"""`RewardTrainer`: `transformers.Trainer` fed with packed streams.

An optimiser step is a number of groups; its loss is the sum over groups divided by the global number of groups, whatever the streams and
processes. The trainer knows nothing of experts or merging: it trains the parameters that require a gradient.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.artifacts import Progress
from rewardproof.config import nearest_hint
from rewardproof.errors import ConfigError
from rewardproof.models.packed import PackedRewards, end_states, packed_rewards
from rewardproof.models.precision import Precision, computing_in
from rewardproof.models.routing import Router
from rewardproof.models.trunk import FrozenTrunk
from rewardproof.training.batches import Collator, StepBatch, Stream, TrainingSet
from rewardproof.training.objective import Loss, StepTotals, step_loss

WEIGHTS = "trained.safetensors"


class PackedRewardModule(nn.Module):
    """What data-parallel wrappers wrap: a model whose forward takes a packed stream."""

    def __init__(self, model: PreTrainedModel, *, trunk: FrozenTrunk | None, backend: str = "") -> None:
        """Join a reward model and, where its activations are stored, its detached trunk."""
        super().__init__()
        self.model = model
        self.config = model.config
        self.trunk = trunk
        self.backend = backend
        self._no_split_modules = model._no_split_modules

    def forward(self, stream: Stream) -> PackedRewards:
        """Rewards of the stream's conversations."""
        with self._fed(stream):
            return packed_rewards(self.model, stream.batch, backend=self.backend)

    def features(self, stream: Stream) -> Tensor:
        """What the head sees: final hidden states of the conversations' last tokens, shape `(C, D)`."""
        with self._fed(stream):
            return end_states(self.model, stream.batch, backend=self.backend)

    def _fed(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
        if self.trunk is not None and stream.trunk_TD is not None:
            return self.trunk.feeding(stream.trunk_TD)
        return contextlib.nullcontext()


class RewardTrainer(Trainer):
    """Trains the trainable parameters of a `PackedRewardModule` on ordered pairs."""

    def __init__(
        self,
        module: PackedRewardModule,
        arguments: TrainingArguments,
        *,
        train_set: TrainingSet,
        held_out: TrainingSet | None,
        collator: Collator,
        loss: Loss,
        precision: Precision,
        rates: Mapping[str, float],
        record: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Set up training.

        Args:
            module: The model in its packed form.
            arguments: Owned by transformers; a step is `per_device_train_batch_size` groups a process.
            train_set: Groups to train on.
            held_out: Groups for the accuracy during training, or nothing.
            collator: Packs groups into streams.
            loss: Weights of the objective's terms.
            precision: Of the forward pass during evaluation (training follows `arguments`).
            rates: Learning rates by part: `head`, `router`.
            record: Receives every log record.
        """
        super().__init__(model=module, args=arguments, train_dataset=train_set, eval_dataset=held_out, data_collator=collator)  # pyright: ignore[reportArgumentType]
        self.remove_callback(PrinterCallback)
        self.module = module
        self.held_out = held_out
        self.collator = collator
        self.loss_settings = loss
        self.precision: Precision = precision
        self.rates = dict(rates)
        self.record = record
        self.totals = StepTotals()
        self.seen_tokens = 0
        self.since = time.perf_counter()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group of parameters for the backbone, and one for each part with a rate of its own."""
        if self.optimizer is None:
            wrapped = self.module if model is None else model
            routers = {id(p) for module in wrapped.modules() if isinstance(module, Router) for p in module.parameters()}
            parts: dict[str, list[nn.Parameter]] = {"backbone": [], "head": [], "router": []}
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    part = "router" if id(parameter) in routers else "head" if ".score." in f".{name}" else "backbone"
                    parts[part].append(parameter)
            decay = {"backbone": self.args.weight_decay}
            groups = [
                {"params": found, "lr": self.rates.get(part, self.args.learning_rate), "weight_decay": decay.get(part, 0.0)}
                for part, found in parts.items()
                if found
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.module.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device) -> tuple[list[StepBatch], Any]:
        """Collect the batches of one optimiser step and the global number of groups in it."""
        samples = list(itertools.islice(epoch_iterator, num_batches))
        count = torch.tensor(sum(batch.n_groups for batch in samples), device=device)
        return samples, cast("Tensor", self.accelerator.gather(count)).sum()

    def training_step(self, model: nn.Module, inputs: StepBatch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward over the streams of this process's share of a step."""
        model.train()
        inputs = inputs.to(self.args.device)
        world = self.accelerator.num_processes
        n_groups = float(num_items_in_batch if num_items_in_batch is not None else inputs.n_groups)
        # Processes must run the same number of passes, or sharded models hang; a process that runs out repeats its last one for nothing.
        passes = int(cast("Tensor", self.accelerator.gather(torch.tensor([len(inputs.streams)], device=self.args.device))).max())
        total = torch.zeros((), device=self.args.device)
        for number in range(passes):
            repeated = number >= len(inputs.streams)
            stream = inputs.streams[min(number, len(inputs.streams) - 1)]
            last = number == passes - 1
            synchronise = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with synchronise:
                totals = StepTotals() if repeated else self.totals
                loss = step_loss(model(stream), stream.batch, self.loss_settings, totals) * (0.0 if repeated else world / n_groups)
                self.accelerator.backward(loss)
            total = total + loss.detach()
        self.seen_tokens += sum(stream.batch.n_tokens for stream in inputs.streams)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the quantities of the steps since the last record."""
        if "loss" in logs and self.totals.groups:
            now = time.perf_counter()
            logs = {**logs, **self.totals.metrics(), "tokens_per_second": self.seen_tokens / max(now - self.since, 1e-9)}
            self.totals, self.seen_tokens, self.since = StepTotals(), 0, now
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.record(self.state.log_history[-1])

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Pair accuracy, loss, gap and spread on the held-out groups."""
        if self.held_out is None:
            return {}
        totals, loss = evaluate_set(self.module, self.held_out, collator=self.collator, loss=self.loss_settings, precision=self.precision)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **totals.metrics()}.items()}
        self.since = time.perf_counter()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the stock formula does not know packed streams."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trained_state(self.module).items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        file = Path(resume_from_checkpoint) / WEIGHTS
        if not file.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_trained_state(self.module, load_file(file))


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_trained_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters back by name."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def evaluate_set(
    module: PackedRewardModule, groups: TrainingSet, *, collator: Collator, loss: Loss, precision: Precision
) -> tuple[StepTotals, float]:
    """Totals and mean loss a group over a set, without gradient and in evaluation mode."""
    was_training = module.training
    module.eval()
    totals, total = StepTotals(), 0.0
    device = next(module.parameters()).device
    with torch.no_grad(), computing_in(precision, device):
        for stream in collator.streams(groups.groups):
            moved = stream.to(device)
            total += float(step_loss(module(moved), moved.batch, loss, totals))
    module.train(was_training)
    return totals, total / max(totals.groups, 1)


class BestStateCallback(TrainerCallback):
    """Keeps the best trained parameters on the held-out loss in memory, and stops when it no longer falls."""

    def __init__(self, module: nn.Module, *, patience: int) -> None:
        """Start from the module's present state; `patience` evaluations without a new best end training."""
        self.module = module
        self.patience = patience
        self.best_loss = float("inf")
        self.best_step = 0
        self.best = {name: tensor.detach().clone() for name, tensor in trained_state(module).items()}
        self.waited = 0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Compare with the best so far."""
        if metrics["eval_loss"] < self.best_loss:
            self.best_loss, self.best_step, self.waited = metrics["eval_loss"], state.global_step, 0
            self.best = {name: tensor.detach().clone() for name, tensor in trained_state(self.module).items()}
            return
        self.waited += 1
        control.should_training_stop = self.waited >= self.patience

    def restore(self) -> None:
        """Put the best parameters back into the module."""
        load_trained_state(self.module, self.best)


class ProgressCallbackTo(TrainerCallback):
    """Hands the trainer's progress to a function, in place of transformers' own bars and printed dictionaries."""

    def __init__(self, progress: Progress, what: str) -> None:
        """Report steps of `what`."""
        self.progress = progress
        self.what = what

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report one more step."""
        self.progress(self.what, state.global_step, state.max_steps)


REFUSED_KEYS = {
    "gradient_checkpointing": "a packed stream's attention plan lives for one forward pass only. To save memory lower "
    "compute.tokens_per_batch, or train fewer layers.",
    "load_best_model_at_end": "the last state is delivered, so that runs of one length compare. Set num_train_epochs instead.",
}
"""Settings of `TrainingArguments` that cannot be honoured, and what to do instead."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "logging_steps": 5,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "none",
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def check_trainer_keys(settings: Mapping[str, Any]) -> None:
    """Refuse a key that `TrainingArguments` does not have, before any work is done.

    Raises:
        ConfigError: Names the key and the nearest one.
    """
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key, why in REFUSED_KEYS.items():
        if settings.get(key):
            raise ConfigError(f"Got trainer.{key}={settings[key]}, expected it unset: {why}")
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"Unknown key 'trainer.{key}'{nearest_hint(key, known)}; the `trainer:` section is handed to "
                "transformers.TrainingArguments, which has no such setting. Correct the key."
            )


def training_arguments(output: Path, settings: Mapping[str, Any]) -> TrainingArguments:
    """Our defaults and the given settings as `TrainingArguments`.

    Raises:
        ConfigError: A key that transformers does not know, or a value that it refuses.
    """
    try:
        return TrainingArguments(output_dir=str(output), **{**TRAINER_DEFAULTS, **settings})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Bad `trainer:` settings: {error}. They are handed to transformers.TrainingArguments; correct the key or value named."
        ) from error
