"""Where the time of training goes: the operators of two optimiser steps, attributed to what they are for, dense and with experts.

    python -m benchmarks.step_profile            # writes results/bench_step_profile.json

An operator counts its own time only, and belongs to the first group whose name occurs among itself and its callers. What no operator
accounts for is Python, the dispatch of operators, and the trainer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.workload import DEFAULT_DTYPE, TOP6, Dtype, ragged_set, random_model, scratch, timed, write
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.training.batches import TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss

PAIRS, PER_STEP, SHOWN = 16, 8, 12
FEED_FORWARD = "matrix products of feed-forward blocks and experts"
FRAMES = ("autograd::engine", "enumerate(", "Optimizer.", "ProfilerStep")
"""No operators but frames around them, whose own time is that of Python and of dispatch."""
MODELS = {
    "dense": None,
    "umm, N=4 K=2": Upcycle(n_experts=4, n_active=2),
    "umm, N=8 K=6": Upcycle(n_experts=8, n_active=6),
    "umm_delta, N=4 K=2 r=16": Upcycle(n_experts=4, n_active=2, experts="lora:16"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "data: reading and packing": ("DataLoader",),
    "optimiser and gradient norm": ("Optimizer.", "linalg_vector_norm", "_foreach_norm"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "BmmBackward", "BaddbmmBackward", "oftmax"),
    "casts between precisions": ("aten::_to_copy", "ToCopyBackward"),
    "other matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "dispatch to experts": (
        *("nonzero", "aten::index", "index_add", "index_select", "index_put", "IndexBackward", "IndexAddBackward", "topk", "scatter"),
        *("aten::gather", "aten::sort", "aten::unbind", "UnbindBackward", "aten::eq", "bincount", "cumsum"),
    ),
    "copies and zeros": ("aten::cat", "aten::copy_", "aten::clone", "repeat_interleave", "aten::fill_", "aten::zero_"),
    "gradient accumulation": ("AccumulateGrad",),
}
"""What a group's operators, or their callers, have in their names; earlier groups go first."""
REST = "norms, activations and other elementwise work"
OUTSIDE = "Python, dispatch, trainer"


def group_of(chain: tuple[str, ...], shapes: str = "") -> str:
    """The group of an operator, given its own name, its callers', and the shapes of its inputs.

    Example:
        >>> group_of(("aten::copy_", "aten::_to_copy")), group_of(("aten::mul_", "Optimizer.step#AdamW.step"))
        ('casts between precisions', 'optimiser and gradient norm')
    """
    for group, marks in GROUPS.items():
        if any(mark in name for name in chain for mark in marks):
            wide = group == "other matrix products" and str(TOP6["intermediate_size"]) in shapes
            return FEED_FORWARD if wide else group
    return REST


def prepared(groups: TrainingSet, settings: Upcycle | None, dtype: Dtype, folder: str) -> Callable[[], object]:
    """One epoch of training, embeddings included, to be timed."""
    model = random_model(TOP6)
    if settings is not None:
        upcycle(model, settings)
    run = Fit(
        model=model,
        train=groups,
        held_out=None,
        layers=range(TOP6["num_hidden_layers"]),
        folder=Path(folder),
        seed=0,
        trainer={"per_device_train_batch_size": PER_STEP, "save_strategy": "no"},
        loss=Loss(),
        compute=Compute(precision=dtype, trunk_cache_gb=0),
    )
    return lambda: fit(run)


def shares(groups: TrainingSet, settings: Upcycle | None, dtype: Dtype, folder: str) -> dict[str, Any]:
    """Share of each group in the time, and the operators with most time of their own."""
    prepared(groups, settings, dtype, folder)()
    plain = timed(prepared(groups, settings, dtype, folder))
    work = prepared(groups, settings, dtype, folder)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        total = timed(work)
    found: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    for event in recorded.events() or ():
        chain, caller = [event.name], event.cpu_parent
        while caller is not None:
            chain.append(caller.name)
            caller = caller.cpu_parent
        seconds = event.self_cpu_time_total / 1e6
        group = OUTSIDE if event.name.startswith(FRAMES) else group_of(tuple(chain), str(event.input_shapes))
        found[group] += seconds
        operators[event.name] += seconds
    found[OUTSIDE] += total - sum(found.values())
    return {
        "seconds": round(plain, 2),
        "seconds_profiled": round(total, 2),
        "share": {group: round(seconds / total, 3) for group, seconds in _largest(found)},
        "operators": {name: round(seconds, 3) for name, seconds in _largest(operators)[:SHOWN]},
    }


def _largest(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda entry: -entry[1])


def main() -> None:
    """Profile all models and print a table."""
    groups = ragged_set(PAIRS)
    found: dict[str, Any] = {}
    with scratch() as folder:
        for name, settings in MODELS.items():
            found[name] = shares(groups, settings, DEFAULT_DTYPE, folder)
            print(f"\n{name}: {found[name]['seconds']} s for {PAIRS} pairs")
            for group, share in found[name]["share"].items():
                print(f"  {share:6.1%}  {group}")
    write("step_profile", {"pairs": PAIRS, "groups_per_step": PER_STEP, "shape": TOP6, "precision": DEFAULT_DTYPE, "models": found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
