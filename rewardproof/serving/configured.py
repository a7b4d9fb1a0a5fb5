"""The scorer of adapters that a trainer finds by name and calls without arguments: the environment names it."""

from __future__ import annotations

import os

from rewardproof.errors import ConfigError

VARIABLE = "REWARDPROOF_REWARD"
"""Environment variable that names the scorer: a model's directory, or a server's address with its path."""


def configured(adapter: str) -> str:
    """The word that names the scorer.

    Args:
        adapter: Who asks, for the message.

    Raises:
        ConfigError: There is none.
    """
    spec = os.environ.get(VARIABLE, "")
    if not spec:
        raise ConfigError(f"{VARIABLE} is not set, expected the reward that {adapter} stands for; set it to a model.")
    return spec
