"""Which of several blends of two models orders validation pairs best: the curve of accuracy against the weight, and its summit."""

# G groups, W weights.
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardproof.artifacts import Progress
from rewardproof.data.encoding import EncodedGroup
from rewardproof.evaluation import accuracy_intervals
from rewardproof.merging.domain import Shares
from rewardproof.models.reward_model import RewardModel
from rewardproof.statistics import paired_difference
from rewardproof.training.batches import TrainingGroup, TrainingSet


@dataclass(frozen=True, slots=True)
class Judged:
    """Validation pairs as each blend orders them.

    Attributes:
        correct_GW: Share of each group's pairs that is in order, a tie being half a pair; shape `(G, W)`.
        prompts: The prompt of each group, as tokens.
        n_pairs: Pairs of all groups.
        rewards: The answers' rewards, blend by blend; each is on a scale of its own.
        weights: The blends.
    """

    correct_GW: NDArray[np.float64]
    prompts: list[tuple[int, ...]]
    n_pairs: int
    rewards: list[list[tuple[float, ...]]]
    weights: list[Shares]

    @property
    def best(self) -> int:
        """The highest accuracy; of equals the smallest weight of the language model."""
        shown_W = [round(interval.estimate, 12) for interval in accuracy_intervals(self.correct_GW, self.prompts)]
        return max(range(len(shown_W)), key=lambda place: (shown_W[place], -self.weights[place].domain))

    def summary(self, best: int) -> dict[str, Any]:
        """The curve, and the gain over the reward model alone where that was tried."""
        intervals = accuracy_intervals(self.correct_GW, self.prompts)
        curve = [
            {
                "weight": weights.domain,
                "accuracy": interval.as_dict(),
                "reward_mean": float(np.mean(np.concatenate(rewards))),
                "reward_std": float(np.std(np.concatenate(rewards))),
            }
            for weights, interval, rewards in zip(self.weights, intervals, self.rewards, strict=True)
        ]
        alone = [place for place, weights in enumerate(self.weights) if weights.domain == 0]
        gain = paired_difference(self.correct_GW[:, best], self.correct_GW[:, alone[0]], self.prompts).as_dict() if alone else None
        return {
            "groups": len(self.correct_GW),
            "pairs": self.n_pairs,
            "prompts": len(set(self.prompts)),
            "accuracy": intervals[best].as_dict(),
            "gain": gain,
            "curve": curve,
        }


def judge(
    weights: Sequence[Shares], write: Callable[[Shares], None], scorer: RewardModel, validation: TrainingSet, progress: Progress
) -> Judged:
    """Score the validation answers with every blend. Only orders are compared, never the rewards of two blends: their scales differ.

    Args:
        weights: The blends.
        write: Makes the scorer's model the blend with such weights.
        scorer: Scores with what was written last.
        validation: Preferences.
        progress: Receives progress.
    """
    groups = [entry.group for entry in validation.groups]
    columns: list[NDArray[np.float64]] = []
    rewards: list[list[tuple[float, ...]]] = []
    for number, one in enumerate(weights):
        progress("domain weights", number, len(weights))
        write(one)
        rewards.append(scorer.score_encoded(groups))
        columns.append(np.array([_in_order(entry, row) for entry, row in zip(validation.groups, rewards[-1], strict=True)]))
    progress("domain weights", len(weights), len(weights))
    n_pairs = sum(len(entry.pairs) for entry in validation.groups)
    return Judged(np.stack(columns, axis=1), [_prompt(group) for group in groups], n_pairs, rewards, list(weights))


def _in_order(entry: TrainingGroup, rewards: Sequence[float]) -> float:
    """Share of a group's pairs that the rewards order as the data does; a tie is half a pair."""
    gaps = [rewards[pair.winner] - rewards[pair.loser] for pair in entry.pairs]
    return float(np.mean([0.5 if gap == 0 else float(gap > 0) for gap in gaps]))


def _prompt(group: EncodedGroup) -> tuple[int, ...]:
    """The tokens before the answers, by which groups of one prompt are known; all tokens that are shared where no prompt is known."""
    return group.conversations[0][: group.answer_starts[0] or group.shared or None]
