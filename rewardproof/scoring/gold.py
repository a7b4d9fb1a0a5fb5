"""Programs that know the truth, as `Scorer`s: the gold of the embedded world, and rules that certify answers."""

from __future__ import annotations

from collections.abc import Sequence

from rewardproof.data import Group
from rewardproof.data.rules import Rule, checker_of
from rewardproof.data.world import gold_scores


class CheckableGold:
    """Scores answers to prompts of `embedded:checkable`; exact, and defined for answers nobody has seen."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Gold in [0, 1] of every answer of every group."""
        return [gold_scores(group) for group in groups]


class CertifiedByRule:
    """1 for an answer that a rule certifies as right, 0 for any other: what it cannot tell is not certified."""

    def __init__(self, name: str) -> None:
        """Find the rule; raises as `checker_of`."""
        self.checker = checker_of(Rule(name=name))

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Certificates of every answer of every group."""
        return [tuple(float(self.checker.verdict(group, text) is True) for text in group.answer_texts) for group in groups]
