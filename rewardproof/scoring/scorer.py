"""`Scorer`: anything that gives each answer of a group a number; `TokenScorer`: one that also says how the number came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rewardproof.data.group import Group
from rewardproof.models.token_scores import TokenScores


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


@runtime_checkable
class TokenScorer(Scorer, Protocol):
    """A scorer that reads answers token by token: a reward model, or an ensemble of them."""

    def score_tokens(self, groups: Sequence[Group], context: object = None) -> list[tuple[TokenScores, ...]]:
        """Scores of every answer of every group as it is read; arguments as of `score`, whose number is the last of them."""
        ...
