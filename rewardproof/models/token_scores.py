"""An answer's score as it is read, token by token: what the reward head says at every position of one pass."""

# C conversations of a stream, L answer tokens and what the template writes after them, A an answer's own tokens.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.group import Group
from rewardproof.data.offsets import Places, Read, characters_read
from rewardproof.data.packing import PackedBatch
from rewardproof.models.packed import PackedRewards, head_rewards

Readings = NDArray[np.float64]
"""The head one position before a conversation's answer, and at each token from there on, shape `(L + 1,)`."""


@torch.inference_mode()
def read_stream(model: PreTrainedModel, output: PackedRewards, batch: PackedBatch) -> list[Readings]:
    """Readings of a stream's conversations out of a pass that kept the states of all tokens.

    The head computes in full precision also where the pass did not: readings are subtracted.
    """
    assert output.states_TD is not None
    with torch.autocast(output.states_TD.device.type, enabled=False):
        before_L, last_C = (
            head_rewards(model, output.states_TD[places]).double().cpu() for places in (batch.logit_index_L, batch.end_index_C)
        )
    counts = torch.bincount(batch.target_conversation_L, minlength=len(last_C)).tolist()
    return [torch.cat((part, last[None])).numpy() for part, last in zip(before_L.split(counts), last_C, strict=True)]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of one answer as it is read.

    Attributes:
        before: Score of the prompt, at the last token before any of the answer's characters; where nothing precedes the answer, that of its
            first token.
        reached_A: What the head says at each token that has some of the answer's characters.
        score: The answer's score, which `score` gives too: at the end of what the template writes after it.
        ends_A: Characters of the answer's text up to each of these tokens' ends.
        located: Whether the answer's characters could be followed; where its template rewrites it they cannot, and A is 0.
    """

    before: float
    reached_A: Readings
    score: float
    ends_A: Places
    located: bool = True

    @property
    def scores_A(self) -> Readings:
        """Score after each token, the last one the answer's whole: what the template writes after an answer belongs to its last token."""
        scores_A = self.reached_A.copy()
        scores_A[-1:] = self.score
        return scores_A


def token_scores(
    groups: Sequence[Group], encoded: Sequence[EncodedGroup], tokenizer: PreTrainedTokenizerBase, readings: Sequence[Sequence[Readings]]
) -> list[tuple[TokenScores, ...]]:
    """Readings of encoded groups as scores of their answers' tokens.

    Raises:
        ModelError: The tokenizer cannot say which characters its tokens stand for.
    """
    return [
        tuple(
            _of_answer(characters_read(group, answer, tokens, tokenizer), start, found)
            for answer, tokens, start, found in zip(group.answers, own.conversations, own.answer_starts, rows, strict=True)
        )
        for group, own, rows in zip(groups, encoded, readings, strict=True)
    ]


def _of_answer(read: Read | None, start: int, readings: Readings) -> TokenScores:
    whole = float(readings[-1])
    own = [] if read is None else np.flatnonzero(read.before_N < read.after_N)
    if read is None or not len(own):
        return TokenScores(float(readings[0]), readings[:0], whole, np.zeros(0, dtype=np.intp), located=read is not None)
    first = max(start, 1) - 1  # the token whose reading comes first
    begin, end = max(int(own[0]), start), int(own[-1]) + 1
    return TokenScores(float(readings[max(begin - first - 1, 0)]), readings[begin - first : end - first], whole, read.after_N[begin:end])
