"""What best-of-n scoring adds to the model's forward pass: the stage that `stress` runs against bare passes over the same packed streams.

    python -m benchmarks.best_of_n           # writes results/bench_best_of_n.json

The stage starts from text and ends with scores on disk: encoding, packing, the passes, checks, writing. The bare passes start from streams
that lie ready in memory. Both have the same unique tokens, a prompt that 64 answers share counted once. The shape is that of the embedded
model's six layers nearest the head, the least work a pass that recipes leave to be done where the layers below are shared.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import (  # fmt: skip
    DTYPES,
    TOP6,
    VOCABULARY,
    Dtype,
    in_dtype,
    in_turn,
    ragged_groups,
    random_model,
    ratio,
    scratch,
    spread,
    timed,
    word_tokenizer,
    write,
)
from rewardproof.data.packing import PackedBatch, fill, pack, split_large
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.stress_best_of_n import score_pools

PROMPTS, ANSWERS, ROUNDS = 4, 64, 5


def compare(dtype: Dtype) -> dict[str, Any]:
    """Unique tokens per second of both, and the stage's share of the bare passes' speed round by round."""
    groups = ragged_groups(PROMPTS, answers=ANSWERS)
    scorer = RewardModel(random_model(TOP6).eval(), word_tokenizer(), precision=dtype)
    budget = scorer.tokens_per_batch
    parts = [part for group in scorer.encode(groups)[0] for part in split_large(group, tokens_per_batch=budget)]
    streams = [pack(run) for run in fill(parts, tokens_per_batch=budget)]
    tokens = sum(stream.n_tokens for stream in streams)
    with scratch() as folder:
        number = iter(range(100))
        works = {
            "stage": lambda: timed(lambda: score_pools(scorer, Path(folder) / f"{next(number)}.jsonl", groups)),
            "forward": partial(timed, lambda: bare(scorer, streams, dtype)),
        }
        for work in works.values():
            work()
        seconds = in_turn(works, rounds=ROUNDS)
    return {
        "unique_tokens": tokens,
        "tokens_per_second": {name: spread([tokens / value for value in found], digits=0) for name, found in seconds.items()},
        "stage_over_forward": ratio(seconds["forward"], seconds["stage"]),
    }


def bare(scorer: RewardModel, streams: list[PackedBatch], dtype: Dtype) -> None:
    """The passes alone."""
    with torch.inference_mode(), in_dtype(dtype):
        for stream in streams:
            packed_rewards(scorer.model, stream)


def main() -> None:
    """Measure in both precisions."""
    found = {dtype: compare(dtype) for dtype in DTYPES}
    for dtype, one in found.items():
        print(f"{dtype}: {one['stage_over_forward']['median']:.3f} {one['stage_over_forward']['range']} of the forward pass's tokens/s")
    write("best_of_n", {"prompts": PROMPTS, "answers": ANSWERS, "shape": {**TOP6, "vocab_size": VOCABULARY}, "speed": found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
