"""What batching and caches save in reward-guided search: ours against the plain loop, one candidate at a time.

    python -m benchmarks.reform           # writes results/bench_reform.json

Both search the same variants by the paper's rule with the same random policy and reward model. The plain loop reads the whole prefix for
each token of the policy and each candidate of the reward model, as the released code does (which makes one more pass of the reward model
a token); ours keeps keys and values of both models, and scores the candidates of all answers in one pass. What they write has to be equal.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.workload import SMALL, SPECIAL, VOCABULARY, in_turn, random_model, ratio, spread, write
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.packed import head_rewards
from rewardproof.policy.guidance import Guidance, argmin_choice
from rewardproof.policy.reward_guide import guided_answers
from rewardproof.policy.sampling import Sampling, end_tokens

PROMPTS, TOKENS, CANDIDATES, ROUNDS = 8, 24, 5, 3
SHORTEST, LONGEST = 24, 72
"""Tokens of the prompts."""
OURS, PLAIN = "batched with caches", "one candidate at a time"
BAR = 5.0
"""How many times as fast the batched search has to be at least."""
Prompt = tuple[int, ...]


def prompts() -> list[Prompt]:
    """Prompts of random tokens and unequal lengths."""
    draw = random.Random(0)
    return [tuple(draw.randrange(SPECIAL, VOCABULARY) for _ in range(draw.randint(SHORTEST, LONGEST))) for _ in range(PROMPTS)]


def random_policy(shape: Mapping[str, int]) -> LlamaForCausalLM:
    """A policy of random weights, of the reward model's shape."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **shape}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **settings)).eval()


@torch.inference_mode()
def plain_search(policy: PreTrainedModel, judge: PreTrainedModel, given: list[Prompt], guidance: Guidance) -> list[Prompt]:
    """Variants by whole prefixes, one after the other."""
    ends = end_tokens(policy)

    def reward(text: list[int]) -> float:
        states_TD = judge.base_model(torch.tensor([text])).last_hidden_state[0]
        return head_rewards(judge, states_TD[-1:]).item()

    found: list[Prompt] = []
    for prompt in given:
        answer: list[int] = []
        while len(answer) < TOKENS:
            text = [*prompt, *answer]
            log_probs_K, tokens_K = policy(torch.tensor([text]), logits_to_keep=1).logits[0, -1].log_softmax(-1).topk(guidance.top_k)
            rewards_K = torch.tensor([reward(text if token in ends else [*text, token]) for token in tokens_K.tolist()])
            chosen = int(argmin_choice(log_probs_K[None], rewards_K[None], direction="down", alpha=guidance.alpha))
            token = int(tokens_K[chosen])
            if token in ends:
                break
            answer.append(token)
        found.append(tuple(answer))
    return found


def batched_search(policy: PreTrainedModel, judge: PreTrainedModel, given: list[Prompt], guidance: Guidance) -> list[Prompt]:
    """The same variants by the library."""
    both, sampling = [(prompt, prompt) for prompt in given], Sampling(max_new_tokens=TOKENS)
    found = dict(guided_answers(policy, judge, both, guidance, "down", sampling=sampling))
    return [found[place][0].token_ids for place in range(len(given))]


def compare(shape: Mapping[str, int], *, rounds: int) -> dict[str, Any]:
    """Processor seconds of both, and how many times as fast ours is.

    Raises:
        RuntimeError: They write different variants.
    """
    policy, judge, given = random_policy(shape), random_model(shape).eval(), prompts()
    guidance = Guidance(top_k=CANDIDATES, alpha=0.1)
    written: dict[str, list[Prompt]] = {}

    def timed(name: str, search: Callable[..., list[Prompt]]) -> Callable[[], float]:
        def work() -> float:
            started = time.process_time()  # a busy machine stretches the clock, and hardly this
            written[name] = search(policy, judge, given, guidance)
            return time.process_time() - started

        return work

    contenders = {OURS: timed(OURS, batched_search), PLAIN: timed(PLAIN, plain_search)}
    contenders[OURS]()  # the first allocates
    seconds = in_turn(contenders, rounds=rounds)
    if written[OURS] != written[PLAIN]:
        raise RuntimeError(f"{OURS} and {PLAIN} wrote different variants: not the same work.")
    return {
        "tokens_written": sum(map(len, written[OURS])),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times_as_fast": ratio(seconds[PLAIN], seconds[OURS]),
    }


def main() -> None:
    """Time them, and write what was found."""
    warnings.filterwarnings("ignore")
    settings = {"prompts": PROMPTS, "prompt_tokens": [SHORTEST, LONGEST], "tokens": TOKENS, "candidates": CANDIDATES, "rounds": ROUNDS}
    found = compare(SMALL, rounds=ROUNDS)
    speed = found["times_as_fast"]
    print(f"{speed['median']} times as fast ({speed['range'][0]} to {speed['range'][1]}); the bar is {BAR}")
    write("reform", {"settings": settings, "shape": {**SMALL, "vocab_size": VOCABULARY}, "bar": BAR, **found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
