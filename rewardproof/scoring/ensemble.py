"""An ensemble of reward models as one scorer, and as a directory: `ensemble.yaml` names its members, their units, and how they combine.

Reference:
    Coste et al., Reward Model Ensembles Help Mitigate Overoptimization, arXiv:2310.02743.
"""

# M members, N answers of a group.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rewardproof.artifacts import write_whole
from rewardproof.config import Section, dump_yaml, load_yaml, parse
from rewardproof.data.group import Group
from rewardproof.errors import CheckpointError, ConfigError, EvaluationError
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring.combination import Combination, Floats, Scale, combine, disagreement
from rewardproof.scoring.scorer import Scorer

ENSEMBLE_FILE = "ensemble.yaml"


class Combine(Section):
    """How members become one score."""

    combination: Combination = "uncertainty"
    """`mean`; `worst_case` (WCO), the lowest member's; or `uncertainty` (UWO), the mean less `penalty` times the members' variance."""
    penalty: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the variance under `uncertainty`; the published value for best-of-n."""


class MemberEntry(Section):
    """One member and its units."""

    model: str
    """A directory, taken from the ensemble's own where it is relative, or a hub id."""
    mean: float
    """Its mean reward over the reference answers."""
    std: Annotated[float, Field(gt=0)]
    """Its standard deviation over them."""


class EnsembleFile(Section):
    """What `ensemble.yaml` says."""

    combine: Combine = Combine()
    """How the members combine."""
    members: Annotated[tuple[MemberEntry, ...], Field(min_length=1)]
    """The members."""
    reference: str = ""
    """What the reference answers were."""


class Ensemble:
    """Scorers that judge together, each in units of its own spread over the same reference answers; a `Scorer`."""

    def __init__(self, members: Mapping[str, Scorer], scales: Mapping[str, Scale], how: Combine | None = None) -> None:
        """Join members.

        Args:
            members: Scorers by name.
            scales: Their units, by the same names.
            how: How they combine.

        Raises:
            ConfigError: There are no members, or names differ.
        """
        if not members or set(members) != set(scales):
            raise ConfigError(
                f"Got members {', '.join(members) or 'none'} and scales of {', '.join(scales) or 'none'}, expected at least one member and "
                "the scale of each: scores in different units cannot be combined. Measure each on the same answers with Scale.of."
            )
        self.members = dict(members)
        self.scales = dict(scales)
        self.how = how or Combine()

    @classmethod
    def measured(cls, members: Mapping[str, Scorer], reference: Sequence[Group], how: Combine | None = None) -> Ensemble:
        """Join members whose units are measured on reference answers.

        Raises:
            EvaluationError: A member gives all of them the same score.
        """
        return cls(members, {name: Scale.of(member.score(reference), name=name) for name, member in members.items()}, how)

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32") -> Ensemble:
        """Load the ensemble that a directory describes, all members at once.

        Raises:
            CheckpointError: There is no `ensemble.yaml`.
            ConfigError: It says something else than an ensemble.
        """
        file = Path(path) / ENSEMBLE_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{path} has no {ENSEMBLE_FILE}, expected the directory of an ensemble; train one with `rewardproof train ensemble`."
            )
        found = parse(EnsembleFile, load_yaml(file.read_text(), origin=str(file)))
        places = {str(number): _place(file.parent, entry.model) for number, entry in enumerate(found.members)}
        members = {name: RewardModel.load(place, precision=precision) for name, place in places.items()}
        scales = {str(number): Scale(entry.mean, entry.std) for number, entry in enumerate(found.members)}
        return cls(members, scales, found.combine)

    def save(self, path: str | Path, models: Mapping[str, str], *, reference: str = "") -> Path:
        """Write `ensemble.yaml`; the members' own directories stay where they are.

        Args:
            path: The ensemble's directory.
            models: Where each member is, by name; relative paths are taken from `path`.
            reference: What the reference answers were.
        """
        entries = tuple(MemberEntry(model=models[name], mean=scale.mean, std=scale.std) for name, scale in self.scales.items())
        target = Path(path) / ENSEMBLE_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, dump_yaml(EnsembleFile(combine=self.how, members=entries, reference=reference)))
        return target

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """The combined score of every answer of every group, in units of one member's spread.

        Args:
            groups: Groups of any size.
            context: Handed on to the members.

        Raises:
            EvaluationError: A member gives another number of scores than there are answers.
        """
        return [tuple(combine(scores_MN, self.how.combination, penalty=self.how.penalty)) for scores_MN in self.by_member(groups, context)]

    def disagreement(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Variance of the members' scores for every answer of every group."""
        return [tuple(disagreement(scores_MN)) for scores_MN in self.by_member(groups, context)]

    def by_member(self, groups: Sequence[Group], context: object = None) -> list[Floats]:
        """Every member's score of every answer, in its own units, one array `(M, N)` a group."""
        columns: list[list[Floats]] = [[] for _ in groups]
        for name, member in self.members.items():
            scores = member.score(groups, context)
            sizes, expected = [len(row) for row in scores], [len(group.answers) for group in groups]
            if sizes != expected:
                raise EvaluationError(
                    f"Member {name} gave {sum(sizes)} scores in {len(sizes)} groups, expected {sum(expected)} in {len(expected)}: one an "
                    "answer, in order. Correct that scorer."
                )
            for column, row in zip(columns, scores, strict=True):
                column.append(self.scales[name].standardised(row))
        return [np.stack(column) for column in columns]


def _place(folder: Path, model: str) -> str:
    """Where a member is: beside the ensemble where it names a folder there, else as it stands, which may be a hub id."""
    beside = folder / model
    return str(beside) if beside.exists() else model
