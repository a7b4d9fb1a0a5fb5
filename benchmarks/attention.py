"""The packed attention backends against each other on this machine's device: passes and training steps over the same streams, in turn.

    python -m benchmarks.attention           # writes results/bench_attention.json, or bench_attention_cuda.json on a GPU

Meant for a GPU, where three backends run; elsewhere there is the loop over segments alone. Streams have the shapes of use: one prompt with
many answers, and many prompts with a pair each. That all backends give the same hidden states is checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.workload import TOP6, VOCABULARY, in_turn, random_model, ratio, spread, timed, write
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, pack
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.attention import FLEX, SEGMENTS, VARLEN, varlen_is_there
from rewardproof.models.packed import hidden_states
from rewardproof.models.precision import computing_in, default_device

SHAPE = {**TOP6, "num_hidden_layers": 30}
"""That of the embedded model."""
TOLERANCE, ROUNDS = 0.02, 5


def group(draw: random.Random, answers: int, prompt: int, length: int, index: int) -> EncodedGroup:
    """A prompt of so many tokens with answers of about so many."""
    shared = tuple(draw.randrange(3, VOCABULARY) for _ in range(prompt))
    rest = [tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(length // 2, 3 * length // 2))) for _ in range(answers)]
    return EncodedGroup(tuple(shared + one for one in rest), prompt, (prompt,) * answers, index)


def streams(small: bool) -> dict[str, PackedBatch]:
    """By name; on a CPU only what it can do in a while."""
    draw = random.Random(0)
    found = {
        "a prompt with 48 answers": pack([group(draw, 48, 60, 80, 0)]),
        "32 pairs": pack([group(draw, 2, 80, 120, n) for n in range(32)]),
    }
    if not small:
        found["a prompt with 200 answers"] = pack([group(draw, 200, 60, 80, 0)])
        found["128 pairs"] = pack([group(draw, 2, 80, 120, n) for n in range(128)])
    return found


def compare(model: PreTrainedModel, batch: PackedBatch, backends: list[str], device: torch.device) -> dict[str, Any]:
    """Tokens per second of each backend, passes and steps, and the multiples of the loop's speed round by round."""
    states: dict[str, Tensor] = {}

    def forward(backend: str) -> None:
        with torch.inference_mode(), computing_in("bf16", device):
            states[backend] = hidden_states(model, batch, backend=backend)
        _settled(device)

    def step(backend: str) -> None:
        with computing_in("bf16", device):
            hidden_states(model, batch, backend=backend).float().square().mean().backward()
        model.zero_grad(set_to_none=True)
        _settled(device)

    found: dict[str, Any] = {"tokens": batch.n_tokens}
    for kind, work in (("forward", forward), ("step", step)):
        for backend in backends:
            work(backend)
        works: dict[str, Callable[[], float]] = {name: lambda name=name, work=work: timed(lambda: work(name)) for name in backends}
        seconds = in_turn(works, rounds=ROUNDS)
        found[kind] = {
            "tokens_per_second": {name: spread([batch.n_tokens / value for value in values], digits=0) for name, values in seconds.items()},
            "speed_over_loop": {name: ratio(seconds[SEGMENTS], values) for name, values in seconds.items() if name != SEGMENTS},
        }
    reference = states[SEGMENTS].float()
    gaps = {name: float((value.float() - reference).norm() / reference.norm()) for name, value in states.items()}
    if max(gaps.values()) > TOLERANCE:
        raise RuntimeError(f"Got hidden states that differ by {gaps}, expected at most {TOLERANCE}: not the same work.")
    return {**found, "relative_difference_of_states": {name: round(gap, 5) for name, gap in gaps.items()}}


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure on the device that a run would take."""
    device = default_device()
    on_gpu = device.type == "cuda"
    backends = [SEGMENTS, FLEX, *([VARLEN] if varlen_is_there() else [])] if on_gpu else [SEGMENTS]
    model = random_model(SHAPE).to(device)  # pyright: ignore[reportArgumentType]
    found: dict[str, Any] = {}
    for name, batch in streams(not on_gpu).items():
        found[name] = compare(model, batch.to(device), backends, device)
        print(name, {kind: found[name][kind]["tokens_per_second"] for kind in ("forward", "step")}, flush=True)
    shown = torch.cuda.get_device_name() if on_gpu else "cpu"
    write("attention_cuda" if on_gpu else "attention", {"device": shown, "shape": {**SHAPE, "vocab_size": VOCABULARY}, "streams": found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
