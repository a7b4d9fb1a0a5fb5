"""Merging: experts into one dense block, models into one model."""

from rewardproof.merging.average import average
from rewardproof.merging.fold import coefficients, fold

__all__ = ["average", "coefficients", "fold"]
