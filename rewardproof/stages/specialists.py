"""What a run reports of its experts as specialists: how far they parted, which prompts they get, and what each says alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from rewardproof.evaluation import pair_accuracy
from rewardproof.merging.specialisation import alone, parting, regime_information, smallest_correlation, weights_by_group
from rewardproof.models.families import Weights
from rewardproof.models.trunk import group_key
from rewardproof.models.upcycling import moe_blocks

if TYPE_CHECKING:
    from rewardproof.stages.member_context import MemberContext

ASKED_GROUPS = 160
"""Held-out groups, chosen by a hash of their tokens, that every expert scores alone, and whose routes are compared with their subsets."""


def specialisation_summary(context: MemberContext, model: PreTrainedModel, start: Mapping[int, Weights]) -> dict[str, Any]:
    """How far the experts of a trained mixture parted, in weights, in the prompts that they get, and in what they say.

    Args:
        context: The run, whose held-out groups are asked.
        model: The mixture.
        start: Feed-forward weights of the dense model that it was upcycled from, by layer.

    Returns:
        `parted` and `moved` by layer and routed expert, see `Parting`; where groups are held out `alone`: accuracy of each routed
        expert alone and the smallest correlation of their rewards; where they are of several subsets `regime_information` by layer.
    """
    found = parting(model, start)
    summary: dict[str, Any] = {
        "parted": {str(layer): entry.apart for layer, entry in found.items()},
        "moved": {str(layer): entry.moved for layer, entry in found.items()},
    }
    everything = zip(context.prepared.held_out, context.prepared.held_out_tokens, strict=True)
    asked = sorted(everything, key=lambda entry: group_key(entry[1]))[:ASKED_GROUPS]
    if not asked:
        return summary
    groups, encoded = [group for group, _ in asked], [tokens for _, tokens in asked]
    scorer = context.reward_model(model)
    n_routed_experts = next(iter(moe_blocks(model).values())).experts.n_experts - 1
    said = []
    for number in range(n_routed_experts):
        with alone(model, number):
            said.append(scorer.score_encoded(encoded))
    accuracy = [pair_accuracy(groups, rewards).overall.as_dict() for rewards in said]
    flat = np.array([[value for row in rewards for value in row] for rewards in said])
    summary["alone"] = {"accuracy": accuracy, "smallest_correlation": smallest_correlation(flat)}
    regimes = [group.subset for group in groups]
    weights = weights_by_group(scorer, encoded)
    information = regime_information(weights, regimes)
    if not information:
        return summary
    summary["regime_information"] = {str(layer): share for layer, share in information.items()}
    summary["regime_weights"] = {
        regime: {str(layer): weights_GE[[name == regime for name in regimes]].mean(dim=0) for layer, weights_GE in weights.items()}
        for regime in sorted(set(regimes))
    }
    return summary
