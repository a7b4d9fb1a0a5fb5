"""What listens to a training run: the best state so far, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.artifacts import Progress
from rewardproof.training.checkpoints import load_trained_state, trained_state
from rewardproof.training.sharding import whole


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
            self.best = {name: whole(tensor).detach().clone() for name, tensor in trained_state(self.module).items()}
            return
        self.waited += 1
        # Never set back: at the last step transformers has asked for the stop already.
        control.should_training_stop |= self.waited >= self.patience

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
