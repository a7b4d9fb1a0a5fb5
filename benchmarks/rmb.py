"""Scoring RMB's best-of-n sets against the padded way of RewardBench's scripts, a conversation an answer: the same texts, model, precision.

    python -m benchmarks.rmb /data/rmb/bon_helpfulness.jsonl.gz     # writes results/bench_rmb.json

Both start from the groups and the embedded model's tokenizer; the model is random, in fp32. The padded way writes every conversation out,
takes them in the data's order in batches of 8 (the scripts' default), pads each batch to its longest, and reads one logit a row. Prompts
with a conversation of more than 2,048 tokens, where the scripts would cut, are left out. That both give the same rewards is checked.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.workload import SMALL, in_turn, random_model, ratio, spread, timed, write
from rewardproof.data import read_groups, split_position
from rewardproof.data.encoding import render
from rewardproof.data.group import Group
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.checkpoints import load_tokenizer
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.judging import rewards_of

PROMPTS, BATCH, LONGEST, ROUNDS = 60, 8, 2048, 3
TOLERANCE = 2e-4
OURS, PADDED = "rewardproof", f"padded, batches of {BATCH}"


def contender(shape: dict[str, int], tokenizer: Any) -> RewardModel:
    """A random model that reads the tokenizer's words."""
    model = random_model({**shape, "pad_token_id": tokenizer.pad_token_id}, vocabulary=len(tokenizer))
    return RewardModel(model.eval(), tokenizer)


def padded(model: RewardModel, groups: Sequence[Group]) -> list[float]:
    """A forward pass of whole conversations, a batch at a time."""
    texts = [render(group, answer, model.tokenizer) for group in groups for answer in group.answers]
    rewards: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            encoded = model.tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
            rewards += model.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0].tolist()
    return rewards


def packed(model: RewardModel, groups: Sequence[Group]) -> list[float]:
    """As `rewardproof evaluate` does it."""
    return list(itertools.chain.from_iterable(rewards_of(model, model.encode(groups)[0])))


def some_of(groups: Sequence[Group], model: RewardModel, prompts: int) -> list[Group]:
    """So many prompts that fit, chosen by a hash of their text."""
    chosen = sorted(groups, key=lambda group: split_position(group, "share"))
    encoded = model.encode(chosen[: 2 * prompts], max_length=LONGEST, overlong="drop")[0]
    return [chosen[entry.index] for entry in encoded][:prompts]


def compare(groups: Sequence[Group], model: RewardModel, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Answers per second of both, and their ratio round by round."""
    rewards: dict[str, list[float]] = {}
    works = {OURS: packed, PADDED: padded}

    def once(name: str) -> float:
        return timed(lambda: rewards.update({name: works[name](model, groups)}))

    seconds = in_turn({name: partial(once, name) for name in works}, rounds=rounds)
    gap = max(abs(one - other) for one, other in zip(rewards[OURS], rewards[PADDED], strict=True))
    if gap > TOLERANCE:
        raise RuntimeError(f"Got rewards that differ by {gap}, expected at most {TOLERANCE}: not the same work.")
    encoded = model.encode(groups)[0]
    return {
        "prompts": len(groups),
        "answers": len(rewards[OURS]),
        "tokens": sum(len(tokens) for group in encoded for tokens in group.conversations),
        "tokens_shared_prompts_once": sum(group.n_tokens for group in encoded),
        "answers_per_second": {name: spread([len(rewards[OURS]) / value for value in found]) for name, found in seconds.items()},
        "speed_over_padded": ratio(seconds[PADDED], seconds[OURS]),
        "largest_difference_of_rewards": gap,
        "spread_of_rewards": float(torch.tensor(rewards[OURS]).std()),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="RMB's best-of-n files")
    model = contender(SMALL, load_tokenizer("embedded:smollm2-135m"))
    groups = read_groups(parser.parse_args().data, on_bad="drop_unfit", purpose="judge").groups
    found = compare(some_of(groups, model, PROMPTS), model)
    print(found)
    write("rmb", {"batch": BATCH, "rounds": ROUNDS, "shape": SMALL, **found})


if __name__ == "__main__":
    keep_freed_memory()
    main()
