"""DPO, ours against TRL's DPOTrainer: the same pairs, tokens, model, precision, optimiser and number of steps, in turn.

    python -m benchmarks.direct_alignment            # writes results/bench_direct_alignment.json

Both have asked their reference before the clock starts. Every step takes all pairs, so that their order has no say, and that all do the
same work is checked on the loss of the last step. TRL runs with its defaults and, as a second contender, without gradient checkpointing.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks.workload import (
    DEFAULT_DTYPE,
    SMALL,
    VOCABULARY,
    Dtype,
    in_turn,
    padding_free_tokens,
    ragged_groups,
    ragged_set,
    ratio,
    scratch,
    spread,
    timed,
    word_tokenizer,
    write,
)
from rewardproof.data.group import as_chat
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.checkpoints import load_causal
from rewardproof.policy.direct_alignment import DirectAlignment
from rewardproof.policy.off_policy import OffPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.training.batches import Collator

PAIRS, EMBEDDED_PAIRS, STEPS, ROUNDS, EMBEDDED_ROUNDS, BETA, RATE = 8, 2, 2, 3, 2, 0.1, 1e-4
OURS, TRL, TRL_PLAIN = "rewardproof dpo", "TRL, its defaults", "TRL, no gradient checkpointing"
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
TOKENS_PER_BATCH = 4096


class Contest:
    """One model and one set of pairs, trained by every contender from the same weights."""

    def __init__(self, model: Callable[[], PreTrainedModel], pairs: int, *, dtype: Dtype) -> None:
        """Prepare the data for both."""
        self.model, self.pairs = model, pairs
        self.dtype: Dtype = dtype
        self.tokenizer = word_tokenizer()
        self.groups = ragged_set(pairs).groups
        self.rows = Dataset.from_list(
            [
                {"prompt": as_chat(group.prompt), "chosen": as_chat(group.answers[0]), "rejected": as_chat(group.answers[1])}
                for group in ragged_groups(pairs, answers=2)
            ]
        )
        self.losses: dict[str, float] = {}

    def work(self, name: str, folder: str) -> Callable[[], object]:
        """The steps of a contender, to be timed; its reference is asked here."""
        return self._ours() if name == OURS else self._trls(name, folder)

    def _ours(self) -> Callable[[], object]:
        settings = DirectAlignment(
            beta=BETA, steps=STEPS, groups_per_step=self.pairs, learning_rate=RATE, schedule="linear", betas=(0.9, 0.999)
        )
        collator = Collator(tokens_per_batch=TOKENS_PER_BATCH, cache=None)
        loop = OffPolicyLoop(Policy(self.model()), self.groups, settings, collator, precision=self.dtype, seed=0)
        with scratch() as fresh:
            loop.ask_reference(Path(fresh) / "reference.json", progress=lambda done, total: None)
        return lambda: self.losses.update({OURS: [loop.update()["loss"] for _ in range(STEPS)][-1]})

    def _trls(self, name: str, folder: str) -> Callable[[], object]:
        plain = {"gradient_checkpointing": False} if name == TRL_PLAIN else {}
        arguments = DPOConfig(
            output_dir=folder, use_cpu=True, bf16=self.dtype == "bf16", max_length=None, precompute_ref_log_probs=True, beta=BETA,
            per_device_train_batch_size=self.pairs, num_train_epochs=STEPS, learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=0,
            optim="adamw_torch", max_grad_norm=1.0, logging_steps=1, seed=0, save_strategy="no", report_to="none", disable_tqdm=True,
            **plain,
        )  # fmt: skip
        trainer = DPOTrainer(model=self.model(), args=arguments, train_dataset=self.rows, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)

        def steps() -> None:
            trainer.train()
            self.losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]

        return steps

    def seconds(self, name: str, folder: str) -> float:
        """Time of the steps; building model and trainer, and the reference's pass, are left out."""
        return timed(self.work(name, folder))


def compare(contest: Contest, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Pairs per second of every contender, and our multiple of TRL's round by round."""
    names = (OURS, TRL, TRL_PLAIN)
    with scratch() as folder:
        seconds = in_turn({name: partial(contest.seconds, name, folder) for name in names}, rounds=rounds)
    gap = max(abs(contest.losses[name] / contest.losses[OURS] - 1) for name in names)
    if gap > TOLERANCE[contest.dtype] or abs(contest.losses[OURS] - math.log(2)) < TOLERANCE[contest.dtype]:
        raise RuntimeError(f"Got losses of the last step {contest.losses}, expected equal ones off log 2: it is not the same work.")
    return {
        "pairs": contest.pairs,
        "steps": STEPS,
        **padding_free_tokens(ragged_set(contest.pairs)),
        "pairs_per_second": {name: spread([STEPS * contest.pairs / value for value in found]) for name, found in seconds.items()},
        "speed_over_trl_defaults": ratio(seconds[TRL], seconds[OURS]),
        "speed_over_trl_no_gradient_checkpointing": ratio(seconds[TRL_PLAIN], seconds[OURS]),
        "last_loss": contest.losses,
    }


def small_model() -> LlamaForCausalLM:
    """A language model of random weights: only its shape matters."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, **SMALL}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **settings)).eval()


def main() -> None:
    """Measure on the small model and on the embedded one."""
    warnings.filterwarnings("ignore")
    embedded, _ = load_causal("embedded:smollm2-135m")
    embedded.config.pad_token_id = 0
    contests = {
        f"small, ragged, {DEFAULT_DTYPE}": Contest(small_model, PAIRS, dtype=DEFAULT_DTYPE),
        f"SmolLM2-135M, ragged, {DEFAULT_DTYPE}": Contest(partial(copy.deepcopy, embedded), EMBEDDED_PAIRS, dtype=DEFAULT_DTYPE),
    }
    found: dict[str, Any] = {}
    for (name, contest), rounds in zip(contests.items(), (ROUNDS, EMBEDDED_ROUNDS), strict=True):
        found[name] = compare(contest, rounds=rounds)
        over, plain = (found[name][key] for key in ("speed_over_trl_defaults", "speed_over_trl_no_gradient_checkpointing"))
        print(f"{name}: {over['median']:.2f} {over['range']} x TRL; {plain['median']:.2f} {plain['range']} x TRL without checkpointing")
    settings = {"beta": BETA, "learning_rate": RATE, "tokens_per_batch": TOKENS_PER_BATCH, "reference": "asked before the clock starts"}
    write("direct_alignment", {"settings": settings, "small": {**SMALL, "vocab_size": VOCABULARY}, "speed": found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
