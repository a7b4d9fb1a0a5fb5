"""Scorers: anything that gives each answer of a group a number."""

from rewardproof.scoring.gold import CheckableGold
from rewardproof.scoring.scorer import Scorer

__all__ = ["CheckableGold", "Scorer"]
