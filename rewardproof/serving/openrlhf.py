"""OpenRLHF's reward function in a file: `--reward.remote_url …/rewardproof/serving/openrlhf.py`, with `REWARDPROOF_REWARD` naming a model.

It loads the model where OpenRLHF runs. For a server OpenRLHF needs no file: `--reward.remote_url http://HOST:8000/get_reward`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.serving.configured import VARIABLE, configured
from rewardproof.serving.served import Catalogue, Served
from rewardproof.serving.settings import Limits


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
    """Rewards of a policy's texts, read as `/get_reward` reads them.

    Args:
        queries: Prompts and responses with their special tokens.
        prompts: The prompts alone.
        labels: Not used.

    Returns:
        `rewards`; `scores`, the same between 0 and 1; and `extra_logs`, how far an ensemble's members are apart.
    """
    served = _served(configured("rewardproof.serving.openrlhf.reward_func"))
    known = prompts if len(prompts) == len(queries) else None
    found = served.score(served.written(queries, known, close=True)) if len(queries) else []
    rewards = [one.values[0] for one in found]
    apart: dict[str, Tensor] = {"disagreement": torch.tensor([one.apart[0] for one in found])} if any(one.apart for one in found) else {}
    return {
        "rewards": torch.tensor(rewards),
        "scores": torch.tensor([served.between_0_and_1(reward) for reward in rewards]),
        "extra_logs": apart,
    }


@functools.cache
def _served(spec: str) -> Served:
    if spec.startswith(("http://", "https://")):
        raise ConfigError(f"{VARIABLE} is an address, expected a model: OpenRLHF asks a server itself. Pass it as --reward.remote_url.")
    return Catalogue.load([spec], Limits()).first
