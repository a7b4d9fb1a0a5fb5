"""Learning merge coefficients: the experts are frozen, one logit an expert and layer trains on preferences that the experts never saw.

Reference:
    UMM-RM, arXiv:2512.00724 ("learnable weight averaging"); the routing-mass start is the first-order optimum for preserving the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from rewardproof.artifacts import Progress, n_processes, silent
from rewardproof.merging.experts import Merge, RoutingMass, put_folded_blocks, restore_blocks, starting_coefficients
from rewardproof.models.families import family_of
from rewardproof.models.upcycling import moe_blocks
from rewardproof.training.batches import TrainingSet
from rewardproof.training.callbacks import BestStateCallback
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss
from rewardproof.training.trainer import PackedRewardModule


@dataclass(frozen=True, slots=True)
class LearnedCoefficients:
    """Coefficients by layer and how they were found.

    Attributes:
        by_layer: Coefficients of all experts, the shared one first, shape `(E,)` each.
        steps: Steps done; 0 where nothing was learned.
        best_step: The step whose coefficients were kept: the lowest loss on the second held-out part.
        loss_before: That loss at the start, `None` where nothing was learned.
        loss_after: That loss at the kept step.
        seconds: Wall time of the learning.
    """

    by_layer: dict[int, Tensor]
    steps: int = 0
    best_step: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    tflops: float = 0.0


def find_coefficients(
    model: PreTrainedModel,
    masses: Mapping[int, RoutingMass],
    settings: Merge,
    *,
    sets: tuple[TrainingSet, TrainingSet],
    compute: Compute,
    folder: Path,
    seed: int = 0,
    record: Callable[[Mapping[str, Any]], None] = lambda _: None,
    progress: Progress = silent,
) -> LearnedCoefficients:
    """Coefficients of every upcycled layer by the method that `settings` names.

    Args:
        model: The trained mixture; unchanged afterwards.
        masses: Its mean mixing weights by layer.
        settings: Method, λ, steps.
        sets: Groups to learn on and groups that decide when to stop; used by `learned` alone.
        compute: Precision, budgets, cache.
        folder: Where the trainer may write.
        seed: Of the data order.
        record: Receives log records.
        progress: Receives progress.
    """
    if settings.method != "learned":
        return LearnedCoefficients(starting_coefficients(masses, settings))
    mixtures = moe_blocks(model)
    folded = put_folded_blocks(model, masses, settings)
    watcher = _Watcher(settings.patience, record)
    try:
        result = fit(
            Fit(
                model=model,
                train=sets[0],
                held_out=sets[1],
                layers=range(min(mixtures), len(family_of(model).layer_list(model))),
                folder=folder,
                seed=seed,
                trainer=_trainer_settings(settings),
                loss=Loss(reward_l2=0.0, router_balance=0.0),
                compute=compute.model_copy(update={"precision": "fp32"}),
                trunk_precision=compute.precision,
                trainable=lambda _: [parameter for block in folded.values() for parameter in block.trainable()],
                callbacks=watcher.callbacks,
                record=watcher.record,
                progress=progress,
                what="merging",
            )
        )
        watcher.keeper.restore()
        by_layer = {layer: block.coefficients_E().detach().cpu() for layer, block in folded.items()}
    finally:
        restore_blocks(model, mixtures)
    keeper = watcher.keeper
    return LearnedCoefficients(
        by_layer, result.steps, keeper.best_step, watcher.losses[0], keeper.best_loss, result.seconds, result.tokens, result.tflops
    )


class _Watcher:
    """Follows the held-out loss of a run, and keeps its best coefficients."""

    def __init__(self, patience: int, record: Callable[[Mapping[str, Any]], None]) -> None:
        self.patience = patience
        self.pass_on = record
        self.losses: list[float] = []
        self.keeper: BestStateCallback

    def callbacks(self, module: PackedRewardModule) -> list[TrainerCallback]:
        self.keeper = BestStateCallback(module, patience=self.patience)
        return [self.keeper]

    def record(self, entry: Mapping[str, Any]) -> None:
        if "eval_loss" in entry:
            self.losses.append(entry["eval_loss"])
        self.pass_on({"phase": "merge", **entry})


def _trainer_settings(settings: Merge) -> dict[str, Any]:
    return {
        "learning_rate": settings.learning_rate,
        "max_steps": settings.steps,
        "per_device_train_batch_size": -(-settings.groups_per_step // n_processes()),
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "eval_on_start": True,
        "save_strategy": "no",
    }
