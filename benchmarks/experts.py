"""What experts cost: an optimiser step of the mixture over one of the dense model on the same stream, beside the ratio of their FLOPs.

    python -m benchmarks.experts             # writes results/bench_experts.json

The model has the shape of the embedded model's top six layers, where the recipes train, with random weights; embeddings are frozen. A step
is forward, backward, gradient norm and AdamW on one stream of about 4 096 tokens. FLOPs count matrix products and attention, three
times the forward pass; the optimiser, whose work grows with all N experts, is in the time and not in the FLOPs. The precision is the one
that training chooses on this machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.workload import (
    DEFAULT_DTYPE,
    TOP6,
    Dtype,
    in_dtype,
    in_turn,
    memory_apart,
    memory_of,
    ragged_set,
    random_model,
    ratio,
    spread,
    write,
)  # fmt: skip
from rewardproof.data.packing import Segment
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.packed import packed_rewards
from rewardproof.models.upcycling import Upcycle, lora_rank, upcycle
from rewardproof.training.batches import Collator, Stream
from rewardproof.training.objective import Loss, StepTotals, step_loss

TOKENS, GROUPS, ROUNDS, WARM_UP = 4096, 32, 5, 2
DENSE = "dense"
MIXTURES = {
    "full, N=4 K=2": Upcycle(n_experts=4, n_active=2),
    "full, N=8 K=6": Upcycle(n_experts=8, n_active=6),
    "delta, N=4 K=2 r=16": Upcycle(n_experts=4, n_active=2, experts="lora:16"),
    "delta, N=4 K=2 r=32": Upcycle(n_experts=4, n_active=2, experts="lora:32"),
}


def forward_flops(shape: Mapping[str, int], segments: Sequence[Segment], settings: Upcycle | None = None) -> float:
    """Floating-point operations of a forward pass over a stream: two for each multiplication of a matrix product.

    Args:
        shape: Of the model, gated feed-forward blocks.
        segments: The attention plan; a query sees its prefix whole and half of its own segment.
        settings: Of the mixture in every layer; `None` is dense.
    """
    tokens = sum(segment.end - segment.start for segment in segments)
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    key_value = hidden // heads * shape["num_key_value_heads"]
    seen = sum((one.end - one.start) * (one.prefix_end - one.prefix_start + (one.end - one.start + 1) / 2) for one in segments)
    attention = 2 * tokens * (2 * hidden * hidden + 2 * hidden * key_value) + 4 * seen * hidden
    block = 2 * tokens * 3 * hidden * shape["intermediate_size"]
    if settings is None:
        return shape["num_hidden_layers"] * (attention + block)
    rank = lora_rank(settings.experts)
    routed = settings.n_active - 1
    router = 2 * tokens * hidden * (settings.n_experts - 1)
    low_rank = 2 * tokens * 3 * rank * (settings.n_experts - 1) * (hidden + shape["intermediate_size"]) * routed
    experts = block + low_rank if rank else block * settings.n_active
    return shape["num_hidden_layers"] * (attention + router + experts)


class Step:
    """A model, its optimiser, and one step of training."""

    def __init__(self, stream: Stream, settings: Upcycle | None, dtype: Dtype) -> None:
        """Build the model and freeze its embeddings."""
        self.stream = stream
        self.dtype: Dtype = dtype
        self.model = random_model(TOP6)
        if settings is not None:
            upcycle(self.model, settings)
        self.model.get_input_embeddings().requires_grad_(False)
        self.model.train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.optimiser_seconds: list[float] = []

    def run(self) -> float:
        """Seconds of one step; those of the optimiser are kept too."""
        started = time.perf_counter()
        with in_dtype(self.dtype):
            loss = step_loss(packed_rewards(self.model, self.stream.batch), self.stream.batch, Loss(), StepTotals())
        loss.backward()
        between = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        ended = time.perf_counter()
        self.optimiser_seconds.append(ended - between)
        return ended - started


def stream() -> Stream:
    """The first full stream of ragged pairs."""
    return next(Collator(tokens_per_batch=TOKENS, cache=None).streams(ragged_set(GROUPS).groups))


def compare(dtype: Dtype, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of a step of every model, over the dense one and over that times the ratio of FLOPs."""
    shared = stream()
    segments = shared.batch.segments
    steps = {name: Step(shared, settings, dtype) for name, settings in {DENSE: None, **MIXTURES}.items()}
    for step in [*steps.values()] * WARM_UP:  # the first step makes the optimiser's moments
        step.run()
    seconds = in_turn({name: step.run for name, step in steps.items()}, rounds=rounds)
    optimising = {name: spread(step.optimiser_seconds[WARM_UP:]) for name, step in steps.items()}
    found: dict[str, Any] = {DENSE: {"seconds": spread(seconds[DENSE]), "optimiser_seconds": optimising[DENSE]}}
    for name, settings in MIXTURES.items():
        flops = forward_flops(TOP6, segments, settings) / forward_flops(TOP6, segments)
        found[name] = {
            "seconds": spread(seconds[name]),
            "optimiser_seconds": optimising[name],
            "flop_ratio": round(flops, 3),
            "over_dense": ratio(seconds[name], seconds[DENSE]),
            "over_dense_by_flops": ratio(seconds[name], seconds[DENSE], scale=1 / flops),
        }
    return found


def memory(name: str) -> None:
    """Print the peak memory of one model's steps in this process, as JSON."""
    step = Step(stream(), MIXTURES.get(name), DEFAULT_DTYPE)
    print(json.dumps(asdict(memory_of(lambda: (step.run(), step.run())))))


def main() -> None:
    """Measure speed, then memory."""
    found = compare(DEFAULT_DTYPE)
    for name in MIXTURES:
        over, entry = found[name]["over_dense"], found[name]["over_dense_by_flops"]
        print(
            f"{name}: {over['median']:.2f} {over['range']} x dense, FLOP ratio {found[name]['flop_ratio']:.2f}, "
            f"quotient {entry['median']:.2f} {entry['range']}"
        )
    peaks = {name: memory_apart("benchmarks.experts", name) for name in (DENSE, *MIXTURES)}
    write("experts", {"shape": TOP6, "tokens": stream().batch.n_tokens, "precision": DEFAULT_DTYPE, "speed": found, "memory": peaks})


if __name__ == "__main__":
    keep_freed_memory()
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2])
    else:
        main()
