"""A run that trains a verifier (VerifyRM): what it refuses, and how often its verdicts are the rule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardproof.data import Group
from rewardproof.data.rules import checker_of
from rewardproof.errors import ConfigError
from rewardproof.report import Section, Table, format_interval
from rewardproof.statistics import Interval, cluster_bootstrap
from rewardproof.training.objective import Loss

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

PARTS = ("overall", "right", "wrong")


PAIR_SETTINGS = ("pair", "margin", "label_smoothing", "temperature", "centering")
"""Keys of the objective that are of the loss of pairs."""


def check_rule(config: Train) -> None:
    """Refuse what verdicts cannot be combined with.

    Raises:
        ConfigError: Names the keys.
    """
    if config.rule is None:
        return
    checker_of(config.rule)
    learnt_from_pairs = {
        "upcycle": config.upcycle is not None,
        "capabilities": config.capabilities is not None,
        "policy_loss": config.policy_loss is not None,
        "contrast": config.contrast is not None,
        "scenarios": config.scenarios is not None,
        "domain": config.domain is not None,
        "head.init=probe": config.head.init == "probe",
        "loss.language": config.loss.language > 0,
        "loss.bsr": config.loss.bsr > 0,
        **{f"loss.{name}": getattr(config.loss, name) != getattr(Loss(), name) for name in PAIR_SETTINGS},
        "read.label_noise": config.read.label_noise > 0,
        "read.strength": config.read.strength.treatment != "none",
    }
    for name, there in learnt_from_pairs.items():
        if there:
            raise ConfigError(
                f"Got `rule` with {name}, expected one of them: verdicts are learned from single answers, {name} from the order of two. "
                f"Use recipe verifier without {name}, or drop rule."
            )


def verdict_accuracy(groups: Sequence[Group], rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
    """For `report.json`: the share of answers whose logit has the sign that the rule gave them, and of those of either label."""
    rows = [
        (group.prompt_key, label, float((logit > 0) == (label > 0)))
        for group, row in zip(groups, rewards, strict=True)
        for label, logit in zip(group.scores or (), row, strict=True)
    ]
    found: dict[str, Interval] = {}
    for name, labels in zip(PARTS, ((0.0, 1.0), (1.0,), (0.0,)), strict=True):
        part = [(key, hit) for key, label, hit in rows if label in labels]
        if part:
            found[name] = cluster_bootstrap(np.array([hit for _, hit in part]), [key for key, _ in part])
    return {"verdicts": {name: interval.as_dict() for name, interval in found.items()}}


def verdict_headline(results: Mapping[str, Any]) -> str:
    """The verdicts' accuracy, where there is one, before what else a headline says."""
    if not results:
        return ""
    overall = Interval(**results["verdicts"]["overall"])
    return f"verdicts {format_interval(overall)} right on {overall.n} answers, "


def verdict_sections(results: Mapping[str, Any]) -> list[Section]:
    """How often the model says what the rule says of held-out answers."""
    if not results.get("verdicts"):
        return []
    names = {"overall": "all", "right": "right by the rule", "wrong": "wrong by the rule"}
    rows = tuple((names[name], format_interval(Interval(**entry)), entry["n"]) for name, entry in results["verdicts"].items())
    told = "A logit above 0 is the verdict right. Where most answers are wrong, one who always says so is mostly right: read the parts."
    return [Section("Verdicts", (told,), table=Table(("held-out answers", "verdict as the rule's", "answers"), rows))]
