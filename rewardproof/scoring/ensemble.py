"""Several scorers as one, each in units of its own spread over the same reference answers.

Reference:
    Coste et al., Reward Model Ensembles Help Mitigate Overoptimization, arXiv:2310.02743.
"""

# M members, N answers of a group.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from rewardproof.config import Section
from rewardproof.data.group import Group
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.scoring.combination import Combination, Floats, Scale, combine, disagreement
from rewardproof.scoring.scorer import Scorer


class Combine(Section):
    """How members become one score."""

    combination: Combination = "uncertainty"
    """`mean`; `worst_case` (WCO), the lowest member's; or `uncertainty` (UWO), the mean less `penalty` times the members' variance."""
    penalty: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the variance under `uncertainty`; the published value for best-of-n."""


class Ensemble:
    """Scorers that judge together, each in units of its own spread over the same reference answers; a `Scorer`."""

    def __init__(self, members: Mapping[str, Scorer], scales: Mapping[str, Scale], how: Combine | None = None) -> None:
        """Join members.

        Args:
            members: Scorers by name.
            scales: Their units, by the same names.
            how: How they combine.

        Raises:
            ConfigError: There are no members, or names differ.
        """
        if not members or set(members) != set(scales):
            raise ConfigError(
                f"Got members {', '.join(members) or 'none'} and scales of {', '.join(scales) or 'none'}, expected at least one member and "
                "the scale of each: scores in different units cannot be combined. Measure each on the same answers with Scale.of."
            )
        self.members = dict(members)
        self.scales = dict(scales)
        self.how = how or Combine()

    @classmethod
    def measured(cls, members: Mapping[str, Scorer], reference: Sequence[Group], how: Combine | None = None) -> Ensemble:
        """Join members whose units are measured on reference answers.

        Raises:
            EvaluationError: A member gives all of them the same score.
        """
        return cls(members, {name: Scale.of(member.score(reference), name=name) for name, member in members.items()}, how)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """The combined score of every answer of every group, in units of one member's spread.

        Args:
            groups: Groups of any size.
            context: Handed on to the members.

        Raises:
            EvaluationError: A member gives another number of scores than there are answers.
        """
        return self.combined(self.by_member(groups, context))

    def disagreement(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Variance of the members' scores for every answer of every group."""
        return _apart(self.by_member(groups, context))

    def score_with_disagreement(
        self, groups: Sequence[Group], context: object = None
    ) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        """What `score` and `disagreement` give, for one reading by the members."""
        by_member = self.by_member(groups, context)
        return self.combined(by_member), _apart(by_member)

    def combined(self, scores: Sequence[Floats]) -> list[tuple[float, ...]]:
        """Members' standardised scores made one, groups of `(M, N)` to groups of N."""
        return [tuple(combine(scores_MN, self.how.combination, penalty=self.how.penalty).tolist()) for scores_MN in scores]

    def by_member(self, groups: Sequence[Group], context: object = None) -> list[Floats]:
        """Every member's standardised score of every answer, one array `(M, N)` a group."""
        found = {name: member.score(groups, context) for name, member in self.members.items()}
        return self.standardised(found, [len(group.answers) for group in groups])

    def standardised(self, scores: Mapping[str, Sequence[Sequence[float]]], sizes: Sequence[int]) -> list[Floats]:
        """Members' own scores in units of their spread, one array `(M, N)` a group.

        Args:
            scores: One list of groups a member.
            sizes: Answers of each group.

        Raises:
            EvaluationError: A member's lists are of other sizes.
        """
        for name, rows in scores.items():
            if (got := [len(row) for row in rows]) != list(sizes):
                raise EvaluationError(
                    f"Member {name} gave {sum(got)} scores in {len(got)} groups, expected {sum(sizes)} in {len(sizes)}: one an answer, in "
                    "order. Correct that scorer."
                )
        return [np.stack([self.scales[name].standardised(rows[place]) for name, rows in scores.items()]) for place in range(len(sizes))]


def _apart(by_member: Sequence[Floats]) -> list[tuple[float, ...]]:
    return [tuple(disagreement(scores_MN).tolist()) for scores_MN in by_member]


def score_and_disagreement(scorer: Scorer, groups: Sequence[Group], context: object = None) -> tuple[list[tuple[float, ...]], float | None]:
    """Scores of groups, and how far an ensemble's members are apart on them: the mean over answers of their variance; `None` for others."""
    if not isinstance(scorer, Ensemble):
        return scorer.score(groups, context), None
    scores, apart = scorer.score_with_disagreement(groups, context)
    return scores, float(np.mean([value for row in apart for value in row]))
