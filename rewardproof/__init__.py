"""Train reward models that are hard to game, and measure how hard.

The verbs of the command line are functions here (`rewardproof.train(Train(…), "runs/mine")`), each with its settings; the names below load
on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardproof.data import Group, Message, read_groups
    from rewardproof.models.reward_model import RewardModel
    from rewardproof.stages.audit import Audit
    from rewardproof.stages.audit import run as audit
    from rewardproof.stages.demo import Demo
    from rewardproof.stages.demo import run as demo
    from rewardproof.stages.evaluate import Evaluate
    from rewardproof.stages.evaluate import run as evaluate
    from rewardproof.stages.merge import MergeModels
    from rewardproof.stages.merge import run as merge
    from rewardproof.stages.score import Score
    from rewardproof.stages.score import run as score
    from rewardproof.stages.search import Search
    from rewardproof.stages.search import run as search
    from rewardproof.stages.strength import Strength
    from rewardproof.stages.strength import run as strength
    from rewardproof.stages.train import Train
    from rewardproof.stages.train import run as train
    from rewardproof.stages.upcycle import UpcycleModel
    from rewardproof.stages.upcycle import run as upcycle

__version__ = "0.1.0"
_PLACES = {
    "Audit": ("rewardproof.stages.audit", "Audit"),
    "Demo": ("rewardproof.stages.demo", "Demo"),
    "Evaluate": ("rewardproof.stages.evaluate", "Evaluate"),
    "Group": ("rewardproof.data", "Group"),
    "MergeModels": ("rewardproof.stages.merge", "MergeModels"),
    "Message": ("rewardproof.data", "Message"),
    "RewardModel": ("rewardproof.models.reward_model", "RewardModel"),
    "Score": ("rewardproof.stages.score", "Score"),
    "Search": ("rewardproof.stages.search", "Search"),
    "Strength": ("rewardproof.stages.strength", "Strength"),
    "Train": ("rewardproof.stages.train", "Train"),
    "UpcycleModel": ("rewardproof.stages.upcycle", "UpcycleModel"),
    "audit": ("rewardproof.stages.audit", "run"),
    "demo": ("rewardproof.stages.demo", "run"),
    "evaluate": ("rewardproof.stages.evaluate", "run"),
    "merge": ("rewardproof.stages.merge", "run"),
    "read_groups": ("rewardproof.data", "read_groups"),
    "score": ("rewardproof.stages.score", "run"),
    "search": ("rewardproof.stages.search", "run"),
    "strength": ("rewardproof.stages.strength", "run"),
    "train": ("rewardproof.stages.train", "run"),
    "upcycle": ("rewardproof.stages.upcycle", "run"),
}
__all__ = [
    "Audit",
    "Demo",
    "Evaluate",
    "Group",
    "MergeModels",
    "Message",
    "RewardModel",
    "Score",
    "Search",
    "Strength",
    "Train",
    "UpcycleModel",
    "audit",
    "demo",
    "evaluate",
    "merge",
    "read_groups",
    "score",
    "search",
    "strength",
    "train",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rewardproof' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
