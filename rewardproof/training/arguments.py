"""The `trainer:` section: our defaults for transformers' `TrainingArguments`, and what of them cannot be honoured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from rewardproof.config import nearest_hint
from rewardproof.errors import ConfigError

REFUSED_KEYS = {
    "gradient_checkpointing": "a packed stream's attention plan lives for one forward pass only. To save memory lower "
    "compute.tokens_per_batch, or train fewer layers.",
    "save_only_model": "without the optimiser's state a checkpoint cannot be gone on from. Set save_strategy=no to keep none.",
    "load_best_model_at_end": "the last state is delivered, so that runs of one length compare. Set num_train_epochs instead.",
}
"""Settings of `TrainingArguments` that cannot be honoured, and what to do instead."""

LEAST = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 0, "learning_rate": 0}
"""Settings that transformers does not check, and the smallest value that means something."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "logging_steps": 5,
    "logging_nan_inf_filter": False,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "none",
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
}


def check_trainer_keys(settings: Mapping[str, Any]) -> None:
    """Refuse a key that `TrainingArguments` does not have, or a value that it would stumble over, before any work is done.

    Raises:
        ConfigError: Names the key, and the nearest one or what it takes.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    known = list(fields)
    for key, why in REFUSED_KEYS.items():
        if settings.get(key):
            raise ConfigError(f"Got trainer.{key}={settings[key]}, expected it unset: {why}")
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"Unknown key 'trainer.{key}'{nearest_hint(key, known)}; the `trainer:` section is handed to "
                "transformers.TrainingArguments, which has no such setting. Correct the key."
            )
        if type(fields[key].default) in (int, float) and not isinstance(settings[key], (int, float)):
            raise ConfigError(f"Got trainer.{key}={settings[key]!r}, expected a number as transformers.TrainingArguments does; write one.")
    for key, least in LEAST.items():
        if settings.get(key, least) < least:
            raise ConfigError(
                f"Got trainer.{key}={settings[key]}, expected {least} or more: with less nothing could be trained, and nobody would be "
                "told. Correct it."
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
