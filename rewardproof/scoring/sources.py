"""What a word on the command line means as a scorer: a directory, an ensemble's directory, a hub id, an address, a program, a column."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rewardproof.data.group import Group
from rewardproof.errors import DataError
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring.activation import ACTIVATION_FILE, ActivationRewardModel
from rewardproof.scoring.double_mixture import DoubleMixture
from rewardproof.scoring.gold import CertifiedByRule, CheckableFamily, CheckableGold
from rewardproof.scoring.implicit import Implicit, ImplicitReward
from rewardproof.scoring.model_ensemble import ENSEMBLE_FILE, ModelEnsemble, load_member
from rewardproof.scoring.remote import RemoteScorer
from rewardproof.scoring.scorer import Scorer

CHECKABLE = "embedded:checkable"
GIVEN = "scores"
RULE = "rule:"
TOKEN = "REWARDPROOF_TOKEN"
"""Environment variable of the bearer token, for a server and those who ask it."""
_SEED_IN_NAME = re.compile(r"^(?P<method>.+?)[-_.](?:seed)?\d+$")


AnyModel = RewardModel | DoubleMixture | ModelEnsemble | ActivationRewardModel
"""What verbs that read text take for a model: all encode groups and score them encoded."""
Judge = AnyModel | ImplicitReward
"""The same, or a policy with its reference."""


class GivenScores:
    """The scores that came with the answers."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """The groups' own scores.

        Raises:
            DataError: A group has none.
        """
        for group in groups:
            if group.scores is None:
                raise DataError(
                    f"{group.origin or group.id}: got answers without scores, expected a score for each, which `scores` stands for. Give "
                    "data with scores, or another scorer."
                )
        return [group.scores or () for group in groups]


def load_scorer(spec: str, *, precision: Precision = "fp32") -> Scorer:
    """The scorer that a word names.

    Args:
        spec: `embedded:checkable`, or `embedded:checkable/FAMILY` for one family of its rules; `rule:NAME`, 1 for what a rule certifies as
            right; `scores`, those of the data; `http://…` or `https://…`; the directory of an ensemble, a DMoERM, an activation reward
            model or a reward model; or a hub id.
        precision: Of reward models.
    """
    if spec == CHECKABLE:
        return CheckableGold()
    if spec.startswith(f"{CHECKABLE}/"):
        return CheckableFamily(spec.removeprefix(f"{CHECKABLE}/"))
    if spec == GIVEN:
        return GivenScores()
    if spec.startswith(RULE):
        return CertifiedByRule(spec.removeprefix(RULE))
    if spec.startswith(("http://", "https://")):
        return RemoteScorer(spec, token=os.environ.get(TOKEN, ""))
    return load_model(spec, precision=precision)


def load_model(spec: str, *, precision: Precision = "fp32") -> AnyModel:
    """The reward model, DMoERM, activation reward model or ensemble in a directory, or the reward model under a hub id."""
    if (Path(spec) / ENSEMBLE_FILE).is_file():
        return ModelEnsemble.load(spec, precision=precision)
    if (Path(spec) / ACTIVATION_FILE).is_file():
        return ActivationRewardModel.load(spec, precision=precision)
    return load_member(spec, precision=precision)


def load_judge(spec: str, implicit: Implicit | None, *, precision: Precision = "fp32") -> Judge:
    """What `load_model` gives, or where `implicit` says so the reward that the policy of this name implies."""
    return load_model(spec, precision=precision) if implicit is None else ImplicitReward.load(spec, implicit, precision=precision)


def method_names(models: Sequence[str]) -> list[str]:
    """What to call models by their paths: the run's directory, less the number of a training seed.

    Example:
        >>> method_names(["runs/dense-0/model", "runs/dense-1/model", "runs/umm/3/model", "runs/umm/moe", "org/name"])
        ['dense', 'dense', 'umm', 'umm (moe)', 'name']
    """
    found: list[str] = []
    for spec in models:
        parts = [part for part in Path(spec).parts if part not in ("/", ".", "..")] or [spec]
        last = parts.pop() if len(parts) > 1 and parts[-1] in ("model", "moe") else ""
        while len(parts) > 1 and parts[-1].isdigit():
            parts.pop()
        match = _SEED_IN_NAME.match(parts[-1])
        found.append((match["method"] if match else parts[-1]) + (" (moe)" if last == "moe" else ""))
    return found


def stream_names(specs: Sequence[str]) -> list[str]:
    """A name for each of several scorers, no two alike.

    Example:
        >>> stream_names(["runs/umm/model", "runs/umm-2/model", "embedded:checkable"])
        ['umm', 'umm 2', 'embedded:checkable']
    """
    names = method_names(specs)
    return [name if name not in names[:place] else f"{name} {names[: place + 1].count(name)}" for place, name in enumerate(names)]
