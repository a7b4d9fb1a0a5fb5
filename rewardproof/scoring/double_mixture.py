"""DMoERM as one scorer and one directory: a router chooses the category by what the user said, that category's experts judge.

The directory holds `dmoerm.yaml` and, each loadable by itself, a stock classifier (`router`), a stock reward model a category
(`categories/N/base`), peft's checkpoints of its experts (`categories/N/experts/point_NNN`) and the network over them
(`categories/N/mixer.safetensors`). Weights are safetensors throughout.

Reference:
    Quan, DMoERM: Recipes of Mixture-of-Experts for Effective Reward Modeling, arXiv:2403.01197.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import write_whole
from rewardproof.config import Section, dump_yaml, load_yaml, parse
from rewardproof.data.encoding import EncodedGroup, OverlongOrCut, Reads, as_read, with_queries
from rewardproof.data.group import Group
from rewardproof.errors import CheckpointError, DataError
from rewardproof.models.cost import products_per_token
from rewardproof.models.double_mixture import CapabilityExperts, QueryRouter, load_experts, share_equal_tensors
from rewardproof.models.precision import Precision, default_device
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring.combination import Scale

DMOERM_FILE = "dmoerm.yaml"
ROUTER, BASE, EXPERTS = "router", "base", "experts"
"""Names of directories inside: the router, and a category's reward model and experts."""


class CategoryEntry(Section):
    """One category."""

    name: str
    """What the labels call it."""
    folder: str
    """Where its reward model, experts and network are; several categories may share one that has no experts."""
    points: tuple[str, ...] = ()
    """Capability points, in the order in which the network reads their experts; without any the reward model judges alone."""
    mean: float = 0.0
    """Mean reward over reference answers, which becomes 0."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation over them, which becomes 1."""


class DoubleMixtureFile(Section):
    """What `dmoerm.yaml` says."""

    reads: Reads = "conversation"
    """What the rewards read."""
    router_bias: tuple[float, ...]
    """Offsets of the router's logits, for which a stock classifier has no place."""
    categories: Annotated[tuple[CategoryEntry, ...], Field(min_length=1)]
    """The categories, in the order of the router's logits."""
    reference: str = ""
    """What the reference answers were."""


class DoubleMixture:
    """A router and the reward models of its categories; scores and encodes as `RewardModel` does."""

    routes = True

    def __init__(
        self,
        router: QueryRouter,
        categories: Mapping[str, RewardModel],
        scales: Mapping[str, Scale],
        *,
        reads: Reads = "conversation",
    ) -> None:
        """Join a router and reward models.

        Args:
            router: Chooses a category.
            categories: The reward model of each; several may have the same one.
            scales: Each category's zero and unit; 0 and 1 leave its rewards as they are.
            reads: What the reward models read.
        """
        self.router = router
        self.categories = dict(categories)
        self.scales = dict(scales)
        self.reads: Reads = reads

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32", device: torch.device | None = None) -> DoubleMixture:
        """Load what a directory describes, all categories at once; tensors that they have in common are in memory once.

        Raises:
            CheckpointError: A part is missing or damaged.
            ConfigError: `dmoerm.yaml` says something else.
            MissingExtraError: peft is not installed.
        """
        folder, place = Path(path), device or default_device()
        found = read_file(folder)
        names = [entry.name for entry in found.categories]
        known: dict[str, Tensor] = {}
        router = QueryRouter.load(folder / ROUTER, found.router_bias, names, precision=precision)
        router.model.to(place)  # pyright: ignore[reportArgumentType]
        share_equal_tensors(router.model, known)
        loaded: dict[str, RewardModel] = {}
        for entry in found.categories:
            if entry.folder not in loaded:
                loaded[entry.folder] = load_category(folder / entry.folder, entry.points, precision=precision, device=place, known=known)
        return cls(
            router,
            {entry.name: loaded[entry.folder] for entry in found.categories},
            {entry.name: Scale(entry.mean, entry.std) for entry in found.categories},
            reads=found.reads,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The categories' own."""
        return self._first.tokenizer

    @property
    def models(self) -> list[RewardModel]:
        """The categories' reward models, each once."""
        return list({id(model): model for model in self.categories.values()}.values())

    @property
    def parameters(self) -> int:
        """Parameters of the router and of all categories; those in common are counted where they are used, as in an ensemble."""
        return sum(parameter.numel() for parameter in self.router.model.parameters()) + sum(model.parameters for model in self.models)

    @property
    def products(self) -> int:
        """Multiplications for one token of a conversation and its query: the router's, and those of the category with most experts."""
        return products_per_token(self.router.model) + max(model.products for model in self.models)

    @property
    def longest(self) -> int | None:
        """Tokens that a conversation may have at most."""
        return self._first.longest

    @property
    def _first(self) -> RewardModel:
        return next(iter(self.categories.values()))

    def encode(
        self, groups: Sequence[Group], *, max_length: int = 0, overlong: OverlongOrCut = "fail"
    ) -> tuple[list[EncodedGroup], Counter[str]]:
        """Tokenise groups as `RewardModel.encode`, with what their users said for the router."""
        read = [as_read(group, self.reads) for group in groups]
        encoded, counts = self._first.encode(read, max_length=max_length, overlong=overlong)
        return with_queries(groups, encoded, self.tokenizer), counts

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Rewards of every answer of every group, in the caller's order.

        Args:
            groups: Groups of any size.
            context: Unused.

        Raises:
            DataError: A group has no prompt to route by, or a conversation is too long.
            EvaluationError: A reward is not finite.
        """
        return self.score_encoded(self.encode(groups)[0], origins=[group.origin or group.id for group in groups])

    def route(self, groups: Sequence[EncodedGroup], *, origins: Sequence[str] = ()) -> list[str]:
        """The category of every encoded group.

        Raises:
            DataError: A group holds nothing that its user said.
        """
        for place, group in enumerate(groups):
            if not group.queries:
                raise DataError(
                    f"{(origins[place] if origins else '') or f'answer group {group.index}'}: got a group without what its user said, "
                    "expected a prompt: the router chooses by it who judges. Encode groups that have one with this model's own encode."
                )
        return self.router.route([group.queries for group in groups])

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        """Rewards of encoded groups, in order; as `RewardModel.score_encoded`."""
        wanted = list(groups)
        return self.score_as(wanted, self.route(wanted, origins=origins), origins=origins)

    def score_as(
        self, groups: Sequence[EncodedGroup], categories: Sequence[str], *, origins: Sequence[str] = ()
    ) -> list[tuple[float, ...]]:
        """Rewards of encoded groups, each judged as a prompt of the category that is given for it."""
        rewards: list[tuple[float, ...]] = [()] * len(groups)
        for name, model in self.categories.items():
            places = [place for place, category in enumerate(categories) if category == name]
            own = model.score_encoded([groups[place] for place in places], origins=[origins[place] for place in places] if origins else ())
            for place, row in zip(places, own, strict=True):
                rewards[place] = tuple(self.scales[name].standardised(row).tolist())
        return rewards


def read_file(folder: Path) -> DoubleMixtureFile:
    """What a directory's `dmoerm.yaml` says.

    Raises:
        CheckpointError: There is none, or it does not fit itself.
        ConfigError: It has other keys or values.
    """
    file = folder / DMOERM_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {DMOERM_FILE}, expected the directory of a DMoERM: a run that was interrupted has not written it yet. Go on "
            "with --resume, or train one with `rewardproof train dmoerm`."
        )
    found = parse(DoubleMixtureFile, load_yaml(file.read_text(), origin=str(file)))
    if len(found.router_bias) != len(found.categories):
        raise CheckpointError(
            f"{file} has {len(found.router_bias)} router_bias for {len(found.categories)} categories, expected one each: the router's "
            "logits are theirs in order. Restore the file, or train it again."
        )
    return found


def write_file(folder: Path, content: DoubleMixtureFile) -> Path:
    """Write `dmoerm.yaml`, which makes the directory whole: nothing loads it before."""
    return write_whole(folder / DMOERM_FILE, dump_yaml(content))


def load_category(
    folder: Path,
    points: Sequence[str],
    *,
    precision: Precision = "fp32",
    device: torch.device | None = None,
    known: dict[str, Tensor] | None = None,
) -> RewardModel:
    """A category's reward model with its experts and their network, or alone where it has no points.

    Args:
        folder: Where they are.
        points: Capability points in order.
        precision: Of the forward pass.
        device: Where to put it; the accelerator if there is one.
        known: Tensors loaded before, which are used again where they are equal.
    """
    base = RewardModel.load(folder / BASE, precision=precision, device=device)
    if known is not None:
        share_equal_tensors(base.model, known)
    if not points:
        return base
    load_experts(base.model, folder / EXPERTS, len(points))
    experts = CapabilityExperts(base.model, points)
    experts.load_mixer(folder)
    base.model.eval()
    return RewardModel(base.model, base.tokenizer, precision=precision, experts=experts.eval())
