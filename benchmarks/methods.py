"""What the training-time methods cost: a run of each recipe over one of `dense` on the same pairs, beside the ratio of their FLOPs.

    python -m benchmarks.methods             # writes results/bench_methods.json

The model has the shape of the embedded model's top six layers, where the recipes train, with random weights. A run is what `train` does
between reading and delivering: what a term of the objective prepares, then optimiser steps of forward, backward, gradient norm and AdamW,
a recipe's own settings but for steps and batch. FLOPs are those that torch counts in a run of the same kind, whatever for. DogeRM trains
as `dense` does. DMoERM is measured in its last two phases: an expert, and the network over what all experts and the base say.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.workload import (
    DEFAULT_DTYPE,
    TOP6,
    VOCABULARY,
    in_turn,
    ragged_groups,
    ratio,
    scratch,
    spread,
    timed,
    word_tokenizer,
    write,
)  # fmt: skip
from rewardproof.artifacts import RunDirectory, silent
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.checkpoints import load_tokenizer
from rewardproof.models.double_mixture import CapabilityExperts, add_experts, expert_parameters, switch_to
from rewardproof.models.upcycling import select_layers
from rewardproof.stages.member_context import MemberContext
from rewardproof.stages.members import base_model
from rewardproof.stages.train import Train, prepared_for
from rewardproof.training.fit import Fit, fit

PAIRS, PER_STEP, ROUNDS = 32, 16, 3
DENSE = "dense"
RECIPES = (DENSE, "secrets_flip_margin", "secrets_soft_margin", "bsr", "simcse", "swav", "haf", "bnrm", "grm_bnrm")
EXPERTS = 4
"""Capabilities of DMoERM's category."""


class Contest:
    """One model and one file of pairs, in a folder of their own, for all recipes."""

    def __init__(self, folder: Path, shape: dict[str, int] = TOP6, *, pairs: int = PAIRS) -> None:
        """Write model and pairs."""
        self.folder, self.model, self.data = folder, folder / "model", folder / "pairs.jsonl"
        torch.manual_seed(0)
        settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **shape}
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **settings)).save_pretrained(self.model)
        word_tokenizer().save_pretrained(self.model)
        draw = random.Random(0)
        rows = (
            {
                "prompt": group.prompt[0].content,
                "chosen": group.answers[0][0].content,
                "rejected": group.answers[1][0].content,
                "strength": draw.gauss(1, 1),
            }
            for group in ragged_groups(pairs, answers=2)
        )
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def context(self, recipe: str) -> MemberContext:
        """The run of a recipe, all pairs in its training set."""
        given = [f"model={self.model}", f"data={self.data}", "split=0", "read.max_groups=0"]
        given += [f"trainer.per_device_train_batch_size={PER_STEP}", "trainer.num_train_epochs=1", "trainer.eval_strategy=no"]
        given += ["trainer.save_strategy=no", "trainer.logging_steps=1000", f"compute.precision={DEFAULT_DTYPE}"]
        config = parse(Train, apply_overrides(load_recipe(recipe), given))
        tokenizer = load_tokenizer(config.model)
        run = Path(tempfile.mkdtemp(dir=self.folder))
        return MemberContext(config, prepared_for(config, tokenizer), tokenizer, RunDirectory(run / "run", config), False, silent)

    def recipe(self, name: str) -> Callable[[], object]:
        """A new run of a recipe, ready to go."""
        context = self.context(name)
        plan = self.plan(context)
        return lambda: fit(plan)

    def plan(self, context: MemberContext) -> Fit:
        """How a context's model trains, without what judges it."""
        plan = context.plan(base_model(context, 0), context.directory.path / "checkpoints", 0, "training")
        return replace(plan, held_out=None, judged=(), look_at_states=False)

    def with_experts(self) -> Fit:
        """How DMoERM trains on a model that has one adapter a capability."""
        context = self.context("dmoerm")
        plan = self.plan(context)
        assert context.config.capabilities is not None
        layers = select_layers("all", plan.model.config.num_hidden_layers)
        add_experts(plan.model, layers, EXPERTS, context.config.capabilities.lora, seed=0)
        return plan

    def expert(self) -> Callable[[], object]:
        """DMoERM's second phase: one expert on the frozen model."""
        plan = self.with_experts()
        switch_to(plan.model, 0)
        return lambda: fit(replace(plan, trainable=lambda model: expert_parameters(model, 0)))

    def network(self) -> Callable[[], object]:
        """DMoERM's third: the network over what all experts say, whose states are found once."""
        plan = self.with_experts()
        experts = CapabilityExperts(plan.model, [f"point {number}" for number in range(EXPERTS)], seed=0)

        def run() -> None:
            with experts.keeping():
                fit(replace(plan, head=None, experts=experts, trainable=lambda _: ()))

        return run


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of some work, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def compare(contest: Contest, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of a run of every method, over those of `dense` and over that times the ratio of FLOPs."""
    made: dict[str, Callable[[], Callable[[], object]]] = {name: lambda name=name: contest.recipe(name) for name in RECIPES}
    made |= {"dmoerm, expert": contest.expert, "dmoerm, network": contest.network}
    counted = {name: flops(make()) for name, make in made.items()}
    seconds = in_turn({name: lambda make=make: timed(make()) for name, make in made.items()}, rounds=rounds)
    return {
        name: {
            "seconds": spread(seconds[name]),
            "gflops": round(counted[name] / 1e9, 1),
            "flop_ratio": round(counted[name] / counted[DENSE], 3),
            "over_dense": ratio(seconds[name], seconds[DENSE]),
            "over_dense_by_flops": ratio(seconds[name], seconds[DENSE], scale=counted[DENSE] / counted[name]),
        }
        for name in made
    }


def main() -> None:
    """Measure and write."""
    with scratch() as folder, contextlib.chdir(folder):
        found = compare(Contest(Path(folder)))
    for name, entry in found.items():
        over, quotient = entry["over_dense"], entry["over_dense_by_flops"]
        print(
            f"{name}: {over['median']:.2f} {over['range']} x dense, FLOP ratio {entry['flop_ratio']:.2f}, "
            f"quotient {quotient['median']:.2f} {quotient['range']}"
        )
    write("methods", {"shape": TOP6, "pairs": PAIRS, "per_step": PER_STEP, "precision": DEFAULT_DTYPE, "methods": found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
