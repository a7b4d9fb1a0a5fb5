"""Reward models that judge together, as a directory: `ensemble.yaml` names the members, their units, and how they combine."""

# M members, L tokens read of an answer and one before.
from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeGuard, TypeVar

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import write_whole
from rewardproof.config import Section, dump_yaml, load_yaml, parse
from rewardproof.data.encoding import EncodedGroup, OverlongOrCut, Reads, with_queries
from rewardproof.data.group import Group
from rewardproof.data.packing import fill
from rewardproof.errors import CheckpointError, ConfigError, ModelError
from rewardproof.models.precision import Precision, resolve_precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.token_scores import Readings, TokenScores, token_scores
from rewardproof.models.trunk import TrunkMemory, layers_in_common
from rewardproof.models.upcycling import first_differing
from rewardproof.scoring.activation import ACTIVATION_FILE
from rewardproof.scoring.combination import Floats, Scale, combine, disagreement
from rewardproof.scoring.double_mixture import DMOERM_FILE, DoubleMixture
from rewardproof.scoring.ensemble import Combine, Ensemble
from rewardproof.scoring.implicit import ImplicitReward
from rewardproof.scoring.scorer import Scorer, TokenScorer

ENSEMBLE_FILE = "ensemble.yaml"
TOKENS_AT_ONCE = 131072
"""Tokens whose shared activations are in memory at a time: a quarter of a gigabyte at width 512."""
Read = TypeVar("Read")


AnyMember = RewardModel | DoubleMixture
"""What reads text by itself."""


def load_member(spec: str, *, precision: Precision = "fp32") -> AnyMember:
    """The reward model in a directory or under a hub id, or the DMoERM in a directory.

    Raises:
        ConfigError: It is a scorer that asks questions of its own about answers.
    """
    if (Path(spec) / ACTIVATION_FILE).is_file():
        raise ConfigError(
            f"Got {spec}, an activation reward model, as a member, expected reward models that read the same conversations: members share "
            "their tokens, and it asks a question about every answer. Join them from Python with Ensemble, which hands every member the "
            "text."
        )
    if (Path(spec) / DMOERM_FILE).is_file():
        return DoubleMixture.load(spec, precision=precision)
    return RewardModel.load(spec, precision=precision)


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


class ModelEnsemble(Ensemble):
    """An ensemble of reward models that read the same tokens; scores and encodes as `RewardModel` does."""

    def __init__(self, models: Mapping[str, AnyMember], scales: Mapping[str, Scale], how: Combine | None = None) -> None:
        """Join reward models; arguments as for `Ensemble`.

        Raises:
            ConfigError: Their tokenizers or chat templates differ, or how much of a conversation they read.
        """
        super().__init__(models, scales, how)
        self.models = dict(models)
        readings = [_reading(model) for model in models.values()]
        if any(reading != readings[0] for reading in readings):
            raise ConfigError(
                "Got reward models with different tokenizers or chat templates, or of which one reads only the last query, expected one "
                "reading of a text for all: their members' tokens are shared. Join them from Python with Ensemble, which hands every "
                "member the text."
            )

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32") -> ModelEnsemble:
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
        entries = {str(number): entry for number, entry in enumerate(found.members)}
        models = {name: load_member(_place(file.parent, entry.model), precision=precision) for name, entry in entries.items()}
        return cls(models, {name: Scale(entry.mean, entry.std) for name, entry in entries.items()}, found.combine)

    def save(self, path: str | Path, places: Mapping[str, str], *, reference: str = "") -> Path:
        """Write `ensemble.yaml`; the members' own directories stay where they are.

        Args:
            path: The ensemble's directory.
            places: Where each member is, by name; relative paths are taken from `path`.
            reference: What the reference answers were.
        """
        entries = tuple(MemberEntry(model=places[name], mean=scale.mean, std=scale.std) for name, scale in self.scales.items())
        target = Path(path) / ENSEMBLE_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, dump_yaml(EnsembleFile(combine=self.how, members=entries, reference=reference)))
        return target

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The members' own."""
        return self._first.tokenizer

    @property
    def parameters(self) -> int:
        """Parameters of all members together."""
        return sum(model.parameters for model in self.models.values())

    @property
    def products(self) -> int:
        """Multiplications of the matrix products that one token takes part in, of all members together."""
        return sum(model.products for model in self.models.values())

    @property
    def longest(self) -> int | None:
        """Tokens that a conversation may have at most, by the member that takes least."""
        return min((model.longest for model in self.models.values() if model.longest is not None), default=None)

    def encode(
        self, groups: Sequence[Group], *, max_length: int = 0, overlong: OverlongOrCut = "fail"
    ) -> tuple[list[EncodedGroup], Counter[str]]:
        """Tokenise groups as all members read them; as `RewardModel.encode`."""
        encoded, counts = self._first.encode(groups, max_length=max_length, overlong=overlong)
        return (with_queries(groups, encoded, self.tokenizer) if self._routes else encoded), counts

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        """Combined scores of encoded groups, in order; as `RewardModel.score_encoded`."""
        return self.combined(self._by_member_encoded(list(groups), origins))

    def score_encoded_with_disagreement(
        self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()
    ) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        """Combined scores of encoded groups and the variance of the members' scores about each, for one reading by the members."""
        by_member = self._by_member_encoded(list(groups), origins)
        return self.combined(by_member), [tuple(disagreement(scores_MN).tolist()) for scores_MN in by_member]

    def by_member(self, groups: Sequence[Group], context: object = None) -> list[Floats]:
        """Every member's standardised score of every answer, one array `(M, N)` a group."""
        return self._by_member_encoded(self.encode(groups)[0], [group.origin or group.id for group in groups])

    def _by_member_encoded(self, groups: Sequence[EncodedGroup], origins: Sequence[str]) -> list[Floats]:
        """Every member's standardised scores."""
        found = self._of_each(groups, origins, lambda model, run, names: model.score_encoded(run, origins=names))
        return self.standardised(found, [len(group.conversations) for group in groups])

    def score_tokens(self, groups: Sequence[Group], context: object = None) -> list[tuple[TokenScores, ...]]:
        """Scores as the answers are read: at every token the members' standardised scores, combined as those of whole answers are.

        Arguments and errors as of `RewardModel.score_tokens`.
        """
        return self.score_tokens_with_disagreement(groups)[0]

    def score_tokens_with_disagreement(self, groups: Sequence[Group]) -> tuple[list[tuple[TokenScores, ...]], float]:
        """What `score_tokens` gives, and the mean over answers of the members' variance, for one reading by the members."""
        encoded, origins = self.encode(groups)[0], [group.origin or group.id for group in groups]
        found = self._of_each(encoded, origins, _readings)
        by_answer = [[*zip(*rows, strict=True)] for rows in zip(*found.values(), strict=True)]
        scales = [self.scales[name] for name in found]
        members = [
            [np.stack([scale.standardised(row) for scale, row in zip(scales, answer, strict=True)]) for answer in group]
            for group in by_answer
        ]
        combined = [[combine(one_ML, self.how.combination, penalty=self.how.penalty) for one_ML in group] for group in members]
        apart = float(np.mean([disagreement(one_ML[:, -1:]) for group in members for one_ML in group]))
        return token_scores(groups, encoded, self.tokenizer, combined), apart

    def _of_each(
        self,
        groups: Sequence[EncodedGroup],
        origins: Sequence[str],
        read: Callable[[AnyMember, Sequence[EncodedGroup], Sequence[str]], list[Read]],
    ) -> dict[str, list[Read]]:
        """What every member gives, one entry a group; layers that all members have in common run once."""
        found: dict[str, list[Read]] = {name: [] for name in self.models}
        done = 0
        for run in fill(groups, tokens_per_batch=TOKENS_AT_ONCE):
            names = origins[done : done + len(run)]
            with self._one_trunk():
                for name, model in self.models.items():
                    found[name] += read(model, run, names)
            done += len(run)
        return found

    @contextlib.contextmanager
    def _one_trunk(self) -> Iterator[None]:
        """Let all members read what the first one's lower layers put out, unless they share it on disk already."""
        models = self._dense
        with contextlib.ExitStack() as stack:
            if self._in_common and not any(model.shares_trunk for model in models):
                first = models[0]
                precision = resolve_precision(first.precision, first.model.device)
                store = TrunkMemory(first.model, self._in_common, precision=precision)
                for model in models:
                    stack.enter_context(model.borrowing(store, self._in_common))
            yield

    @functools.cached_property
    def _in_common(self) -> int:
        """Layers that need to run only once; members of other precision or on another device need their own."""
        models = self._dense
        if len(models) < max(2, len(self.models)) or len({(model.precision, model.model.device) for model in models}) > 1:
            return 0
        return layers_in_common([model.model for model in models])

    @property
    def _dense(self) -> list[RewardModel]:
        """The members that are one model."""
        return [model for model in self.models.values() if isinstance(model, RewardModel)]

    @property
    def _routes(self) -> bool:
        return any(model.routes for model in self.models.values())

    @property
    def _first(self) -> AnyMember:
        return min(self.models.values(), key=lambda model: model.longest or float("inf"))


def models_of(scorer: Scorer) -> list[RewardModel]:
    """The reward models behind a scorer: itself, a DMoERM's categories, an ensemble's members, or none."""
    if isinstance(scorer, RewardModel):
        return [scorer]
    if isinstance(scorer, DoubleMixture):
        return scorer.models
    return [one for member in scorer.models.values() for one in models_of(member)] if isinstance(scorer, ModelEnsemble) else []


def share_trunks(scorer: Scorer, layers: str, *, limit_gb: float) -> None:
    """Compute the layers below those that `layers` names once for all models that have them in common.

    Args:
        scorer: Whose models; one without any stays as it is.
        layers: Where the models differ, `all` or `top:K`.
        limit_gb: Disk for what the layers below put out; beyond it every model runs whole.
    """
    for model in models_of(scorer):
        model.share_trunk(first_differing(layers, model.model.config.num_hidden_layers), limit_gb=limit_gb)


def reads_tokens(scorer: Scorer) -> TypeGuard[TokenScorer]:
    """Whether a scorer can say how an answer's score grows, token by token: it reads by one head, and its tokenizer tells places."""
    if isinstance(scorer, ModelEnsemble):
        return all(map(reads_tokens, scorer.models.values()))
    if isinstance(scorer, ImplicitReward):
        return bool(scorer.tokenizer.is_fast)
    return isinstance(scorer, TokenScorer) and all(model.experts is None and model.tokenizer.is_fast for model in models_of(scorer))


def tokens_and_disagreement(
    scorer: TokenScorer, groups: Sequence[Group], context: object = None
) -> tuple[list[tuple[TokenScores, ...]], float | None]:
    """What `score_and_disagreement` gives, the scores as answers are read."""
    if isinstance(scorer, ModelEnsemble):
        return scorer.score_tokens_with_disagreement(groups)
    return scorer.score_tokens(groups, context), None


def _readings(model: AnyMember, groups: Sequence[EncodedGroup], origins: Sequence[str]) -> list[tuple[Readings, ...]]:
    if not isinstance(model, RewardModel):
        raise ModelError(
            "Got an ensemble with a DMoERM in it, expected reward models alone: its experts judge whole answers, and say nothing of the "
            "tokens before their end. Leave it out."
        )
    return model.readings_encoded(groups, origins=origins)


def _reading(model: AnyMember) -> tuple[dict[str, int], str, Reads]:
    return model.tokenizer.get_vocab(), str(model.tokenizer.chat_template), model.reads


def _place(folder: Path, model: str) -> str:
    """Where a member is: beside the ensemble where it names a folder there, else as it stands, which may be a hub id."""
    beside = folder / model
    return str(beside) if beside.exists() else model
