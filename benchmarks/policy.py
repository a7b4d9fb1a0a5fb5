"""RLOO, ours and TRL's, on one tiny task: do both reach the same reward, and how long do they take?

    python -m benchmarks.policy

A random Llama is to say good words. Same start, prompts, rate, penalty, number of answers and updates; every trained policy is then judged
on the same held-out prompts by the same sampler.
"""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.workload import SPECIAL, ratio, scratch, spread, word_tokenizer, write
from rewardproof.data.group import Group, Message
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.policy.kl_penalty import KLPenalty
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import ScoredAnswers
from rewardproof.policy.rollouts import Prompt, roll_out
from rewardproof.policy.sampling import Sampling
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.scoring import Scale

WORDS, UPDATES, PROMPTS, ANSWERS, TOKENS, RATE, BETA, SEEDS = 256, 60, 16, 4, 16, 1e-3, 0.02, (0, 1, 2)
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}


PHASES: Counter[str] = Counter()
"""Seconds of our loop by phase, over all seeds."""


class GoodWords:
    """Share of an answer's words that are good: every fourth of the vocabulary."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """The share for every answer; 0 for an empty one."""
        return [tuple(share(text) for text in group.answer_texts) for group in groups]


def share(text: str) -> float:
    """Share of good words in a text."""
    words = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
    return sum(word % 4 == 0 for word in words) / len(words) if words else 0.0


def start(seed: int) -> LlamaForCausalLM:
    """The random model that both begin with."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.05, **SHAPE}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **settings)).eval()


def prompts_of(count: int, seed: int) -> list[str]:
    """Prompts of five words."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(SPECIAL, WORDS)}" for _ in range(5)) for _ in range(count)]


def encoded(texts: Sequence[str]) -> list[Prompt]:
    """Prompts as both read them: the words as they are."""
    tokenizer = word_tokenizer()
    return [Prompt(Group((Message("user", text),), (), raw=True), tuple(tokenizer(text)["input_ids"])) for text in texts]


def ours(model: PreTrainedModel, texts: Sequence[str], seed: int) -> PreTrainedModel:
    """The model after our loop."""
    settings = OnPolicy(
        estimator="rloo", steps=UPDATES, prompts_per_step=PROMPTS, answers=ANSWERS, learning_rate=RATE, whole_answers=True,
        aggregate="answer", kl=KLPenalty(coefficient=BETA), max_new_tokens=TOKENS, betas=(0.9, 0.999),
    )  # fmt: skip
    policy, tokenizer = Policy(model), word_tokenizer()
    source = ScoredAnswers({"good": GoodWords()}, {"good": Scale(0.0, 1.0)})
    passes = Passes("fp32", 8192)
    loop = OnPolicyLoop(
        policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, encoded(texts), source, settings, passes, seed=seed
    )
    for _ in range(UPDATES):
        for phase, spent in loop.update()["seconds"].items():
            PHASES[phase] += spent
    return model


def trls(model: PreTrainedModel, texts: Sequence[str], seed: int) -> PreTrainedModel:
    """The model after TRL's RLOOTrainer."""
    from datasets import Dataset
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    with scratch() as folder:
        model.save_pretrained(f"{folder}/start")  # TRL reads its reference from there
        word_tokenizer().save_pretrained(f"{folder}/start")
        model = LlamaForCausalLM.from_pretrained(f"{folder}/start")
        settings = RLOOConfig(
            output_dir=folder, max_steps=UPDATES, per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, beta=BETA,
            max_completion_length=TOKENS, learning_rate=RATE, lr_scheduler_type="constant", temperature=1.0, num_iterations=1, seed=seed,
            report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1000, weight_decay=0.0,
        )  # fmt: skip
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [share(text) for text in completions],
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=word_tokenizer(),
        )
        trainer.train()
    return model.eval()


def judged(model: PreTrainedModel, texts: Sequence[str]) -> float:
    """Mean reward of a policy's answers to prompts it has not seen."""
    prompts = encoded(texts)
    sampling = Sampling(max_new_tokens=TOKENS, seed=7)
    rollouts = roll_out(model, word_tokenizer(), prompts, range(len(prompts)), answers=8, sampling=sampling)
    return sum(map(sum, GoodWords().score(rollouts.groups))) / len(rollouts.finished_B)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each phase's share of the step, and what is in none of them."""
    named = {name: spent / seconds["all"] for name, spent in seconds.items() if name != "all"}
    return {name: round(value, 4) for name, value in {**named, "outside": 1 - sum(named.values())}.items()}


def main() -> None:
    """Train with both, judge both."""
    warnings.filterwarnings("ignore")
    rewards: dict[str, list[float]] = {"start": [], "ours": [], "TRL's RLOOTrainer": []}
    seconds: dict[str, list[float]] = {"ours": [], "TRL's RLOOTrainer": []}
    for seed in SEEDS:
        first, train, held_out = start(seed), prompts_of(UPDATES * PROMPTS, seed), prompts_of(64, 1000 + seed)
        rewards["start"].append(judged(first, held_out))
        for name, run in (("ours", ours), ("TRL's RLOOTrainer", trls)):
            began = time.perf_counter()
            trained = run(copy.deepcopy(first), train, seed)
            seconds[name].append(time.perf_counter() - began)
            rewards[name].append(judged(trained, held_out))
            print(f"seed {seed}: {name} {rewards[name][-1]:.3f} in {seconds[name][-1]:.0f} s", flush=True)
    gaps = [one - other for one, other in zip(rewards["ours"], rewards["TRL's RLOOTrainer"], strict=True)]
    settings = {
        "updates": UPDATES,
        "prompts": PROMPTS,
        "answers": ANSWERS,
        "tokens": TOKENS,
        "rate": RATE,
        "beta": BETA,
        "seeds": list(SEEDS),
    }
    write(
        "policy",
        {
            "settings": settings,
            "shape": {**SHAPE, "vocab_size": WORDS},
            "reward": {name: spread(values) for name, values in rewards.items()},
            "ours_less_trl": spread(gaps),
            "share_of_our_step": shares(PHASES),
            "speed_over_trl": ratio(seconds["TRL's RLOOTrainer"], seconds["ours"]),
        },
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
