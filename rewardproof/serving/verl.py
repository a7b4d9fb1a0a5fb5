"""verl's custom reward function: `reward.custom_reward_function.path=…/rewardproof/serving/verl.py name=compute_score`.

verl hands over the answer's text but not its prompt, so the data must carry that: `extra_info["prompt"]`, a text or messages; the
environment variable `REWARDPROOF_PROMPT` names another key.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.data.group import Group, Message
from rewardproof.errors import DataError
from rewardproof.scoring import TOKEN, Scorer, load_scorer
from rewardproof.serving.client import RewardClient
from rewardproof.serving.configured import configured

PROMPT = "REWARDPROOF_PROMPT"
"""Environment variable that names the key of the prompt in `extra_info`."""


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """The reward of one answer, by the scorer that `REWARDPROOF_REWARD` names: a server's address, its path included, or a model.

    Many of these wait at a time, and a server scores together what waits together.

    Args:
        data_source: Not used.
        solution_str: The answer, without special tokens.
        ground_truth: Not used.
        extra_info: What the data says of the row; holds its prompt.

    Raises:
        ConfigError: Nothing is named.
        DataError: There is no prompt.
        EvaluationError: The server gave no score.
    """
    spec = configured("rewardproof.serving.verl.compute_score")
    group = Group(_prompt(extra_info or {}), ((Message("assistant", solution_str),),), id="solution")
    if spec.startswith(("http://", "https://")):
        (rewards,) = await _client(spec, asyncio.get_running_loop()).score([group])
    else:
        (rewards,) = _scorer(spec).score([group])
    return {"score": rewards[0]}


def _prompt(info: Mapping[str, Any]) -> tuple[Message, ...]:
    key = os.environ.get(PROMPT, "prompt")
    found = info.get(key)
    if isinstance(found, str) and found:
        return (Message("user", found),)
    if isinstance(found, Sequence) and len(found) and not isinstance(found, str):
        return tuple(Message(str(turn["role"]), str(turn["content"])) for turn in found)
    raise DataError(
        f"extra_info has no {key!r} (it has: {', '.join(map(str, info)) or 'nothing'}), expected the prompt there: verl hands over answers "
        f"alone, and a reward is of both. Add it when the data is prepared, or name another key by {PROMPT}."
    )


@functools.cache
def _client(address: str, loop: asyncio.AbstractEventLoop) -> RewardClient:
    """One client for each event loop, to which its connections belong."""
    return RewardClient(address, token=os.environ.get(TOKEN, ""))


@functools.cache
def _scorer(spec: str) -> Scorer:
    return load_scorer(spec)
