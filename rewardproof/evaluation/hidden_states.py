"""Are hacked answers told apart by the policy's hidden states? Similarity of answers' mean states, hacked and normal, by evaluation."""

# Shapes: P prompts, K answers to each.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.evaluation.policy_runs import Evaluation
from rewardproof.statistics import KindSimilarity, kind_similarity

HACKED = 0.25
"""Share of an evaluation's answers that are called hacked."""


@dataclass(frozen=True, slots=True)
class StateSimilarity:
    """Similarity of the policy's mean states over answers to different prompts.

    Attributes:
        step: Updates that the policy has had.
        similarity: Within hacked answers (`marked`), within the `others`, and `across`.
    """

    step: int
    similarity: KindSimilarity

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = {"marked": "hacked", "others": "normal", "across": "across"}
        return {"step": self.step, **{name: getattr(self.similarity, kind).as_dict() for kind, name in names.items()}}


def state_similarities(evaluations: Sequence[Evaluation]) -> list[StateSimilarity]:
    """Hacked against normal answers, evaluation by evaluation; empty where states or gold were not kept.

    Hacked are the quarter of an evaluation's answers for which the proxy promises most beyond gold, both in standard deviations of the
    first evaluation's.

    Reference:
        R2M, arXiv:2601.22664, whose own figures are means over answers that were labelled by hand.
    """
    if not evaluations or not {"states", "gold"} <= evaluations[0].rows[0].keys():
        return []
    return [StateSimilarity(one.step, _similarity(one, evaluations[0])) for one in evaluations]


def _similarity(one: Evaluation, first: Evaluation) -> KindSimilarity:
    beyond_PK = one.standardised(first, one.proxies) - one.standardised(first, ["gold"])
    count = max(round(beyond_PK.size * HACKED), 1)
    hacked_N = np.zeros(beyond_PK.size)
    hacked_N[np.argsort(-beyond_PK.ravel(), kind="stable")[:count]] = 1
    prompts = [prompt for prompt in one.prompts for _ in range(beyond_PK.shape[1])]
    return kind_similarity(one.table("states").reshape(beyond_PK.size, -1), hacked_N, prompts)
