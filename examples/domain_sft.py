"""A language model of a domain, the second model of `merge … method=domain`: fine-tune one on a domain's answers, the loss on them alone.

    python examples/domain_sft.py embedded:smollm2-135m runs/lm embedded:checkable/train --category structure --layers top:2
    python examples/domain_sft.py Qwen/Qwen3-0.6B runs/math gsm8k/train.jsonl --epochs 2

Rows of any format that rewardproof reads; of a prompt with several answers the best-scored one is learned.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from rewardproof.artifacts import require_free
from rewardproof.data import Group, read_groups
from rewardproof.data.encoding import EncodedGroup, encode_groups
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.families import family_of
from rewardproof.models.precision import default_device, resolve_precision
from rewardproof.models.saving import save_model
from rewardproof.models.upcycling import select_layers
from rewardproof.training.freezing import freeze_all_but

IGNORED = -100
"""Label of a token that the loss leaves out."""


class Solutions(Dataset[EncodedGroup]):
    """One conversation a prompt, in tokens."""

    def __init__(self, groups: Sequence[EncodedGroup]) -> None:
        """Hold them in memory."""
        self.groups = list(groups)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.groups)

    def __getitem__(self, index: int) -> EncodedGroup:
        """One of them."""
        return self.groups[index]


def best_answer(group: Group) -> Group | None:
    """The group with its best-scored answer alone; nothing where several answers have no scores or share one."""
    if len(group.answers) == 1:
        return group
    if group.scores is None or len(set(group.scores)) == 1:
        return None
    best = max(range(len(group.answers)), key=group.scores.__getitem__)
    return replace(group, answers=(group.answers[best],), scores=(group.scores[best],))


def solutions(sources: Sequence[str], category: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Solutions, Counter[str]]:
    """What is learned, and how many rows fell away for which reason."""
    found = read_groups(sources, on_bad="drop_unfit", purpose="score")
    inside = [group for group in found.groups if not category or group.category == category]
    chosen = [best for group in inside if (best := best_answer(group)) is not None]
    encoded, counts = encode_groups(chosen, tokenizer, max_length=max_length, overlong="drop")
    counts.update(found.counts.bad)
    counts.update({"of another category": len(found.groups) - len(inside), "no best answer": len(inside) - len(chosen)})
    if not encoded:
        known = ", ".join(sorted({group.category for group in found.groups if group.category})) or "none"
        raise SystemExit(f"No row is left to learn from ({dict(counts)}); the categories there are: {known}.")
    return Solutions(encoded), counts


def collate(groups: Sequence[EncodedGroup], pad: int) -> dict[str, Tensor]:
    """A padded batch; labels are those of the answers alone."""
    longest = max(len(group.conversations[0]) for group in groups)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for group in groups:
        tokens, start = list(group.conversations[0]), group.answer_starts[0]
        spare = longest - len(tokens)
        batch["input_ids"].append(tokens + [pad] * spare)
        batch["attention_mask"].append([1] * len(tokens) + [0] * spare)
        batch["labels"].append([IGNORED] * start + tokens[start:] + [IGNORED] * spare)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def main(arguments: Sequence[str] | None = None) -> Any:
    """Fine-tune and save."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("out")
    options.add_argument("data", nargs="+")
    defaults = {"category": "", "layers": "all", "epochs": 1.0, "rate": 2e-5, "batch": 16, "length": 1024, "steps": -1, "seed": 0}
    for name, default in defaults.items():
        options.add_argument(f"--{name}", type=type(default), default=default)
    given = options.parse_args(arguments)
    require_free(given.out, overwrite=False, resume=False)
    model, tokenizer = load_causal(given.model)
    data, counts = solutions(given.data, given.category, tokenizer, given.length)
    print(f"{len(data)} answers to learn; left out: {dict(+counts) or 'none'}")
    freeze_all_but(model, select_layers(given.layers, len(family_of(model).layer_list(model))))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=given.epochs, max_steps=given.steps, learning_rate=given.rate, seed=given.seed,
            per_device_train_batch_size=given.batch, warmup_steps=0.05, lr_scheduler_type="cosine", save_strategy="no", report_to=[],
            remove_unused_columns=False, logging_steps=10, bf16=resolve_precision("auto", default_device()) == "bf16",
            use_cpu=default_device().type == "cpu",
        )  # fmt: skip
        pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        result = Trainer(model, settings, train_dataset=data, data_collator=lambda rows: collate(rows, pad)).train()
    save_model(model, tokenizer, given.out)
    print(f"{given.out}: loss {result.training_loss:.4f} after {result.global_step} steps")
    return result


if __name__ == "__main__":
    main()
