"""Train reward models that are hard to game, and measure how hard.

The verbs of the command line are functions of `rewardproof.stages`; the names below load on first use, so that importing the package
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardproof.data import Group, Message, read_groups
    from rewardproof.models.reward_model import RewardModel
    from rewardproof.stages.train import Train
    from rewardproof.stages.train import run as train

__version__ = "0.1.0"
_PLACES = {
    "Group": ("rewardproof.data", "Group"),
    "Message": ("rewardproof.data", "Message"),
    "RewardModel": ("rewardproof.models.reward_model", "RewardModel"),
    "Train": ("rewardproof.stages.train", "Train"),
    "read_groups": ("rewardproof.data", "read_groups"),
    "train": ("rewardproof.stages.train", "run"),
}
__all__ = ["Group", "Message", "RewardModel", "Train", "read_groups", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rewardproof' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
