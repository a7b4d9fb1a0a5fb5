"""Scoring 64 answers a prompt against transformers' padded text-classification pipeline: the same texts, model and precision, in turn.

    python -m benchmarks.scoring             # writes results/bench_scoring.json

Both start from text: the pipeline gets conversations already written out by the chat template, we get the groups. In bf16 the pipeline runs
once under autocast over fp32 weights, as we do, and once with bf16 weights, which spares it the casts. That all give the same rewards
is checked.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import pipeline

from benchmarks.workload import (
    DTYPES,
    SMALL,
    VOCABULARY,
    Dtype,
    in_dtype,
    in_turn,
    memory_apart,
    memory_of,
    ragged_groups,
    random_model,
    ratio,
    spread,
    timed,
    word_tokenizer,
    write,
)  # fmt: skip
from rewardproof.data.encoding import render
from rewardproof.data.group import Group
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.reward_model import RewardModel

PROMPTS, ANSWERS, BATCH, ROUNDS = 2, 64, 16, 3
TOLERANCE = {"fp32": 2e-4, "bf16": 5e-2}
OURS, PADDED, SINGLE = "rewardproof", f"pipeline, batches of {BATCH}", "pipeline, one by one"
CAST = f"pipeline, bf16 weights, batches of {BATCH}"
Rewards = list[float]


def contenders(dtype: Dtype) -> dict[str, Callable[[Sequence[Group]], Rewards]]:
    """Each takes groups and returns the rewards of all answers in order."""
    tokenizer = word_tokenizer()
    model = random_model(SMALL).eval()
    ours = RewardModel(model, tokenizer, precision=dtype)

    def padded(groups: Sequence[Group], *, classify: Any, cast: bool = False) -> Rewards:
        texts = [render(group, answer, tokenizer) for group in groups for answer in group.answers]
        with in_dtype("fp32" if cast else dtype):
            return [found["score"] for found in classify(texts, function_to_apply="none", padding=True)]

    def peer(held: Any, batch: int) -> Any:
        return pipeline("text-classification", model=held, tokenizer=tokenizer, device="cpu", batch_size=batch)

    found: dict[str, Callable[[Sequence[Group]], Rewards]] = {
        OURS: lambda groups: list(itertools.chain.from_iterable(ours.score(groups))),
        PADDED: partial(padded, classify=peer(model, BATCH)),
        SINGLE: partial(padded, classify=peer(model, 1)),
    }
    if dtype == "bf16":
        found[CAST] = partial(padded, classify=peer(random_model(SMALL).eval().bfloat16(), BATCH), cast=True)
    return found


def compare(groups: Sequence[Group], dtype: Dtype, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Answers per second of every contender, and our multiple of each pipeline round by round."""
    rewards: dict[str, Rewards] = {}
    works = contenders(dtype)
    few = ragged_groups(1, answers=4, seed=1)

    def once(name: str) -> float:
        return timed(lambda: rewards.update({name: works[name](groups)}))

    for work in works.values():
        work(few)
    seconds = in_turn({name: partial(once, name) for name in works}, rounds=rounds)
    gaps = {name: max(abs(one - other) for one, other in zip(found, rewards[OURS], strict=True)) for name, found in rewards.items()}
    if max(gaps.values()) > TOLERANCE[dtype]:
        raise RuntimeError(f"Got rewards that differ by {gaps}, expected at most {TOLERANCE[dtype]}: not the same work.")
    count = len(rewards[OURS])
    return {
        "answers_per_second": {name: spread([count / value for value in found]) for name, found in seconds.items()},
        "speed_over": {name: ratio(found, seconds[OURS]) for name, found in seconds.items() if name != OURS},
        "largest_difference_of_rewards": gaps,
        "spread_of_rewards": float(torch.tensor(rewards[OURS]).std()),
    }


def memory(name: str, dtype: Dtype) -> None:
    """Print the peak memory of one contender in this process, as JSON."""
    work, groups = contenders(dtype)[name], ragged_groups(1, answers=ANSWERS)
    print(json.dumps(asdict(memory_of(lambda: work(groups)))))


def main() -> None:
    """Measure speed in both precisions, then memory."""
    groups = ragged_groups(PROMPTS, answers=ANSWERS)
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        found[dtype] = compare(groups, dtype)
        for name, over in found[dtype]["speed_over"].items():
            print(f"{dtype}: {over['median']:.2f} {over['range']} x {name}")
    peaks = {f"{name}, {dtype}": memory_apart("benchmarks.scoring", name, dtype) for dtype in DTYPES for name in (OURS, PADDED)}
    shape = {**SMALL, "vocab_size": VOCABULARY}
    memory_found = {"prompts": 1, "answers": ANSWERS, "peaks": peaks}
    write("scoring", {"prompts": PROMPTS, "answers": ANSWERS, "shape": shape, "speed": found, "memory": memory_found})


if __name__ == "__main__":
    keep_freed_memory()
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2], "bf16" if sys.argv[3] == "bf16" else "fp32")
    else:
        main()
