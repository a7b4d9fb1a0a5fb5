"""Training speed against TRL's RewardTrainer: the same pairs, tokens, model, precision, optimiser and number of steps, in turn.

    python -m benchmarks.training            # writes results/bench_training.json; HH_RLHF=/path measures on HH-RLHF too

TRL runs with its defaults and, as a second contender, without gradient checkpointing, which costs it time and saves it memory. That all do
the same work is checked on the mean loss of the epoch.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from benchmarks.workload import (
    DEFAULT_DTYPE,
    DTYPES,
    SMALL,
    VOCABULARY,
    Dtype,
    hh_set,
    in_turn,
    memory_apart,
    memory_of,
    padding_free_tokens,
    ragged_set,
    random_model,
    ratio,
    scratch,
    spread,
    timed,
    word_tokenizer,
    write,
)  # fmt: skip
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.checkpoints import load_base, load_tokenizer
from rewardproof.training.batches import TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss

PAIRS, PER_STEP, ROUNDS, WARM_UP = 32, 16, 3, 4
EMBEDDED_PAIRS, EMBEDDED_PER_STEP = 8, 8
MEMORY_PAIRS, MEMORY_PER_STEP = 16, 8
OURS, TRL, TRL_PLAIN = "rewardproof dense", "TRL, its defaults", "TRL, no gradient checkpointing"
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def shared_settings(n_pairs: int, per_step: int) -> dict[str, Any]:
    """What both trainers are told alike; the one record of the log is the epoch's mean loss."""
    return {
        "per_device_train_batch_size": per_step, "num_train_epochs": 1, "learning_rate": 1e-5, "lr_scheduler_type": "linear",
        "warmup_steps": 0, "optim": "adamw_torch", "max_grad_norm": 1.0, "logging_steps": max(n_pairs // per_step, 1), "seed": 0,
        "data_seed": 0, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


class Contest:
    """One model and one set of pairs, trained by every contender from the same weights."""

    def __init__(self, model: Callable[[], PreTrainedModel], groups: TrainingSet, *, per_step: int, dtype: Dtype) -> None:
        """Prepare the data for both."""
        self.model, self.groups, self.per_step = model, groups, per_step
        self.dtype: Dtype = dtype
        self.tokenizer = word_tokenizer()
        self.losses: dict[str, float] = {}
        ordered = [(entry.group.conversations, entry.pairs[0]) for entry in groups.groups]
        self.rows = Dataset.from_list(
            [{"chosen_ids": list(both[pair.winner]), "rejected_ids": list(both[pair.loser])} for both, pair in ordered]
        )

    def work(self, name: str, folder: str) -> Callable[[], object]:
        """The epoch of a contender, to be timed: everything from the data in tokens to the trained model."""
        model, settings = self.model(), shared_settings(len(self.groups), self.per_step)
        if name == OURS:
            compute = Compute(precision=self.dtype, trunk_cache_gb=0)
            run = Fit(
                model=model, train=self.groups, held_out=None, layers=range(model.config.num_hidden_layers), folder=Path(folder), seed=0,
                trainer={key: value for key, value in settings.items() if "seed" not in key}, loss=Loss(reward_l2=0.0), compute=compute,
            )  # fmt: skip
            return lambda: self.losses.update({name: fit(run).last["loss"]})
        plain = {"gradient_checkpointing": False} if name == TRL_PLAIN else {}
        arguments = RewardConfig(output_dir=folder, use_cpu=True, bf16=self.dtype == "bf16", max_length=None, **plain, **settings)
        trainer = RewardTrainer(model=model, args=arguments, train_dataset=self.rows, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)
        return lambda: self.losses.update({name: trainer.train().training_loss})

    def seconds(self, name: str, folder: str) -> float:
        """Time of one epoch; building the model, and the trainer of TRL, is left out."""
        return timed(self.work(name, folder))


def compare(contest: Contest, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Pairs per second of every contender, and our multiple of TRL's round by round."""
    warm_up = Contest(contest.model, TrainingSet(contest.groups.groups[:WARM_UP]), per_step=WARM_UP, dtype=contest.dtype)
    names = (OURS, TRL, TRL_PLAIN)
    with scratch() as folder:
        for name in names:
            warm_up.seconds(name, folder)
        seconds = in_turn({name: partial(contest.seconds, name, folder) for name in names}, rounds=rounds)
    gap = max(abs(contest.losses[name] / contest.losses[OURS] - 1) for name in names)
    if gap > LOSS_TOLERANCE[contest.dtype]:
        raise RuntimeError(f"Got mean losses {contest.losses}, expected equal ones: the contenders do not do the same work.")
    return {
        "pairs": len(contest.groups),
        "pairs_per_step": contest.per_step,
        **padding_free_tokens(contest.groups),
        "pairs_per_second": {name: spread([len(contest.groups) / value for value in found]) for name, found in seconds.items()},
        "speed_over_trl_defaults": ratio(seconds[TRL], seconds[OURS]),
        "speed_over_trl_no_gradient_checkpointing": ratio(seconds[TRL_PLAIN], seconds[OURS]),
        "mean_loss": contest.losses,
    }


def memory(name: str, dtype: Dtype) -> None:
    """Print the peak memory of one contender in this process, as JSON."""
    contest = Contest(partial(random_model, SMALL), ragged_set(MEMORY_PAIRS), per_step=MEMORY_PER_STEP, dtype=dtype)
    with scratch() as folder:
        print(json.dumps(asdict(memory_of(contest.work(name, folder)))))


def embedded_contest(dtype: Dtype) -> Contest:
    """The embedded model with a random head on ragged pairs; the words' numbers are tokens that it has."""
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    start = load_base("embedded:smollm2-135m", tokenizer)
    start.config.pad_token_id = 0
    torch.nn.init.normal_(start.get_submodule("score").get_parameter("weight"), std=0.02)
    return Contest(partial(copy.deepcopy, start), ragged_set(EMBEDDED_PAIRS), per_step=EMBEDDED_PER_STEP, dtype=dtype)


def main() -> None:
    """Measure speed on all data in both precisions, then memory."""
    sets = {"ragged": ragged_set(PAIRS)}
    if folder := os.environ.get("HH_RLHF"):
        sets["HH-RLHF"] = hh_set(folder, PAIRS)
    else:
        print("HH-RLHF skipped: set HH_RLHF to its folder to measure on it")
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        for data, groups in sets.items():
            found[f"small, {data}, {dtype}"] = compare(Contest(partial(random_model, SMALL), groups, per_step=PER_STEP, dtype=dtype))
            show(f"small, {data}, {dtype}", found)
    embedded = f"SmolLM2-135M, ragged, {DEFAULT_DTYPE}"
    found[embedded] = compare(embedded_contest(DEFAULT_DTYPE))
    show(embedded, found)
    peaks = {f"{name}, {dtype}": memory_apart("benchmarks.training", name, dtype) for dtype in DTYPES for name in (OURS, TRL, TRL_PLAIN)}
    write(
        "training",
        {
            "small": {**SMALL, "vocab_size": VOCABULARY},
            "hh_rlhf": "measured" if "HH-RLHF" in sets else "skipped: HH_RLHF was not set",
            "speed": found,
            "memory": {"model": "small", "data": "ragged", "pairs": MEMORY_PAIRS, "pairs_per_step": MEMORY_PER_STEP, "peaks": peaks},
        },
    )


def show(name: str, found: dict[str, Any]) -> None:
    """Print a comparison's ratios."""
    entry = found[name]
    over, plain = entry["speed_over_trl_defaults"], entry["speed_over_trl_no_gradient_checkpointing"]
    print(f"{name}: {over['median']:.2f} {over['range']} x TRL; {plain['median']:.2f} {plain['range']} x TRL without checkpointing")


if __name__ == "__main__":
    keep_freed_memory()
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2], "bf16" if sys.argv[3] == "bf16" else "fp32")
    else:
        main()
