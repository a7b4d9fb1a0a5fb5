"""Where a policy's rewards come from: streams of rewards, one number a token, and what may be learnt between two updates."""

# B answers, T tokens of the longest, S streams.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardproof.errors import EvaluationError
from rewardproof.policy.redistribution import Redistributor
from rewardproof.policy.rollouts import Rollouts
from rewardproof.scoring import Scale, Scorer, reads_tokens, score_and_disagreement, tokens_and_disagreement

DISAGREEMENT = "ensemble/disagreement"
"""What the log calls how far an ensemble's members are apart."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When rewards are asked for, and what may be known of the policy then.

    Attributes:
        step: Update that the answers are for, counted from 0.
        steps: Updates of the whole run.
        policy_states: Gives the policy's final hidden states of every conversation, prompt and answer, `(tokens, D)` each. `rewards` is
            given those of the policy that sampled, `learn` those of the update's last epoch; where the source does not say that it
            `reads_states`, they are the policy's as it is when they are asked for, and cost a pass.
        samples: Gives answers of the policy, as it is when they are asked for, to so many training prompts of all processes together;
            absent where a policy is judged and nothing may learn.
    """

    step: int
    steps: int
    policy_states: Callable[[], Sequence[Tensor]]
    samples: Callable[[int], Rollouts] | None = None


class RewardSource(Protocol):
    """Gives the on-policy loop its rewards. A reward model that learns, constraints and token-level rewards all enter here."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the streams, each with a value head of its own under PPO."""
        ...

    @property
    def reads_states(self) -> bool:
        """Whether it asks for the policy's states, which the loop then keeps of passes that it makes anyway."""
        ...

    def rewards(self, rollouts: Rollouts, moment: Moment) -> Tensor:
        """Reward of every token in every stream, shape `(S, B, T)`; an answer's own stands at its last token."""
        ...

    def weights(self) -> Sequence[float]:
        """With what weight each stream's advantage counts, in the order of `names`; one more is that of the penalty, else 1."""
        ...

    def learn(self, rollouts: Rollouts, rewards_SBT: Tensor, moment: Moment) -> Mapping[str, float]:
        """What it takes from answers that have been judged, after the policy's update; gives numbers for the log."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What `learn` has changed, for a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        ...


class ScoredAnswers:
    """Scorers as they are, one stream each, in units of their spread over the initial policy's answers."""

    reads_states = False

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        scales: Mapping[str, Scale],
        *,
        weights: Sequence[float] = (),
        cut_penalty: float = 0.0,
        limit: float = 0.0,
        redistributor: Redistributor | None = None,
    ) -> None:
        """Judge answers by scorers.

        Args:
            scorers: By the name of their stream.
            scales: Zero and unit of each.
            weights: Of the streams; 1 each where left out.
            cut_penalty: Subtracted in the first stream, in units, where an answer was cut before it ended by itself.
            limit: Largest absolute reward, in units; 0 for none.
            redistributor: Spreads rewards over the tokens; all scorers can then say how their scores grow.
        """
        self.scorers = dict(scorers)
        self.scales = dict(scales)
        self.cut_penalty = cut_penalty
        self.limit = limit
        self.redistributor = redistributor
        self._weights = tuple(weights) or (1.0,) * len(scorers)
        self._apart: list[float] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers' names."""
        return tuple(self.scorers)

    def rewards(self, rollouts: Rollouts, moment: Moment) -> Tensor:
        """Each answer's score at its last token, or spread over its tokens."""
        tables: list[Tensor] = []
        self._apart = []
        for name, scorer in self.scorers.items():
            if self.redistributor is None:
                table_BT = self._at_end(name, scorer, rollouts, moment)
            else:
                table_BT = self._spread(self.redistributor, name, rollouts, moment)
            if not tables:
                table_BT = table_BT - rollouts.at_end(self.cut_penalty * ~rollouts.finished_B)
            tables.append(table_BT.float())
        return torch.stack(tables)

    def _at_end(self, name: str, scorer: Scorer, rollouts: Rollouts, moment: Moment) -> Tensor:
        found, apart = score_and_disagreement(scorer, rollouts.groups, moment)
        self._apart += [] if apart is None else [apart]
        reward_B = torch.from_numpy(self.scales[name].standardised(_checked(found, rollouts, name=name)))
        return rollouts.at_end(reward_B.clamp(-self.limit, self.limit) if self.limit else reward_B)

    def _spread(self, redistributor: Redistributor, name: str, rollouts: Rollouts, moment: Moment) -> Tensor:
        scorer = self.scorers[name]
        assert reads_tokens(scorer)  # `refuse_others` has refused what is none
        found, apart = tokens_and_disagreement(scorer, rollouts.groups, moment)
        self._apart += [] if apart is None else [apart]
        _checked([[one.score for one in row] for row in found], rollouts, name=name)
        return redistributor.rewards([one for row in found for one in row], rollouts, self.scales[name], limit=self.limit)

    def weights(self) -> Sequence[float]:
        """As they were given."""
        return self._weights

    def learn(self, rollouts: Rollouts, rewards_SBT: Tensor, moment: Moment) -> Mapping[str, float]:
        """Nothing, since these scorers do not change; tells how far ensembles' members were apart, and how rewards were spread."""
        told = {} if self.redistributor is None else self.redistributor.told()
        return {**({DISAGREEMENT: float(np.mean(self._apart))} if self._apart else {}), **told}

    def state(self) -> Mapping[str, Any]:
        """Empty."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


def raw_scores(scorer: Scorer, rollouts: Rollouts, moment: Moment, *, name: str) -> NDArray[np.float64]:
    """Every answer's score, shape `(B,)`.

    Raises:
        EvaluationError: A score is missing or not finite.
    """
    return _checked(scorer.score(rollouts.groups, context=moment), rollouts, name=name)


def _checked(found: Sequence[Sequence[float]], rollouts: Rollouts, *, name: str) -> NDArray[np.float64]:
    counts = [len(group.answers) for group in rollouts.groups]
    if [len(row) for row in found] != counts:
        raise EvaluationError(
            f"{name} gave {[len(row) for row in found]} scores, expected {counts}, one for each answer; without them the policy cannot be "
            "updated. Correct the scorer."
        )
    flat_B = np.array([value for row in found for value in row], dtype=np.float64)
    if not np.isfinite(flat_B).all():
        place = int(np.flatnonzero(~np.isfinite(flat_B))[0])
        raise EvaluationError(
            f"{name} gave answer {place} of {len(flat_B)} the score {flat_B[place]}, expected a finite number: a policy would break on "
            "it. Correct the scorer."
        )
    return flat_B
