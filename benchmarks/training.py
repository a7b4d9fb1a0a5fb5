"""Training speed against TRL's RewardTrainer: the same pairs, model, precision and number of steps, in turn, in one run.

    python benchmarks/training.py            # writes results/bench_training.json

A ratio above 1 means that rewardproof takes less time. The model is random: only its shape matters. The pairs are the embedded world's:
prompts and answers of some 30 to 60 tokens.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from rewardproof.artifacts import provenance
from rewardproof.data import ordered_pairs, read_groups
from rewardproof.data.encoding import encode_group
from rewardproof.models.checkpoints import resolve
from rewardproof.training.batches import TrainingSet, keep_paired
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss

PAIRS, PER_STEP, ROUNDS = 96, 16, 3
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2}


def model() -> LlamaForSequenceClassification:
    """A random 28 M parameter reward model, most of it embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, num_labels=1, pad_token_id=0, eos_token_id=2, bos_token_id=1, **SHAPE)
    return LlamaForSequenceClassification(config)


def conversations(tokenizer: Any) -> tuple[Dataset, TrainingSet]:
    """The same pairs for both: TRL's conversational format, and our encoded groups."""
    groups = read_groups("embedded:checkable/train", on_bad="drop_unfit").groups
    rows: list[dict[str, Any]] = []
    ours = []
    for group in groups:
        pairs = ordered_pairs(group, limit=1)
        if not pairs or len(rows) == PAIRS:
            continue
        best, worst = (group.answer_texts[index] for index in pairs[0][:2])
        rows.append(
            {
                "prompt": [{"role": "user", "content": group.prompt_text}],
                "chosen": [{"role": "assistant", "content": best}],
                "rejected": [{"role": "assistant", "content": worst}],
            }
        )
        ours.append(keep_paired(encode_group(group, tokenizer, index=len(ours)), pairs))
    return Dataset.from_list(rows), TrainingSet(ours)


def time_trl(rows: Dataset, tokenizer: Any, folder: str, *, bf16: bool, checkpointing: bool) -> float:
    """Seconds of one epoch in TRL, preparation of the data left out."""
    settings = RewardConfig(
        output_dir=folder, per_device_train_batch_size=PER_STEP, num_train_epochs=1, report_to="none", save_strategy="no", use_cpu=True,
        bf16=bf16, gradient_checkpointing=checkpointing, disable_tqdm=True, max_length=None, learning_rate=1e-5,
    )  # fmt: skip
    trainer = RewardTrainer(model=model(), args=settings, train_dataset=rows, processing_class=tokenizer)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def time_ours(groups: TrainingSet, folder: str, *, bf16: bool) -> float:
    """Seconds of one epoch here."""
    reward_model = model()
    run = Fit(
        model=reward_model,
        train=groups,
        held_out=None,
        layers=range(len(reward_model.model.layers)),
        folder=Path(folder),
        seed=0,
        trainer={"per_device_train_batch_size": PER_STEP, "save_strategy": "no"},
        loss=Loss(reward_l2=0.0),
        compute=Compute(precision="bf16" if bf16 else "fp32", trunk_cache_gb=0),
    )
    started = time.perf_counter()
    fit(run)
    return time.perf_counter() - started


def compare(ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, Any]:
    """Both in turn; the ratio pair by pair."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    ratios = [theirs_s / ours_s for ours_s, theirs_s in pairs]
    return {
        "ours_seconds": [round(first, 2) for first, _ in pairs],
        "trl_seconds": [round(second, 2) for _, second in pairs],
        "speed_ratio_median": round(statistics.median(ratios), 2),
        "speed_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    """Measure in fp32 and bf16, against TRL with and without its default gradient checkpointing."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:smollm2-135m"))
    rows, groups = conversations(tokenizer)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for bf16 in (False, True):
            for checkpointing in (False, True):
                name = f"{'bf16' if bf16 else 'fp32'}, TRL {'with' if checkpointing else 'without'} gradient checkpointing"
                found[name] = compare(
                    lambda bf16=bf16: time_ours(groups, folder, bf16=bf16),
                    lambda bf16=bf16, checkpointing=checkpointing: time_trl(
                        rows, tokenizer, folder, bf16=bf16, checkpointing=checkpointing
                    ),
                )
                print(name, found[name])
    target = Path(__file__).parents[1] / "results" / "bench_training.json"
    target.parent.mkdir(exist_ok=True)
    result = {"pairs": PAIRS, "groups_per_step": PER_STEP, "shape": SHAPE, "ratios": found, "provenance": provenance()}
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(target)


if __name__ == "__main__":
    main()
