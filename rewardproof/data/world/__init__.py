"""The world `embedded:checkable`: instruction following in which a program knows the truth."""

from rewardproof.data.world.gold import constraint_scores, family_scores, gold_score, gold_scores
from rewardproof.data.world.kind import FAMILIES
from rewardproof.data.world.prompts import Prompt, make_prompts
from rewardproof.data.world.world import PARTS, load_world

__all__ = [
    "FAMILIES",
    "PARTS",
    "Prompt",
    "constraint_scores",
    "family_scores",
    "gold_score",
    "gold_scores",
    "load_world",
    "make_prompts",
]
