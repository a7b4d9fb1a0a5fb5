"""Folding a mixture on data: its routing measured, its coefficients found, and what folding changes on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewardproof.artifacts import Progress
from rewardproof.data import Group
from rewardproof.evaluation import pair_accuracy
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import Merge, RoutingMass, measure_routing, merge_experts
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import group_key
from rewardproof.training.batches import TrainingSet
from rewardproof.training.coefficients import LearnedCoefficients, find_coefficients
from rewardproof.training.fit import Compute
from rewardproof.training.preparation import Prepared

ROUTING_GROUPS = 256
"""Training groups on which the routing of a mixture that is not merged is measured."""


def routing_masses(mixture: RewardModel, groups: TrainingSet, *, limit: int = ROUTING_GROUPS) -> dict[int, RoutingMass]:
    """Mean mixing weights by layer on some of the groups, chosen by a hash of their tokens."""
    sample = sorted((entry.group for entry in groups.groups), key=group_key)[:limit]
    return measure_routing(mixture, sample)


def routing_summary(masses: Mapping[int, RoutingMass]) -> dict[str, Any]:
    """Weights, load and entropy by layer, for the report."""
    return {str(layer): {"weights": mass.weights_E, "load": mass.load_n, "entropy": mass.entropy} for layer, mass in masses.items()}


@dataclass(frozen=True, slots=True)
class WeighedExperts:
    """What was found on data about a mixture that is still to be folded.

    Attributes:
        by_layer: Coefficients by layer, shape `(E,)` each.
        rewards: The mixture's rewards of the held-out groups.
        summary: Method, coefficients, learning and routing, for the report.
    """

    by_layer: dict[int, torch.Tensor]
    rewards: list[tuple[float, ...]]
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Weighing:
    """What weighing the experts of a mixture takes.

    Attributes:
        settings: Method, λ, steps.
        prepared: The data: routing is measured on its training groups, coefficients are learned on the parts kept from the experts.
        compute: Precision, budgets, cache.
        folder: Where the trainer may write.
        seed: Of the data order.
        record: Receives log records.
        progress: Receives progress.
    """

    settings: Merge
    prepared: Prepared
    compute: Compute
    folder: Path
    seed: int
    record: Callable[[Mapping[str, Any]], None]
    progress: Progress


def weigh_experts(mixture: RewardModel, work: Weighing) -> WeighedExperts:
    """Measure a mixture's routing, find its coefficients and score the held-out groups; the mixture is left as it is."""
    settings, prepared = work.settings, work.prepared
    masses = routing_masses(mixture, prepared.train, limit=settings.routing_groups)
    rewards = mixture.score_encoded(prepared.held_out_tokens)
    found = find_coefficients(
        mixture.model,
        masses,
        settings,
        sets=(prepared.merge_fit, prepared.merge_stop),
        compute=work.compute,
        folder=work.folder,
        seed=work.seed,
        record=work.record,
        progress=work.progress,
    )
    learning, routing = _learning_summary(found), routing_summary(masses)
    return WeighedExperts(
        found.by_layer, rewards, {**coefficients_summary(settings, found.by_layer), "learning": learning, "routing": routing}
    )


def coefficients_summary(settings: Merge, by_layer: Mapping[int, torch.Tensor]) -> dict[str, Any]:
    """Method and coefficients, for the report."""
    return {"method": settings.method, "coefficients": {str(layer): coefficients_E for layer, coefficients_E in by_layer.items()}}


def merge_mixture(mixture: RewardModel, work: Weighing) -> dict[str, Any]:
    """Fold a mixture into its dense form, in place, and report what that changed.

    Returns:
        Coefficients, routing, divergence of the experts, and how the merged model's rewards relate to the mixture's on held-out pairs.
    """
    divergence = expert_divergence(mixture.model)
    found = weigh_experts(mixture, work)
    merge_experts(mixture.model, found.by_layer)
    after = mixture.score_encoded(work.prepared.held_out_tokens)
    return found.summary | {"divergence": divergence, "held_out": compare_rewards(work.prepared.held_out, found.rewards, after)}


def _learning_summary(found: LearnedCoefficients) -> dict[str, Any]:
    return {
        "steps": found.steps,
        "best_step": found.best_step,
        "loss_before": found.loss_before,
        "loss_after": found.loss_after,
        "seconds": round(found.seconds, 1),
        "tokens": found.tokens,
        "tflops": float(f"{found.tflops:.4g}"),
    }


def compare_rewards(
    groups: Sequence[Group], before: Sequence[tuple[float, ...]], after: Sequence[tuple[float, ...]]
) -> dict[str, Any] | None:
    """How the merged model's rewards relate to the mixture's; `None` without groups."""
    if not groups:
        return None
    mixture, merged = np.concatenate([np.asarray(row) for row in before]), np.concatenate([np.asarray(row) for row in after])
    return {
        "correlation": float(np.corrcoef(mixture, merged)[0, 1]) if mixture.std() > 0 and merged.std() > 0 else None,
        "mixture_accuracy": pair_accuracy(groups, before).overall.as_dict(),
        "merged_accuracy": pair_accuracy(groups, after).overall.as_dict(),
        "mixture_reward_std": float(mixture.std()),
        "merged_reward_std": float(merged.std()),
    }
