"""What a word on the command line means as a scorer: a directory, an ensemble's directory, a hub id, an address, a program, a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewardproof.data.group import Group
from rewardproof.errors import DataError
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring.gold import CheckableGold
from rewardproof.scoring.model_ensemble import ENSEMBLE_FILE, ModelEnsemble
from rewardproof.scoring.remote import RemoteScorer
from rewardproof.scoring.scorer import Scorer

CHECKABLE = "embedded:checkable"
GIVEN = "scores"


AnyModel = RewardModel | ModelEnsemble
"""What verbs that read text take for a model: both encode groups and score them encoded."""


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
        spec: `embedded:checkable`; `scores`, those of the data; `http://…` or `https://…`; the directory of an ensemble or of a reward
            model; or a hub id.
        precision: Of reward models.
    """
    if spec == CHECKABLE:
        return CheckableGold()
    if spec == GIVEN:
        return GivenScores()
    if spec.startswith(("http://", "https://")):
        return RemoteScorer(spec)
    return load_model(spec, precision=precision)


def load_model(spec: str, *, precision: Precision = "fp32") -> AnyModel:
    """The reward model, or the ensemble of them, in a directory or under a hub id."""
    if (Path(spec) / ENSEMBLE_FILE).is_file():
        return ModelEnsemble.load(spec, precision=precision)
    return RewardModel.load(spec, precision=precision)
