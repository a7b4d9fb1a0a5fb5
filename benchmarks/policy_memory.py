"""Peak memory of PPO steps with everything in one process: policy, its reference, value head, sampler and a reward model, all of 135M.

    python -m benchmarks.policy_memory            # writes results/bench_policy_memory.json

Each way to train is measured in a process of its own. Under adapters the reference and the sampler share the policy's weights.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.workload import memory_apart, memory_of, write
from rewardproof.data.group import Group, Message
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.checkpoints import load_base, load_causal
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import ScoredAnswers
from rewardproof.policy.rollouts import Prompt
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.scoring import Scale
from rewardproof.training.freezing import add_adapters, freeze_all_but

EMBEDDED = "embedded:smollm2-135m"
PROMPTS, ANSWERS, TOKENS, UPDATES, BUDGET = 8, 2, 32, 2, 2048
LIMIT_GB = 6.0
"""What a step under adapters has to stay below."""
ADAPTERS: dict[str, Any] = {"r": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
WAYS = ("adapters", "top 6 layers", "all layers")


def loop_of(way: str) -> OnPolicyLoop:
    """PPO by one way to train, its reward model with a random head."""
    model, tokenizer = load_causal(EMBEDDED)
    layers = range(24, 30) if way == "top 6 layers" else range(30)
    if way == "adapters":
        add_adapters(model, layers, ADAPTERS)
    else:
        freeze_all_but(model, layers)
    settings = OnPolicy(
        estimator="ppo", steps=UPDATES, prompts_per_step=PROMPTS, answers=ANSWERS, max_new_tokens=TOKENS, rows=PROMPTS * ANSWERS
    )
    policy = Policy(model, n_values=settings.value_heads(1), first_layer=layers.start)
    judge = load_base(EMBEDDED, tokenizer)
    torch.nn.init.normal_(judge.get_submodule("score").get_parameter("weight"), std=0.02)
    source = ScoredAnswers({"reward": RewardModel(judge, tokenizer)}, {"reward": Scale(0.0, 1.0)})
    groups = [Group((Message("user", f"Write {number} sentences about the sea, then stop."),), ()) for number in range(PROMPTS)]
    prompts = [Prompt.of(group, tokenizer) for group in groups]
    passes = Passes("fp32", BUDGET)
    return OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, settings, passes, seed=0)


def memory(way: str) -> None:
    """Print the peak memory of one way's updates in this process, as JSON."""
    warnings.filterwarnings("ignore")
    loop = loop_of(way)
    print(json.dumps(asdict(memory_of(lambda: [loop.update() for _ in range(UPDATES)]))))


def main(ways: Sequence[str] = WAYS) -> None:
    """Measure every way."""
    peaks = {way: memory_apart("benchmarks.policy_memory", way) for way in ways}
    for way, found in peaks.items():
        print(f"{way}: {found['peak_gb']:.2f} GB")
    settings = {"prompts": PROMPTS, "answers": ANSWERS, "new_tokens": TOKENS, "tokens_per_batch": BUDGET, "precision": "fp32"}
    write("policy_memory", {"settings": settings, "adapters": ADAPTERS, "limit_gb": LIMIT_GB, "peaks": peaks})


if __name__ == "__main__":
    keep_freed_memory()
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2])
    else:
        main()
