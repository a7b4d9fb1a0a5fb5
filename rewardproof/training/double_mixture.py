"""The data of DMoERM's phases: what the router, a category's first model, its experts and the network over them train on.

Every part is a hash of the prompt's text: no prompt is in two of validation, `base` and `mix`, whatever the order of rows or the seed of a
training run.
"""

# C conversations, V categories.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from rewardproof.config import Section
from rewardproof.data import Group, split_position, split_salt
from rewardproof.data.encoding import EncodedGroup, Reads
from rewardproof.data.pairs import Pair
from rewardproof.errors import DataError
from rewardproof.models.double_mixture import query_group
from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream, TrainingGroup, TrainingSet, keep_paired
from rewardproof.training.preparation import Prepared

Phase = Literal["router", "base", "experts", "mixer"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Part = Literal["validation", "base", "mix"]


class Capabilities(Section):
    """A router over categories, an expert a capability point, and a network over the experts of a category (DMoERM)."""

    reads: Reads = "conversation"
    """What the reward reads: the whole conversation, or only the user's last turn and the answer. The router reads all the user's turns."""
    base_share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Fraction of a category's prompts for its first model; the network over the experts learns on the others."""
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Fraction of the training prompts that no phase trains on, by whose loss each keeps its best state; 0 keeps the last."""
    min_validation: Annotated[int, Field(ge=1)] = 20
    """Pairs, prompts for the router, that a phase needs to choose its best state by: fewer choose by chance, and the last state is kept."""
    patience: Annotated[int, Field(ge=1)] = 20
    """Evaluations without a lower loss on those that end a phase."""
    points_on: Literal["base", "all"] = "base"
    """Prompts that the experts learn on: those of the first model, so that the network meets none that they have seen, or all."""
    min_pairs: Annotated[int, Field(ge=1)] = 20
    """Pairs that a part of a category, or a capability point, needs to be learned from."""
    small: Literal["fail", "fallback"] = "fail"
    """What happens where there are fewer: stop; or leave the point out, and let a category without experts be judged by one model of all
    categories."""
    router_layers: str = ""
    """Layers of the router that train, `all` or `top:K`; empty are those of `layers`. `top:0` is a linear probe on frozen states."""
    lora: dict[str, Any] = Field(default_factory=dict)
    """Settings for the experts' `LoraConfig` that differ from r 32, alpha 32, dropout 0.05 on queries and values."""
    trainer: dict[Phase, dict[str, Any]] = Field(default_factory=dict)
    """Settings of `trainer` that differ while the `router`, the `base` models, the `experts` or the `mixer` over them train."""
    calibrate: bool = True
    """Rewards in units of their category's own spread about its mean over training answers; else in units that differ by category."""
    baseline: bool = True
    """Also train one model a category on all that its experts and their network get to see, to compare with; it is not delivered."""

    def trainer_of(self, phase: Phase, run: Mapping[str, Any]) -> dict[str, Any]:
        """The `trainer` settings of a phase: those of the run, and over them its own."""
        return {**run, **self.trainer.get(phase, {})}


class QueryLabels(AuxiliaryTerm):
    """Cross-entropy of the head's logits against the categories of a stream's prompts."""

    def __init__(self, head: nn.Module, label_of: Mapping[int, int]) -> None:
        """Take the model's head, and the category of a group by its index."""
        super().__init__()
        self.head = head
        self.label_of = dict(label_of)

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The loss, summed over the stream's queries."""
        logits_CV = self.head(output.states_CD.to(next(self.head.parameters()).dtype)).float()
        labels_C = torch.tensor([self.label_of[index] for index in stream.batch.group_index], device=logits_CV.device)
        loss = F.cross_entropy(logits_CV, labels_C, reduction="sum")
        correct = float((logits_CV.argmax(dim=1) == labels_C).sum())
        return Auxiliary(loss, {"router/accuracy": correct})


def part_of(group: Group, settings: Capabilities, *, split_seed: int) -> Part:
    """Which part a training prompt belongs to."""
    if split_position(group, split_salt(split_seed, "capabilities-validation")) < settings.validation:
        return "validation"
    return "base" if split_position(group, split_salt(split_seed, "capabilities-base")) < settings.base_share else "mix"


def query_set(groups: Sequence[Group], encoded: Sequence[EncodedGroup], wanted: Sequence[bool], *, limit: int | None = None) -> TrainingSet:
    """The queries of the wanted groups, or their last `limit` tokens, each prompt once; a group's `index` is that of the encoded group.

    Raises:
        DataError: A prompt has no text to route by.
    """
    found: dict[str, TrainingGroup] = {}
    for entry in encoded:
        group = groups[entry.index]
        if not wanted[entry.index] or group.prompt_key in found:
            continue
        if not entry.queries:
            raise DataError(
                f"{group.origin or group.id}: got a group without a prompt, expected what the user said: the router chooses by it who "
                "judges. Leave such rows out, or train a recipe without a router."
            )
        found[group.prompt_key] = TrainingGroup(query_group(entry.queries, entry.index, limit=limit), ())
    return TrainingSet(list(found.values()))


@dataclass(frozen=True, slots=True)
class CategorySets:
    """What one category's phases train on and choose their best state by.

    Attributes:
        human: Groups with the data's own preferences, by part.
        points: Groups with the pairs of a capability point to learn, by point.
        point_validation: The same of the validation prompts.
        reference: Training groups with all their answers, for the category's mean and spread.
    """

    human: Mapping[Part, TrainingSet]
    points: Mapping[str, TrainingSet]
    point_validation: Mapping[str, TrainingSet]
    reference: tuple[EncodedGroup, ...]

    @property
    def both(self) -> TrainingSet:
        """All the human preferences that a category learns from."""
        return TrainingSet([*self.human["base"].groups, *self.human["mix"].groups])

    def counts(self) -> dict[str, Any]:
        """Groups and pairs by part and point, for the report."""
        return {
            **{part: {"groups": len(found), "pairs": n_pairs(found)} for part, found in self.human.items()},
            "points": {point: {"groups": len(found), "pairs": n_pairs(found)} for point, found in self.points.items()},
        }


def category_sets(
    prepared: Prepared,
    categories: Sequence[str],
    points: Sequence[Mapping[str, tuple[Pair, ...]]],
    settings: Capabilities,
    *,
    category: str,
    split_seed: int,
) -> CategorySets:
    """The sets of one category.

    Args:
        prepared: The run's data.
        categories: Category of every training group as text.
        points: Pairs by capability point of every training group.
        settings: Shares, and which prompts the experts learn on.
        category: Which category.
        split_seed: Which of the possible splits.
    """
    parts = {
        index: part_of(group, settings, split_seed=split_seed)
        for index, group in enumerate(prepared.training)
        if categories[index] == category
    }
    human: dict[Part, TrainingSet] = {
        part: TrainingSet([entry for entry in prepared.train.groups if parts.get(entry.group.index) == part])
        for part in ("base", "mix", "validation")
    }
    taught = {"base", "mix"} if settings.points_on == "all" else {"base"}
    own = [entry for entry in prepared.training_tokens if entry.index in parts]
    names = sorted({point for entry in own for point in points[entry.index]})

    def of_point(point: str, wanted: set[str]) -> TrainingSet:
        judged = [entry for entry in own if parts[entry.index] in wanted and point in points[entry.index]]
        return TrainingSet([keep_paired(entry, points[entry.index][point]) for entry in judged])

    return CategorySets(
        human=human,
        points={point: of_point(point, taught) for point in names},
        point_validation={point: of_point(point, {"validation"}) for point in names},
        reference=tuple(own),
    )


def n_pairs(groups: TrainingSet) -> int:
    """Ordered pairs of a set."""
    return sum(len(entry.pairs) for entry in groups.groups)


def enough(found: CategorySets, category: str, settings: Capabilities) -> tuple[str, ...]:
    """Capability points of a category that can be learned; none where the category itself is too small or has no such point.

    Raises:
        DataError: There are too few pairs under `fail`.
    """
    short = {part: n_pairs(found.human[part]) for part in ("base", "mix") if n_pairs(found.human[part]) < settings.min_pairs}
    few = {point: n_pairs(some) for point, some in found.points.items() if n_pairs(some) < settings.min_pairs}
    lacking = short | few if found.points else {**short, "capability points": 0}
    if lacking and settings.small == "fail":
        told = ", ".join(f"{name} {count}" for name, count in lacking.items())
        raise DataError(
            f"Category {category!r}: got pairs for {told}; expected {settings.min_pairs} or more of each, since a model or expert of fewer "
            "says nothing. Give more data, lower capabilities.min_pairs, or write capabilities.small=fallback."
        )
    return () if short else tuple(point for point in found.points if point not in few)
