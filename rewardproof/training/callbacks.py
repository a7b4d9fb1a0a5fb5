"""What listens to a training run: the best state so far, which may be kept instead of the last, and its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.artifacts import Progress, is_main, write_whole
from rewardproof.models.tensor_files import save_whole
from rewardproof.training.checkpoints import load_trained_state, trained_state
from rewardproof.training.sharding import whole

BEST = "best.safetensors"
HISTORY = "held_out_losses.json"


class BestStateCallback(TrainerCallback):
    """Keeps the best trained parameters on the held-out loss, and stops when it no longer falls.

    Attributes:
        best_loss: The lowest loss so far; infinite before the first evaluation.
        best_step: The step that it was found at.
        waited: Evaluations since then.
    """

    def __init__(self, module: nn.Module, *, patience: int, folder: Path | None = None, resumed_at: int = 0) -> None:
        """Start from the module's present state.

        Args:
            module: What trains.
            patience: Evaluations without a new best that end training.
            folder: Where the best state is kept beside the checkpoints, for a run that is interrupted; in memory alone where left out.
            resumed_at: Step of the checkpoint that the run goes on from; what was found later is found again.
        """
        self.module = module
        self.patience = patience
        self.folder = folder
        self.history: list[tuple[int, float]] = []
        self.best: Mapping[str, Tensor] = {name: tensor.detach().clone() for name, tensor in trained_state(module).items()}
        if folder is not None and resumed_at and (folder / HISTORY).is_file() and (folder / BEST).is_file():
            self.history = [(step, loss) for step, loss in json.loads((folder / HISTORY).read_text()) if step <= resumed_at]
            self.best = load_file(folder / BEST)

    @property
    def best_loss(self) -> float:
        """The lowest loss so far."""
        return min((loss for _, loss in self.history), default=float("inf"))

    @property
    def best_step(self) -> int:
        """The first step that it was found at."""
        return next((step for step, loss in self.history if loss == self.best_loss), 0)

    @property
    def waited(self) -> int:
        """Evaluations since then."""
        return sum(step > self.best_step for step, _ in self.history)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Compare with the best so far."""
        step, loss = state.global_step, metrics["eval_loss"]
        if any(step == seen for seen, _ in self.history):
            return  # the last step's evaluation, made once more by a run that was interrupted after it
        if loss < self.best_loss:
            self.best = {name: whole(tensor).detach().clone() for name, tensor in trained_state(self.module).items()}
            self._store_state()
        self.history.append((step, loss))
        if self.folder is not None and is_main():
            write_whole(self.folder / HISTORY, json.dumps(self.history))
        # Never set back: at the last step transformers has asked for the stop already.
        control.should_training_stop |= self.waited >= self.patience

    def restore(self) -> None:
        """Put the best parameters back into the module."""
        load_trained_state(self.module, self.best)

    def _store_state(self) -> None:
        if self.folder is None or not is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_whole(self.folder / BEST, self.best)


class ProgressCallbackTo(TrainerCallback):
    """Hands the trainer's progress to a function, in place of transformers' own bars and printed dictionaries."""

    def __init__(self, progress: Progress, what: str) -> None:
        """Report steps of `what`."""
        self.progress = progress
        self.what = what

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report one more step."""
        self.progress(self.what, state.global_step, state.max_steps)
