"""The models of a server by name, and what each is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rewardproof.data.checks import REASONS, BadRow, check_group
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.group import Group
from rewardproof.data.sharing import DistinctTokens, computed_once
from rewardproof.errors import ConfigError, DataError
from rewardproof.models.precision import Precision
from rewardproof.models.routing import routes_by_prompt
from rewardproof.scoring import (
    ActivationRewardModel,
    AnyModel,
    DoubleMixture,
    ModelEnsemble,
    load_model,
    models_of,
    stream_names,
)
from rewardproof.serving.reading import WrittenTexts
from rewardproof.serving.refused import Refused
from rewardproof.serving.settings import Limits


class Rewards(NamedTuple):
    """Rewards of one group's answers.

    Attributes:
        values: One an answer.
        apart: The variance of an ensemble's members about each, or nothing.
        tokens: Tokens of every conversation.
    """

    values: tuple[float, ...]
    apart: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """One model.

    Attributes:
        name: What clients call it.
        spec: The word that named it on the command line, which clients may use as well.
        model: What scores.
        texts: Reads texts that are written already.
        limits: Of the server.
        scale: Mean and standard deviation of its rewards where its configuration has them, else 0 and 1.
    """

    name: str
    spec: str
    model: AnyModel
    texts: WrittenTexts
    limits: Limits
    scale: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, name: str, model: AnyModel, limits: Limits, *, spec: str = "") -> Served:
        """Prepare a model; its longest text is the lesser of the server's and its own."""
        configs = [one.model.config for one in models_of(model)]
        rooms = [int(room) for config in configs if (room := getattr(config, "max_position_embeddings", None))]
        longest = min([limits.max_length, *rooms, *([model.longest] if model.longest else [])])
        only = configs[0] if len(configs) == 1 else None
        scale = (float(getattr(only, "mean", None) or 0.0), float(getattr(only, "std", None) or 1.0))
        return cls(name, spec or name, model, WrittenTexts(model.tokenizer), limits.model_copy(update={"max_length": longest}), scale)

    def encode(self, groups: Sequence[Group]) -> list[EncodedGroup]:
        """Token ids of groups of messages or plain texts.

        Raises:
            DataError: A group cannot be scored, with the reason.
            Refused: It is too long.
        """
        for place, group in enumerate(groups):
            try:
                check_group(group, purpose="judge")
            except BadRow as error:
                expected, why = REASONS[error.reason]
                raise DataError(f"Group {place}: got {error}, expected {expected}: {why}. Correct it.") from error
        return self.within_limits(self.model.encode(groups)[0])

    def written(self, texts: Sequence[str], prompts: Sequence[str] | None, *, close: bool) -> list[EncodedGroup]:
        """Token ids of texts that a template has written; arguments as of `WrittenTexts.groups`.

        A model that has to know who said what reads them as the turns that they were written of.

        Raises:
            DataError: A text cannot be read.
            Refused: It is too long.
        """
        if reads_turns(self.model):
            return self.encode([self.texts.conversation(text, place) for place, text in enumerate(texts)])
        return self.within_limits(self.texts.groups(texts, prompts, close=close))

    def within_limits(self, encoded: list[EncodedGroup]) -> list[EncodedGroup]:
        """The same groups.

        Raises:
            Refused: A conversation, or all together, have more tokens than the server takes.
        """
        longest = max((len(tokens) for group in encoded for tokens in group.conversations), default=0)
        if longest > self.limits.max_length:
            raise Refused(
                413,
                f"Got a text of {longest} tokens, expected at most {self.limits.max_length}: the model or this server reads no further. "
                "Shorten it.",
            )
        tokens = DistinctTokens()
        tokens.add(one for group in encoded for one in group.conversations)
        if tokens.count > self.limits.tokens:
            raise Refused(
                413,
                f"Got {tokens.count} tokens, expected at most {self.limits.tokens} in a request: others wait meanwhile. Send several "
                "requests.",
            )
        return encoded

    def score(self, groups: Sequence[EncodedGroup]) -> list[Rewards]:
        """Rewards of the groups of any requests, every conversation computed once."""
        made: list[Rewards] = []
        for group, row in zip(groups, computed_once(groups, self._rewards), strict=True):
            values, apart = zip(*row, strict=True)
            variances = apart if isinstance(self.model, ModelEnsemble) else ()
            made.append(Rewards(values, variances, tuple(map(len, group.conversations))))
        return made

    def between_0_and_1(self, reward: float) -> float:
        """The logistic function of a reward in its model's units."""
        mean, std = self.scale
        standard = (reward - mean) / std
        return 1 / (1 + math.exp(-standard)) if standard >= 0 else math.exp(standard) / (1 + math.exp(standard))

    def _rewards(self, groups: Sequence[EncodedGroup]) -> list[list[tuple[float, float]]]:
        """Each conversation's reward, and how far an ensemble's members are apart about it."""
        names = [f"text {group.index}" for group in groups]
        if isinstance(self.model, ModelEnsemble):
            rewards, apart = self.model.score_encoded_with_disagreement(groups, origins=names)
        else:
            rewards = self.model.score_encoded(groups, origins=names)
            apart = [(0.0,) * len(row) for row in rewards]
        return [list(zip(*rows, strict=True)) for rows in zip(rewards, apart, strict=True)]


def reads_turns(model: AnyModel) -> bool:
    """Whether a model's rewards depend on who said what, beside the text: by a router of queries or prompts, or by what it leaves out."""
    if isinstance(model, DoubleMixture | ActivationRewardModel):
        return True
    if isinstance(model, ModelEnsemble):
        return any(map(reads_turns, model.models.values()))
    return model.reads != "conversation" or routes_by_prompt(model.model)


class Catalogue:
    """The models of a server."""

    def __init__(self, models: Sequence[Served]) -> None:
        """Take models; the first answers where none is named.

        Raises:
            ConfigError: There is none, or two have one name.
        """
        names = [one.name for one in models]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"Got models named {', '.join(names) or 'nothing'}, expected at least one, each with its name: requests choose by it. Give "
                "names=… one a model."
            )
        self.models: Mapping[str, Served] = {one.name: one for one in models}

    @classmethod
    def load(cls, specs: Sequence[str], limits: Limits, *, names: Sequence[str] = (), precision: Precision = "fp32") -> Catalogue:
        """Load models; without names they are called by their runs.

        Raises:
            ConfigError: There are not as many names as models.
            CheckpointError: A model is missing or damaged.
        """
        if names and len(names) != len(specs):
            raise ConfigError(f"Got {len(names)} names for {len(specs)} models, expected one each, in order. Correct names=….")
        called = names or stream_names(specs)
        found = [
            Served.of(name, load_model(spec, precision=precision), limits, spec=spec) for name, spec in zip(called, specs, strict=True)
        ]
        return cls(found)

    @property
    def first(self) -> Served:
        """Answers where no model is named."""
        return next(iter(self.models.values()))

    def named(self, name: str, *, any_name: bool = False) -> Served:
        """The model that a request asks for.

        Args:
            name: A model's name, the word that named it on the command line, or nothing.
            any_name: Where one model is served it answers to every name: clients of other servers send one of their own.

        Raises:
            Refused: There is no such model.
        """
        if not name or (any_name and len(self.models) == 1):
            return self.first
        if name in self.models:
            return self.models[name]
        for one in self.models.values():
            if one.spec == name:
                return one
        raise Refused(404, f"Got a model that is not served, expected one of: {', '.join(self.models)}. Name one of them, or none.")
