"""The gold scorer of the embedded world: the program that knows the truth, as a `Scorer`."""

from __future__ import annotations

from collections.abc import Sequence

from rewardproof.data import Group
from rewardproof.data.world import gold_scores


class CheckableGold:
    """Scores answers to prompts of `embedded:checkable`; exact, and defined for answers nobody has seen."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Gold in [0, 1] of every answer of every group."""
        return [gold_scores(group) for group in groups]
