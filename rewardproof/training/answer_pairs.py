"""Pairs of answers as a language model sees them: log-probabilities, those under the reference, lengths; and losses of doubtful labels."""

# C conversations of a stream, P ordered pairs.
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rewardproof.data.packing import PackedBatch
from rewardproof.losses import log_ratio_gap
from rewardproof.training.objective import PairIndex
from rewardproof.training.reference import answer_lengths


class Answers(NamedTuple):
    """One answer of each pair: log-probabilities summed over its tokens, the same under the reference, and how many tokens."""

    log_prob_P: Tensor
    reference_P: Tensor
    length_P: Tensor

    @property
    def log_ratio_P(self) -> Tensor:
        """Log-ratio to the reference, in nats."""
        return self.log_prob_P - self.reference_P


class AnswerPairs(NamedTuple):
    """The preferred answers of a stream's ordered pairs, and the others."""

    chosen: Answers
    rejected: Answers

    @classmethod
    def of(cls, log_prob_C: Tensor, reference_C: Tensor, batch: PackedBatch, index: PairIndex) -> AnswerPairs:
        """Those of a packed batch, out of what is known of its conversations."""
        length_C = torch.tensor(answer_lengths(batch), device=log_prob_C.device)
        reference_C = reference_C.to(log_prob_C)
        sides = ((log_prob_C[places_P], reference_C[places_P], length_C[places_P]) for places_P in (index.winner_P, index.loser_P))
        return cls(*(Answers(*side) for side in sides))


PolicyForm = Callable[[Answers, Answers], Tensor]
"""The preferred answers and the others, to one loss a pair, `(P,)`."""


def gap_of(chosen: Answers, rejected: Answers) -> Tensor:
    """How much further the preferred answers' log-ratio to the reference is up than the others', in nats, shape `(P,)`."""
    return log_ratio_gap(chosen.log_prob_P, rejected.log_prob_P, chosen.reference_P, rejected.reference_P)


def doubted(form: PolicyForm, pairs: AnswerPairs, doubt_P: Tensor) -> Tensor:
    """Losses where a pair's label is wrong with some probability: both orders count, each as likely as it is."""
    losses_P = form(pairs.chosen, pairs.rejected)
    if not bool(doubt_P.any()):
        return losses_P
    return (1 - doubt_P) * losses_P + doubt_P * form(pairs.rejected, pairs.chosen)


def wins(gap_P: Tensor) -> Tensor:
    """1 where the preferred answer is ahead, a half where neither is."""
    return (gap_P > 0).float() + 0.5 * (gap_P == 0).float()
