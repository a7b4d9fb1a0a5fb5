"""Programs that know the truth, as `Scorer`s: the gold of the embedded world, a family of its rules, and rules that certify answers."""

from __future__ import annotations

from collections.abc import Sequence

from rewardproof.config import nearest_hint
from rewardproof.data import Group
from rewardproof.data.rules import Rule, checker_of
from rewardproof.data.world import FAMILIES, family_scores, gold_scores
from rewardproof.errors import DataError


class CheckableGold:
    """Scores answers to prompts of `embedded:checkable`; exact, and defined for answers nobody has seen."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Gold in [0, 1] of every answer of every group."""
        return [gold_scores(group) for group in groups]


class CheckableFamily:
    """How far answers keep the rules of one family, and nothing else: right as far as it goes, and blind to quality."""

    def __init__(self, family: str) -> None:
        """Name the family.

        Raises:
            DataError: There is none of this name.
        """
        if family not in FAMILIES:
            raise DataError(
                f"Got embedded:checkable/{family} as a scorer{nearest_hint(family, FAMILIES)}, expected embedded:checkable, which is gold, "
                f"or a family of its rules: {', '.join(f'embedded:checkable/{name}' for name in FAMILIES)}. Name one of them."
            )
        self.family = family

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Mean satisfaction in [0, 1] of the prompt's rules of the family; 1 where it has none."""
        return [family_scores(group, self.family) for group in groups]


class CertifiedByRule:
    """1 for an answer that a rule certifies as right, 0 for any other: what it cannot tell is not certified."""

    def __init__(self, name: str) -> None:
        """Find the rule; raises as `checker_of`."""
        self.checker = checker_of(Rule(name=name))

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Certificates of every answer of every group."""
        return [tuple(float(self.checker.verdict(group, text) is True) for text in group.answer_texts) for group in groups]
