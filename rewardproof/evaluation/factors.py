"""What the factors of a head respond to: how many take part in the reward, and which answers the strongest of them like."""

# N answers, K factors.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rewardproof.errors import EvaluationError
from rewardproof.models.factor_head import FLOOR, dead_factors, factors_in_effect, travelled
from rewardproof.statistics import pearson

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as one factor sees it: the factor's activation, the answer's reward and tokens, and how it begins."""

    activation: float
    reward: float
    tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor over a set of answers.

    Attributes:
        number: Its index.
        phi: Its entry of the dictionary.
        mean: Its mean activation.
        spread: The activations' standard deviation.
        share: Φ times the spread, as a share of that of all factors.
        length_correlation: Of its activation and the answer's tokens; `None` where either is constant.
        reward_correlation: Of its activation and the reward.
        highest: The answers that it responds to most, the first one most.
        lowest: Those that it responds to least.
    """

    number: int
    phi: float
    mean: float
    spread: float
    share: float
    length_correlation: float | None
    reward_correlation: float | None
    highest: tuple[Answer, ...]
    lowest: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class FactorReading:
    """A head of factors over a set of answers.

    Attributes:
        answers: How many.
        n_factors: Factors of the head.
        dead: Share of factors that give none of the answers a reward.
        dead_dictionary: Share whose entry of the dictionary is at its floor.
        dead_activation: Share whose activation is at its floor for all of the answers.
        in_effect: Number of equal factors that would share the mean reward as evenly.
        phi_travelled: Distance of the dictionary from its start, relative to its norm there.
        length_correlation: Of the reward and the answer's tokens.
        alike: Mean correlation of two of the strongest factors' activations; near 1 they are one factor in many copies. `None` of one.
        strongest: The factors that spread the rewards most, by Φ times the spread of their activations.
    """

    answers: int
    n_factors: int
    dead: float
    dead_dictionary: float
    dead_activation: float
    in_effect: float
    phi_travelled: float
    length_correlation: float | None
    alike: float | None
    strongest: tuple[Factor, ...]


def read_factors(
    active_NK: Tensor,
    phi_K: Tensor,
    start_K: Tensor,
    *,
    rewards: Sequence[float],
    answers: Sequence[tuple[str, int]],
    strongest: int = 6,
    examples: int = 3,
) -> FactorReading:
    """Say what the factors of a head respond to.

    Args:
        active_NK: Activation of every factor for every answer, >= 0, shape `(N, K)`.
        phi_K: The dictionary, >= 0, shape `(K,)`.
        start_K: The dictionary before training, same shape.
        rewards: The answers' rewards.
        answers: How every answer begins, and its tokens.
        strongest: Factors to tell of.
        examples: Answers quoted at each end of a factor.

    Raises:
        EvaluationError: There is no answer.

    Example:
        >>> import torch
        >>> active = torch.tensor([[0.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
        >>> found = read_factors(active, torch.ones(3), torch.ones(3), rewards=[1.0, 5.0], answers=[("no", 1), ("a longer one", 3)])
        >>> [(factor.number, factor.highest[0].text) for factor in found.strongest], round(found.dead, 3)
        ([(0, 'a longer one')], 0.333)
    """
    if not len(active_NK):
        raise EvaluationError("Got no answers to read factors on, expected at least one; give data, or leave the reading out.")
    reward_N, length_N = np.asarray(rewards, dtype=np.float64), np.asarray([tokens for _, tokens in answers], dtype=np.float64)
    strength_K = phi_K.double() * active_NK.double().std(dim=0, correction=0)
    total = float(strength_K.sum())

    def factor(number: int) -> Factor:
        active_N = active_NK[:, number].double().numpy()
        rising = np.argsort(active_N, kind="stable").tolist()
        quoted = [Answer(float(active_N[place]), float(reward_N[place]), answers[place][1], answers[place][0]) for place in rising]
        return Factor(
            number=number,
            phi=float(phi_K[number]),
            mean=float(active_N.mean()),
            spread=float(active_N.std()),
            share=float(strength_K[number]) / total,
            length_correlation=_correlation(active_N, length_N),
            reward_correlation=_correlation(active_N, reward_N),
            highest=tuple(quoted[::-1][:examples]),
            lowest=tuple(quoted[:examples]),
        )

    order = [number for number in strength_K.argsort(descending=True, stable=True)[:strongest].tolist() if strength_K[number] > 0]
    return FactorReading(
        answers=len(active_NK),
        n_factors=len(phi_K),
        dead=float(dead_factors(active_NK, phi_K).float().mean()),
        dead_dictionary=float((phi_K <= FLOOR).float().mean()),
        dead_activation=float((active_NK.amax(dim=0) <= FLOOR).float().mean()),
        in_effect=factors_in_effect(active_NK, phi_K),
        phi_travelled=travelled(phi_K, start_K),
        length_correlation=_correlation(reward_N, length_N),
        alike=_mean_correlation(active_NK[:, order].double().numpy()),
        strongest=tuple(factor(number) for number in order),
    )


def _mean_correlation(active_NS: FloatArray) -> float | None:
    if active_NS.shape[1] < 2:
        return None
    correlation_SS = np.asarray(np.corrcoef(active_NS, rowvar=False))
    return float(correlation_SS[np.triu_indices(len(correlation_SS), k=1)].mean())


def _correlation(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Linear correlation, or `None` where a column is constant."""
    if any(np.ptp(values_N) <= 1e-12 * np.abs(values_N).max() for values_N in (x_N, y_N)):
        return None
    return pearson(x_N, y_N)
