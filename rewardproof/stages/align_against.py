"""Settings of `align` in which `$MODEL` stands for the reward model that a policy is optimised against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardproof.errors import ConfigError
from rewardproof.scoring import stream_names

MODEL = "$MODEL"


def against(model: str, settings: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """Settings with the model in its place: among the rewards, and where a threshold is that of its stream.

    Args:
        model: The reward model's directory.
        settings: Of `align`; without `reward`, the model is the only one.
        key: Where the settings stand, for the error.

    Raises:
        ConfigError: The rewards do without the model.
    """
    rewards = settings.get("reward", [MODEL])
    rewards = rewards.split(",") if isinstance(rewards, str) else list(rewards)
    if MODEL not in rewards:
        raise ConfigError(
            f"Got {key}.reward={rewards!r}, expected {MODEL} among them, the reward model in question. Write {key}.reward={MODEL},…."
        )
    named = [model if one == MODEL else one for one in rewards]
    found = {**settings, "reward": named}
    thresholds = (settings.get("constrained") or {}).get("thresholds") or {}
    if MODEL in thresholds:
        own = stream_names(named)[rewards.index(MODEL)]
        found["constrained"] = {
            **settings["constrained"],
            "thresholds": {own if name == MODEL else name: value for name, value in thresholds.items()},
        }
    return found
