"""`RewardTrainer`: `transformers.Trainer` fed with packed streams.

An optimiser step is a number of groups; its loss is the sum over groups divided by the global number of groups, whatever the streams and
processes. It trains the parameters that require a gradient, experts and routers at rates of their own, and knows nothing of merging.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState, TrainingArguments

from rewardproof.artifacts import writing
from rewardproof.errors import MissingExtraError, TrainingError
from rewardproof.losses import over_processes
from rewardproof.models.double_mixture import CapabilityExperts
from rewardproof.models.experts import DeltaExperts, FullExperts
from rewardproof.models.packed import PackedRewards, end_states, packed_rewards
from rewardproof.models.precision import Precision, computing_in
from rewardproof.models.routing import Router
from rewardproof.models.trunk import FrozenTrunk
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batch_sums import BatchSums, numbers_kept
from rewardproof.training.batches import Collator, StepBatch, Stream, TrainingGroup, TrainingSet
from rewardproof.training.checkpoints import STATE, WEIGHTS, load_trained_state, trained_state
from rewardproof.training.objective import Loss, RoutingTotals, StepTotals, step_loss
from rewardproof.training.processes import agreed, gathered
from rewardproof.training.sharding import shard_in_full_precision

SINCE_LOG = "since_log.json"
"""What has been summed up since the last record of the log, kept in a checkpoint so that a resumed run logs the same quantities."""


class PackedRewardModule(nn.Module):
    """What data-parallel wrappers wrap: a model whose forward takes a packed stream."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        trunk: FrozenTrunk | None,
        backend: str = "",
        auxiliaries: Sequence[AuxiliaryTerm] = (),
        experts: CapabilityExperts | None = None,
    ) -> None:
        """Join a reward model, its detached trunk where activations are stored, further terms of the objective, and experts on it."""
        super().__init__()
        self.model = model
        self.terms = tuple(auxiliaries)
        self.experts = experts
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.config = model.config
        self.trunk = trunk
        self.backend = backend
        self._no_split_modules = model._no_split_modules

    def forward(self, stream: Stream, *, terms: bool = True) -> PackedRewards:
        """Rewards of the stream's conversations, and with `terms` what the further terms found on the same pass."""
        output = self.passed(stream)
        with _numbers_of_their_own(output.rewards_C.device, drawn=self.training and bool(self.terms)):
            return output._replace(auxiliary=tuple(term(output, stream) for term in (self.terms if terms else ())))

    def passed(self, stream: Stream) -> PackedRewards:
        """The pass alone, which the further terms read."""
        with self._fed(stream):
            if self.experts is not None:
                return self.experts(self.model, stream.batch, groups=stream.groups, backend=self.backend)
            answers, tokens = any(term.needs_answers for term in self.terms), any(term.needs_tokens for term in self.terms)
            return packed_rewards(self.model, stream.batch, backend=self.backend, answers=answers, tokens=tokens)

    def features(self, stream: Stream) -> Tensor:
        """What the head sees: final hidden states of the conversations' last tokens, shape `(C, D)`."""
        with self._fed(stream):
            return end_states(self.model, stream.batch, backend=self.backend)

    def _fed(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
        if self.trunk is not None and stream.trunk_TD is not None:
            return self.trunk.feeding(stream.trunk_TD)
        return contextlib.nullcontext()


@contextlib.contextmanager
def _numbers_of_their_own(device: torch.device, *, drawn: bool) -> Iterator[None]:
    """Random numbers from a seed that is `drawn`: the pass that comes next finds the same, whatever is done with these."""
    if not drawn:
        yield
        return
    seed = int(torch.randint(2**31, ()))
    with numbers_kept(device):
        torch.manual_seed(seed)
        yield


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
            rates: Learning rates by part: `head`, `router`, `experts`, `auxiliaries`; those left out are the trainer's.
            record: Receives every log record, on every process.
        """
        try:
            super().__init__(
                model=module, args=arguments, train_dataset=train_set, eval_dataset=held_out, data_collator=cast("Any", self._own_share)
            )
        except RuntimeError as error:
            if "installed" not in str(error):
                raise
            raise MissingExtraError(
                f"Got trainer.report_to={arguments.report_to}, expected its package to be here: {error} Install it, or drop report_to."
            ) from error
        self.remove_callback(PrinterCallback)
        if self.is_fsdp_enabled:
            shard_in_full_precision(self.accelerator.state.fsdp_plugin)
        self.module = module
        self.held_out = held_out
        self.collator = collator
        self.loss_settings = loss
        self.batch_sums = BatchSums(loss, self.accelerator) if loss.bsr else None
        self.precision: Precision = precision
        self.rates = dict(rates)
        self.record = record
        self.totals = StepTotals()
        self.seen_tokens = 0
        self.since = time.perf_counter()
        self.losses = 0.0
        self.logged_at = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group of parameters for the backbone, and one for each part with a rate of its own."""
        if self.optimizer is None:
            wrapped = self.module if model is None else model
            owners = {"router": Router, "experts": (FullExperts, DeltaExperts)}
            owner_of = {
                id(parameter): part
                for part, kinds in owners.items()
                for module in wrapped.modules()
                if isinstance(module, kinds)
                for parameter in module.parameters()
            }
            parts: dict[str, list[nn.Parameter]] = {"backbone": [], "experts": [], "head": [], "router": [], "auxiliaries": []}
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    named = [part for part, path in (("head", "score"), ("auxiliaries", "auxiliaries")) if f".{path}." in f".{name}"]
                    parts[owner_of.get(id(parameter), (*named, "backbone")[0])].append(parameter)
            decay = {"backbone": self.args.weight_decay, "experts": self.args.weight_decay}
            groups = [
                {"params": found, "lr": self.rates.get(part, self.args.learning_rate), "weight_decay": decay.get(part, 0.0)}
                for part, found in parts.items()
                if found
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.module.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[TrainingGroup]:
        """Every process draws all groups of a step, in the order of a single process, and packs its own share of them."""
        world = self.accelerator.num_processes
        loader = self._get_dataloader(
            cast("Any", self.train_dataset),
            "Training",
            self._train_batch_size * world,
            cast("Any", self._get_train_sampler),
            is_training=True,
        )
        if world > 1:  # accelerate would share out whole batches, and repeat groups until all processes have as many
            shards = cast("Any", loader.batch_sampler)
            shards.num_processes, shards.process_index, shards.even_batches = 1, 0, False
        return loader

    def _own_share(self, groups: Sequence[TrainingGroup]) -> StepBatch:
        return self.collator.share(groups, self.accelerator.process_index, self.accelerator.num_processes)

    def get_batch_samples(self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device) -> tuple[list[StepBatch], Any]:
        """Collect the batches of one optimiser step and the global number of groups in it."""
        samples = list(itertools.islice(epoch_iterator, num_batches))
        if self.batch_sums is not None:
            self.batch_sums.begin(samples)
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
        if self.batch_sums is not None:
            self.batch_sums.look_ahead(model, inputs)
        boundary = self.accelerator.sync_gradients
        options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        for number in range(passes):
            repeated = inputs.idle or number >= len(inputs.streams)
            stream = inputs.streams[min(number, len(inputs.streams) - 1)]
            last = number == passes - 1
            # DeepSpeed steps inside the backward pass that it takes for the last.
            self.accelerator.gradient_state._set_sync_gradients(boundary and last)
            synchronise = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with synchronise:
                totals = StepTotals() if repeated else self.totals
                whole = _nothing_over_processes if repeated else over_processes
                output = model(stream)
                loss = step_loss(output, stream.batch, self.loss_settings, totals, total=whole)
                if self.batch_sums is not None:
                    loss = loss + self.batch_sums.part(output, stream.batch, totals, total=whole)
                loss = loss * (0.0 if repeated else world / n_groups)
                self.accelerator.backward(loss, **options)
            total = total + loss.detach()
        self.seen_tokens += inputs.n_tokens
        value = float(total)
        if not math.isfinite(value):
            raise self._not_finite(f"the loss of step {self.state.global_step + 1} is {value}")
        self.losses += value
        return total

    def require_finite_weights(self) -> None:
        """Refuse weights that training has spoilt, before they are saved or delivered.

        Raises:
            TrainingError: Names the step and a parameter.
        """
        for name, tensor in trained_state(self.module).items():
            own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if not bool(torch.isfinite(own).all()):
                step = self.state.global_step
                raise self._not_finite(f"{name.removeprefix('model.')} holds values that are not finite after step {step}")

    def _not_finite(self, what: str) -> TrainingError:
        folder = Path(str(self.args.output_dir))
        steps = sorted(int(path.parent.name.rpartition("-")[2]) for path in folder.glob(f"checkpoint-*/{STATE}"))
        kept = f"the last good checkpoint is {folder}/checkpoint-{steps[-1]}" if steps else "no checkpoint had been saved yet"
        return TrainingError(
            f"Training broke down: {what}, expected finite numbers; {kept}. Usual causes: a learning rate that is too high (now "
            f"{self.args.learning_rate:g}, head {self.rates.get('head', self.args.learning_rate):g}), bf16 or tf32 where the model needs "
            "fp32, or weights that were not finite to begin with. The same settings end here again: lower trainer.learning_rate or "
            "head.learning_rate, or set compute.precision=fp32, and start again with --overwrite or in a new directory."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the quantities of the steps since the last record."""
        if "loss" in logs:
            # Every process gathers, also one that had no group to count since the last record.
            parts = gathered((self.totals, self.seen_tokens))
            totals, tokens = StepTotals.joined(part for part, _ in parts), sum(seen for _, seen in parts)
            if totals.groups:
                now = time.perf_counter()
                if self.accelerator.num_processes == 1:
                    logs = {**logs, "loss": self.losses / max(self.state.global_step - self.logged_at, 1)}
                self.losses, self.logged_at = 0.0, self.state.global_step
                logs = {**logs, **totals.metrics(), "tokens_per_second": tokens / max(now - self.since, 1e-9)}
                self.totals, self.seen_tokens, self.since = StepTotals(), 0, now
        super().log(logs, start_time)
        self.record(self.state.log_history[-1])

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Pair accuracy, loss, gap and spread on the held-out groups."""
        if self.held_out is None:
            return {}
        totals, loss = evaluate_set(self.module, self.held_out, collator=self.collator, loss=self.loss_settings, precision=self.precision)
        metrics = agreed({f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **totals.metrics()}.items()})
        self.since = time.perf_counter()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the stock formula does not know packed streams."""
        return 0

    def train_from(self, checkpoint: Path | None) -> float:
        """Train, from a checkpoint where there is one, and give the seconds that it took.

        A checkpoint of the last step is loaded and no more: `train` would do one step too many.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE)) if checkpoint else None
        wanted = self.args.max_steps if self.args.max_steps > 0 or state is None else state.max_steps
        if checkpoint is None or state is None or state.global_step < wanted or not (checkpoint / WEIGHTS).is_file():
            output = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return float(output.metrics.get("train_runtime", 0.0))
        load_trained_state(self.module, load_file(checkpoint / WEIGHTS))
        self.state = state
        if self.args.eval_strategy == "epoch":
            self.evaluate()
        return 0.0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.require_finite_weights()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with writing(folder, discard=folder):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trained_state(self.module).items()}, folder / WEIGHTS)
        since = {"losses": self.losses, "logged_at": self.logged_at, "totals": dataclasses.asdict(self.totals)}
        (folder / SINCE_LOG).write_text(json.dumps(since))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        file = Path(resume_from_checkpoint) / WEIGHTS
        if not file.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_trained_state(self.module, load_file(file))
        since = Path(resume_from_checkpoint) / SINCE_LOG
        if since.is_file() and self.accelerator.num_processes == 1:
            kept = json.loads(since.read_text())
            routings = [RoutingTotals(shared, entropy, tuple(load)) for shared, entropy, load in kept["totals"].pop("routings")]
            self.totals = StepTotals(**kept["totals"], routings=routings)
            self.losses, self.logged_at = kept["losses"], kept["logged_at"]


def _nothing_over_processes(statistic: Tensor) -> Tensor:
    """The other processes' sum, for a process that repeats a stream for nothing: the others wait for it to take part."""
    return over_processes(0 * statistic)


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
