"""A run whose language model's head learns beside the reward head (HaF-RM): what it refuses, how it trains, what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, TrainerCallback

from rewardproof.errors import ConfigError
from rewardproof.evaluation import pair_accuracy
from rewardproof.models.language_head import load_language_head
from rewardproof.report import Section, Table
from rewardproof.statistics import Interval
from rewardproof.training.policy_loss import JUDGES, Alternate, PolicyTerm, Said
from rewardproof.training.trainer import PackedRewardModule

if TYPE_CHECKING:
    from rewardproof.stages.member_context import MemberContext
    from rewardproof.stages.train import Train

NAMES = {"reward": "reward head", "implicit": "log-ratio to the reference", "log_prob": "log-probability"}


def check_policy_loss(config: Train) -> None:
    """Refuse what a policy's loss cannot be combined with.

    Raises:
        ConfigError: Names the keys.
    """
    if config.policy_loss is None:
        return
    if config.upcycle is not None:
        raise ConfigError(
            "Got `policy_loss` with `upcycle`, expected one of them: the reference is the dense language model, and the loss has been "
            "worked out for dense training alone. Use recipe haf, or drop policy_loss."
        )
    if config.layers == "top:0":
        raise ConfigError(
            "layers=top:0 with `policy_loss`, expected layers that train: no layer that the reward head reads would "
            "learn from the policy's loss. Write layers=top:1 or more, or drop policy_loss."
        )


def policy_terms(context: MemberContext, model: PreTrainedModel) -> list[PolicyTerm]:
    """The policy's loss for a model that is about to train; nothing where the run has none."""
    config, prepared = context.config, context.prepared
    if config.policy_loss is None:
        return []

    def judge(said: Said) -> Mapping[str, Any]:
        if not prepared.held_out:
            return {}
        found = {name: pair_accuracy(prepared.held_out, said[name]) for name in JUDGES}
        parts = {name: {subset: part.as_dict() for subset, part in report.by_subset.items()} for name, report in found.items()}
        return {"accuracy": {name: {"overall": report.overall.as_dict(), "by_subset": parts[name]} for name, report in found.items()}}

    head = load_language_head(config.model, model, kind=config.policy_loss.lm_head)
    return [PolicyTerm(config.policy_loss, head, label_smoothing=config.loss.label_smoothing, judge=judge)]


def policy_callbacks(config: Train, module: PackedRewardModule) -> list[TrainerCallback]:
    """What lets the two losses take turns, where the settings ask for that."""
    return [Alternate(module, config.policy_loss.alternate)] if config.policy_loss and config.policy_loss.alternate else []


def policy_section(summary: Mapping[str, Any], *, of_whom: str = "") -> Section:
    """Section on how well the two heads of one pass order held-out answers, from what `PolicyTerm` reported."""
    rows = tuple(
        (NAMES[name], _interval(entry["overall"]), *(_interval(part) for part in entry["by_subset"].values()))
        for name, entry in summary["accuracy"].items()
    )
    subsets = next(iter(summary["accuracy"].values()))["by_subset"]
    told = (
        "What a pass over the held-out answers says through the reward head and through the language model's, which is not delivered. The "
        "log-ratio to the model that training started from is the implicit reward of DPO."
    )
    return Section(f"Reward and policy{of_whom}", (told,), table=Table(("answers ordered by", "pair accuracy", *subsets), rows))


def _interval(entry: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if entry[end] is None else entry[end] for end in ("low", "high"))
    return Interval(entry["estimate"], low, high, entry["n"], entry["n_clusters"])
