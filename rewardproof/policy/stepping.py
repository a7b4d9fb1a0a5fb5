"""What every loop over updates of a policy does with its gradients: one or several processes, passes over streams, a step and its rate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from transformers import get_scheduler

from rewardproof.data.packing import PackedBatch
from rewardproof.errors import ConfigError, TrainingError
from rewardproof.losses import over_processes
from rewardproof.models.precision import Precision, computing_in
from rewardproof.policy.policy import Policy, PolicyOutput
from rewardproof.policy.settings import Optimisation
from rewardproof.training.processes import gathered


class Fed(Protocol):
    """A stream that a policy passes over."""

    @property
    def batch(self) -> PackedBatch:
        """Its tokens."""
        ...

    @property
    def trunk_TD(self) -> Tensor | None:
        """What enters the first layer that trains, where it was computed."""
        ...


FedStream = TypeVar("FedStream", bound=Fed)


class Stepper:
    """The optimiser of a policy, shared by the processes that a launcher has started."""

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        settings: Optimisation,
        *,
        precision: Precision,
        per_update: int = 1,
        steps: int,
        warmup: int,
    ) -> None:
        """Set up.

        Args:
            policy: What is optimised, in place.
            optimizer: Of what trains in it.
            settings: How.
            precision: Of its passes.
            per_update: Steps of the optimiser in an update.
            steps: Updates of the run.
            warmup: Updates over which the rates rise.

        Raises:
            ConfigError: A launcher that shards the policy.
        """
        # What a run before this one in the same process chose, or broke off in, is not ours; transformers' Trainer resets it likewise.
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=policy.model.device.type == "cpu", mixed_precision="no")
        if self.accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ConfigError(
                f"Got a launcher that asks for {self.accelerator.distributed_type.value}, expected DDP or one process: every "
                "process samples with the whole policy. Use examples/launch/ddp.yaml."
            )
        self.settings = settings
        self.precision: Precision = precision
        self.wrapped, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.schedule = get_scheduler(
            settings.schedule, optimizer, num_warmup_steps=warmup * per_update, num_training_steps=steps * per_update
        )

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    def accumulate(self, streams: Sequence[FedStream], loss: Callable[[FedStream, PolicyOutput, bool], Tensor], *, idle: bool) -> None:
        """Forward and backward over this process's streams; one that has run out, or is idle, repeats its last one for nothing.

        Args:
            streams: At least one.
            loss: Of a stream and the pass over it, a sum that all streams of all processes add up to; told whether the stream counts.
            idle: Nothing of this process counts.
        """
        passes = max(gathered(len(streams)))
        for number in range(passes):
            last, counts = number == passes - 1, number < len(streams) and not idle
            stream = streams[min(number, len(streams) - 1)]
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with computing_in(self.precision, self.accelerator.device):
                    out = self.wrapped(stream.batch, stream.trunk_TD)
                self.accelerator.backward(loss(stream, out, counts) * (self.processes if counts else 0.0))

    def step(self, number: int) -> float:
        """Move the parameters by what has accumulated; gives the gradient's length before it was cut.

        Raises:
            TrainingError: It is not finite.
        """
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.max_grad_norm or math.inf)
        length = float(norm or 0.0)
        self.require_finite(length, f"the gradient of step {number} has length {length}")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return length

    def require_finite(self, value: float, what: str) -> None:
        """Stop where training has broken down.

        Raises:
            TrainingError: The value is not finite.
        """
        if not math.isfinite(value):
            raise TrainingError(
                f"Optimising the policy broke down: {what}, expected finite numbers. Usual causes: a learning rate that is too high (now "
                f"{self.settings.learning_rate:g}), or bf16 where the model needs fp32. The same settings end here again: lower "
                f"{self.settings.section}.learning_rate, or set compute.precision=fp32, and start in a new directory; the last checkpoint "
                "stays in this one."
            )

    def total(self, statistic: Tensor) -> Tensor:
        """A statistic's sum over the processes, which talk in tensors of their own device."""
        return over_processes(statistic.to(self.accelerator.device)).to(statistic.device)

    def mean(self, values_B: Tensor) -> float:
        """Mean over the values of all processes."""
        total, count = self.total(torch.tensor([float(values_B.sum()), float(len(values_B))])).tolist()
        return total / count


class Loop(Protocol):
    """Updates of a policy, one after the other; what a run judges in between, and keeps in checkpoints."""

    policy: Policy
    optimizer: Any
    schedule: Any
    done: int
    steps: int

    def update(self) -> dict[str, Any]:
        """Take the next update; gives numbers for the log."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside parameters, optimiser, rates and `done`: tensors and plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        ...
