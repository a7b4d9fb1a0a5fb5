"""`Scorer`: anything that gives each answer of a group a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rewardproof.data.group import Group


class Scorer(Protocol):
    """A reward model, an ensemble, a program that checks answers, or a remote server."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Score every answer of every group.

        Args:
            groups: Groups of any size.
            context: What a scorer that follows a policy needs, e.g. the policy's hidden states.

        Returns:
            One tuple a group, one number an answer, in order; higher is better.
        """
        ...
