"""What a reward that reads the policy and learns with it (R2M) costs a step of RLOO.

    python -m benchmarks.r2m

Two loops over the same random policy, reward model, prompts and settings, one update of each in turn: RLOO, and the same with feedback,
at the width of the models and at the published width, one optimiser step an update and one a prompt.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.workload import SMALL, SPECIAL, VOCABULARY, in_turn, random_model, ratio, spread, word_tokenizer, write
from rewardproof.data.group import Group, Message
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.cross_attention import AttentionShape
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.feedback import FeedbackLearner, FeedbackLearning
from rewardproof.policy.learning import LearningRewards
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import ScoredAnswers
from rewardproof.policy.rollouts import Prompt
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.scoring import PolicyFeedbackReward, Scale

PROMPTS, ANSWERS, TOKENS, WORDS, EPOCHS, ROUNDS = 8, 4, 32, 48, 2, 5
STEPS = 10**6
"""Of a whole run, so that its middle, where the weight is at its floor, lasts."""
RLOO = "rloo"
FEEDBACK: Mapping[str, tuple[int, int]] = {
    "r2m, one step an update": (SMALL["hidden_size"], 0),
    "r2m, one step a prompt": (SMALL["hidden_size"], 1),
    "r2m, one step a prompt, width 2048": (2048, 1),
}
"""Width of the attention and prompts of one of its optimiser steps; 0 is all of them."""


def prompts() -> list[Prompt]:
    """Prompts of random words."""
    draw, tokenizer = random.Random(0), word_tokenizer()
    texts = [" ".join(f"w{draw.randrange(SPECIAL, VOCABULARY)}" for _ in range(WORDS)) for _ in range(PROMPTS)]
    return [Prompt.of(Group((Message("user", text),), ()), tokenizer) for text in texts]


def loop(shape: Mapping[str, int], feedback: tuple[int, int] | None) -> OnPolicyLoop:
    """One contender, in the middle of its run."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, **shape}
    policy = Policy(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **settings)).eval())
    optimise = OnPolicy(
        estimator="rloo", steps=STEPS, prompts_per_step=PROMPTS, answers=ANSWERS, epochs=EPOCHS, whole_answers=True, aggregate="answer",
        max_new_tokens=TOKENS, learning_rate=1e-6,
    )  # fmt: skip
    reward = RewardModel(random_model(shape), word_tokenizer())
    scales = {"rm": Scale(0.0, 1.0)}
    source: Any = ScoredAnswers({"rm": reward}, scales)
    if feedback is not None:
        width, groups = feedback
        follower = PolicyFeedbackReward(reward, policy.config.hidden_size, AttentionShape(width=width), floor=0.6)
        learner = FeedbackLearner("rm", follower, FeedbackLearning(groups=groups), answers=ANSWERS, unit=1.0)
        source = LearningRewards(ScoredAnswers({"rm": follower}, scales), {"rm": learner})
    passes = Passes("fp32", 8192)
    made = OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), word_tokenizer(), prompts(), source, optimise, passes, seed=0)
    made.done = STEPS // 2
    return made


def compare(shape: Mapping[str, int], *, rounds: int) -> dict[str, Any]:
    """Processor seconds of an update of every contender, and of those with feedback as a multiple of RLOO's."""
    loops = {name: loop(shape, chosen) for name, chosen in {RLOO: None, **FEEDBACK}.items()}
    parts: dict[str, list[float]] = {name: [] for name in FEEDBACK}

    def update(name: str) -> Callable[[], float]:
        def work() -> float:
            started = time.process_time()  # a busy machine stretches the clock, and hardly this
            told = loops[name].update()["seconds"]
            if name in parts:
                parts[name].append(told["learning"] / told["all"])
            return time.process_time() - started

        return work

    contenders = {name: update(name) for name in loops}
    for work in contenders.values():
        work()  # the first allocates
    seconds = in_turn(contenders, rounds=rounds)
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "over_rloo": {name: ratio(seconds[name], seconds[RLOO]) for name in FEEDBACK},
        "share_of_learning": {name: spread(values[1:], digits=4) for name, values in parts.items()},
    }


def main() -> None:
    """Time them, and write what was found."""
    warnings.filterwarnings("ignore")
    settings = {"prompts": PROMPTS, "answers": ANSWERS, "tokens": TOKENS, "prompt_words": WORDS, "epochs": EPOCHS, "rounds": ROUNDS}
    found = compare(SMALL, rounds=ROUNDS)
    for name, one in found["over_rloo"].items():
        print(f"{name}: {one['median']} times a step of RLOO ({one['range'][0]} to {one['range'][1]})")
    write("r2m", {"settings": settings, "shape": {**SMALL, "vocab_size": VOCABULARY}, **found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
