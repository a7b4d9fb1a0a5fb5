"""Several scorers' numbers made one: the mean, the worst case, or the mean less their disagreement; and the units they are combined in."""

# M members, N answers.
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewardproof.errors import EvaluationError

Floats = NDArray[np.float64]
Combination = Literal["mean", "worst_case", "uncertainty"]


def disagreement(scores_MN: Floats) -> Floats:
    """Variance over the members, with 1/M, shape `(N,)`; the only definition of it that is used anywhere."""
    return scores_MN.var(axis=0)


def combine(scores_MN: Floats, combination: Combination, *, penalty: float = 0.5) -> Floats:
    r"""One score an answer out of one a member, shape `(N,)`.

    .. math::
        \text{mean: } \bar R = \tfrac1M \sum_i R_i \qquad \text{worst\_case: } \min_i R_i \qquad
        \text{uncertainty: } \bar R - \lambda \tfrac1M \sum_i (R_i - \bar R)^2

    Args:
        scores_MN: Scores in units that are the members' own no longer: see `Scale`.
        combination: Which of the three.
        penalty: The weight :math:`\lambda` of `uncertainty`; 0 is the mean.

    Example:
        >>> scores = np.array([[0.0, 1.0], [2.0, 1.0]])
        >>> combine(scores, "mean"), combine(scores, "worst_case"), combine(scores, "uncertainty", penalty=0.5)
        (array([1., 1.]), array([0., 1.]), array([0.5, 1. ]))

    Reference:
        Coste et al., arXiv:2310.02743, where they are the mean, WCO and UWO.
    """
    if combination == "worst_case":
        return scores_MN.min(axis=0)
    mean_N = scores_MN.mean(axis=0)
    return mean_N - penalty * disagreement(scores_MN) if combination == "uncertainty" else mean_N


class Scale(NamedTuple):
    """A scorer's own zero and unit: its mean and standard deviation over reference answers.

    Preferences fix a reward up to a constant that differs from seed to seed, so without a common zero the worst case is whoever has the
    lowest constant, and the disagreement contains the constants' spread.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, scores: Iterable[Sequence[float]], *, name: str) -> Scale:
        """Measure a scorer on reference answers.

        Args:
            scores: Its scores, one list a group.
            name: What messages call it by.

        Raises:
            EvaluationError: The scores are not finite, or all equal.
        """
        flat_N = np.array([value for row in scores for value in row], dtype=np.float64)
        found = cls(float(flat_N.mean()), float(flat_N.std())) if len(flat_N) else cls(0.0, 0.0)
        if not np.isfinite(found).all() or found.std <= 1e-9 * max(1.0, abs(found.mean)):
            raise EvaluationError(
                f"{name} has a mean of {found.mean:.4g} and a standard deviation of {found.std:.4g} over {len(flat_N)} reference answers, "
                "expected finite scores that differ: without a unit of its own it cannot be combined or compared with others. Give more "
                "reference answers, or leave it out."
            )
        return found

    def standardised(self, scores: Sequence[float] | Floats) -> Floats:
        """Scores in units of the reference answers' standard deviation about their mean."""
        return (np.asarray(scores, dtype=np.float64) - self.mean) / self.std
