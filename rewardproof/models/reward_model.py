"""`RewardModel`: a stock classification model with one label, its tokenizer, and packed scoring."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.data.encoding import EncodedGroup, OverlongOrCut, Reads, as_read, encode_groups
from rewardproof.data.group import Group
from rewardproof.data.packing import PackedBatch, fill, pack, split_at_position, split_large
from rewardproof.errors import ConfigError, DataError, EvaluationError, ModelError
from rewardproof.models.checkpoints import load_reward_model, reading_of
from rewardproof.models.cost import products_per_token
from rewardproof.models.double_mixture import CapabilityExperts
from rewardproof.models.factor_head import factor_head_of
from rewardproof.models.families import is_padded_only
from rewardproof.models.packed import PackedRewards, RewardsAndStates, packed_rewards, position_boundary, position_table
from rewardproof.models.precision import Precision, computing_in, default_budget, default_device, resolve_precision
from rewardproof.models.routing import Routing
from rewardproof.models.saving import save_reward_model
from rewardproof.models.token_scores import Readings, TokenScores, read_stream, token_scores
from rewardproof.models.trunk import FrozenTrunk, TrunkCache, TrunkStore

ReadT = TypeVar("ReadT")
FoundT = TypeVar("FoundT", float, Readings)
Reader = Callable[[PackedRewards, PackedBatch, Sequence[str]], Sequence[ReadT]]


class RewardModel:
    """A reward model that scores groups of answers; a `Scorer`.

    Example:
        >>> model = RewardModel.load("runs/umm/model")             # doctest: +SKIP
        >>> model.score([Group(prompt=..., answers=...)])          # doctest: +SKIP
    """

    routes = False
    """Whether who judges depends on what the user said, so that encoded groups have to hold it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        precision: Precision = "fp32",
        tokens_per_batch: int = 0,
        backend: str = "",
        experts: CapabilityExperts | None = None,
    ) -> None:
        """Wrap a model and its tokenizer.

        Args:
            model: A `*ForSequenceClassification` with one label, dense or upcycled.
            tokenizer: Its tokenizer, with a chat template.
            precision: Of the forward pass; `fp32` reproduces stock rewards to rounding.
            tokens_per_batch: Token budget of one stream; 0 takes what keeps the device busy.
            backend: Attention backend; empty chooses by device.
            experts: What makes the reward, where the model carries experts by capability instead of one head.
        """
        self.model = model
        self.experts = experts
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.tokens_per_batch = tokens_per_batch or default_budget(model.device)
        self.backend = backend
        self.reads: Reads = reading_of(model)
        self._trunk_layers = 0
        self._trunk_limit_gb = 0.0
        self._lent: TrunkStore | None = None

    def share_trunk(self, first_layer: int, *, limit_gb: float) -> RewardModel:
        """Keep what enters layer `first_layer` on disk, for models that share the layers below and score the same answers.

        Args:
            first_layer: First layer that differs between those models; 0 turns sharing off.
            limit_gb: Disk for the activations; beyond it scoring runs all layers.

        Returns:
            This model.
        """
        self._trunk_layers = 0 if is_padded_only(self.model) else first_layer
        self._trunk_limit_gb = limit_gb
        return self

    @property
    def shares_trunk(self) -> bool:
        """Whether it keeps what its lower layers put out on disk."""
        return bool(self._trunk_layers and self._trunk_limit_gb)

    @contextlib.contextmanager
    def borrowing(self, store: TrunkStore, first_layer: int) -> Iterator[None]:
        """While the context is open, take what enters layer `first_layer` from another model's store."""
        kept = self._trunk_layers
        self._lent, self._trunk_layers = store, first_layer
        try:
            yield
        finally:
            self._lent, self._trunk_layers = None, kept

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32", device: torch.device | None = None) -> RewardModel:
        """Load a checkpoint, dense or with experts.

        Args:
            path: A directory or hub id.
            precision: Of the forward pass.
            device: Where to put it; the accelerator if there is one.
        """
        model, tokenizer = load_reward_model(str(path))
        model.to(device or default_device())  # pyright: ignore[reportArgumentType]
        return cls(model, tokenizer, precision=precision)

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write a checkpoint under the contract that every consumer reads."""
        return save_reward_model(self.model, self.tokenizer, path, dtype=dtype)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Rewards of every answer of every group, in the caller's order.

        Args:
            groups: Groups of any size.
            context: Unused; scorers that follow a policy need it.

        Raises:
            DataError: A conversation has more tokens than the model has positions.
            EvaluationError: A reward is not finite.
        """
        return self.score_encoded(self.encode(groups)[0], origins=[group.origin or group.id for group in groups])

    @property
    def parameters(self) -> int:
        """Parameters, head included."""
        over = self.experts.parameters_of_mixer if self.experts is not None else 0
        return sum(parameter.numel() for parameter in self.model.parameters()) + over

    @property
    def products(self) -> int:
        """Multiplications of the matrix products that one token takes part in; heads are left out."""
        return products_per_token(self.model) if self.experts is None else self.experts.products(self.model)

    @property
    def longest(self) -> int | None:
        """Tokens that a conversation may have at most; `None` where the model computes at any length, as rotary positions do."""
        if (getattr(self.model.config, "rope_parameters", None) or {}).get("rope_type") == "dynamic":
            return position_boundary(self.model)
        return position_table(self.model)

    def encode(
        self, groups: Sequence[Group], *, max_length: int = 0, overlong: OverlongOrCut = "fail"
    ) -> tuple[list[EncodedGroup], Counter[str]]:
        """Tokenise groups as this model reads them.

        Args:
            groups: Groups in the caller's order.
            max_length: Longest conversation allowed, in tokens; 0 is the model's own limit.
            overlong: As in `encode_groups`; under `fail`, what exceeds the model's own limit is refused when it is scored.

        Returns:
            The encoded groups, each with its `index` into `groups`, and how many were dropped or truncated.

        Raises:
            ConfigError: `max_length` is beyond the model's own limit.
            DataError: A group is too long under `fail`, or its answer alone is under `truncate_prompt`.
        """
        own = self.longest or sys.maxsize
        if max_length < 0 or max_length > own:
            raise ConfigError(
                f"Got max_length={max_length}; expected 0 for the model's own limit, or at most {own} tokens. This {self._kind} model "
                "cannot compute beyond that; lower max_length."
            )
        limit = max_length or (sys.maxsize if overlong == "fail" else own)
        read = [as_read(group, self.reads) for group in groups]
        return encode_groups(read, self.tokenizer, max_length=limit, overlong=overlong)

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        """Rewards of encoded groups, in order.

        Args:
            groups: The groups.
            origins: What messages call the groups by, `file:line`; without it, their index.

        Raises:
            DataError: A conversation has more tokens than the model has positions.
            ModelError: A conversation is longer than dynamic rotary factors allow.
            EvaluationError: A reward is not finite.
        """

        def rewards(output: PackedRewards, _: PackedBatch, names: Sequence[str]) -> list[float]:
            return [_finite(value, name) for value, name in zip(output.rewards_C.tolist(), names, strict=True)]

        return [tuple(values) for values in self._read(list(groups), origins, rewards)]

    def score_tokens(self, groups: Sequence[Group], context: object = None) -> list[tuple[TokenScores, ...]]:
        """Scores of every answer of every group as it is read, token by token; the last is what `score` gives.

        One pass does it: the head, in full precision, reads the states of the forward that `score` makes.

        Args:
            groups: Groups of any size.
            context: Unused, as in `score`.

        Raises:
            ModelError: The tokenizer cannot say which characters its tokens stand for, or the model has no one head; and as `score`.
        """
        encoded, _ = self.encode(groups)
        readings = self.readings_encoded(encoded, origins=[group.origin or group.id for group in groups])
        return token_scores([as_read(group, self.reads) for group in groups], encoded, self.tokenizer, readings)

    def readings_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[Readings, ...]]:
        """What the head reads of every conversation of encoded groups: one position before its answer, and at each later token.

        Arguments and errors as of `score_encoded`. A conversation that has no prompt is read from its first token on.
        """
        if self.experts is not None:
            raise ModelError(
                "Got a model of experts by capability, expected one with a reward head: several passes make its reward at an answer's end, "
                "and say nothing of the tokens before. Take another reward model."
            )

        def readings(output: PackedRewards, batch: PackedBatch, names: Sequence[str]) -> list[Readings]:
            return [_finite(row, name) for row, name in zip(read_stream(self.model, output, batch), names, strict=True)]

        return [tuple(rows) for rows in self._read(list(groups), origins, readings, tokens=True)]

    def states(self, groups: Sequence[EncodedGroup]) -> list[Tensor]:
        """What the head reads of every conversation of encoded groups: final hidden states on the CPU, `(N, D)` a group, in order.

        Raises:
            DataError: A conversation has more tokens than the model has positions.
            ModelError: A conversation is longer than dynamic rotary factors allow.
        """
        rows = self._read(groups, (), lambda output, *_: output.states_CD.float().cpu().unbind())
        return [torch.stack(of_group) for of_group in rows]

    def rewards_and_states(self, groups: Sequence[Group]) -> RewardsAndStates:
        """Rewards of every answer and the states that the head reads them from, for what else reads these; raises as `score`."""

        def both(output: PackedRewards, _: PackedBatch, names: Sequence[str]) -> list[tuple[float, Tensor]]:
            rewards = [_finite(value, name) for value, name in zip(output.rewards_C.tolist(), names, strict=True)]
            return list(zip(rewards, output.states_CD.float(), strict=True))

        found = self._read(self.encode(groups)[0], [group.origin or group.id for group in groups], both)
        flat = [one for of_group in found for one in of_group]
        return RewardsAndStates(torch.tensor([reward for reward, _ in flat]), torch.stack([state_D for _, state_D in flat]))

    def uncertainty(self, groups: Sequence[Group], *, samples: int = 64, seed: int = 0) -> list[tuple[float, ...]]:
        """Standard deviation of every answer's reward over draws from the posterior of its factors, in the caller's order.

        Args:
            groups: Groups of any size.
            samples: Draws, 2 or more; each has one dictionary for all answers.
            seed: Of the draws.

        Raises:
            ModelError: The model has no head of factors.
            ConfigError: One draw has no spread.
        """
        head = factor_head_of(self.model)
        if samples < 2:
            raise ConfigError(f"Got samples={samples}, expected 2 or more: one draw has no spread. Write samples=64, for instance.")
        found = self.states(self.encode(groups)[0])
        if not found:
            return []
        spread_N = head.draws(torch.cat(found).to(self.model.device), samples, seed=seed).std(dim=0).cpu()
        return [tuple(part.tolist()) for part in spread_N.split([len(states_ND) for states_ND in found])]

    def _read(
        self, wanted: Sequence[EncodedGroup], origins: Sequence[str], read: Reader[ReadT], *, tokens: bool = False
    ) -> list[list[ReadT]]:
        """What `read` makes of every conversation, given a stream's output, the stream, and the names of its conversations' groups.

        With `tokens` the output has the states of all tokens.
        """
        boundary = position_boundary(self.model)
        names = [origin or f"answer group {group.index}" for group, origin in zip(wanted, origins or [""] * len(wanted), strict=True)]
        self._refuse_too_long(wanted, names)
        self.model.eval()  # in training, dropout and sampling heads give another reward every time
        parts = [(place, part) for place, group in enumerate(wanted) for part in self._parts(group, boundary)]
        found: list[dict[tuple[int, ...], ReadT]] = [{} for _ in wanted]
        streams = [[], []] if boundary is not None else [[]]
        for entry in parts:
            long = boundary is not None and max(len(tokens) for tokens in entry[1].conversations) > boundary
            streams[int(long)].append(entry)
        with self._shared_trunk([part for _, part in parts]) as (trunk, store):
            for stream in streams:
                self._read_stream(stream, names, read, found, trunk=trunk, store=store, tokens=tokens)
        return [[values[tokens] for tokens in group.conversations] for values, group in zip(found, wanted, strict=True)]

    def routings(self, groups: Sequence[EncodedGroup]) -> Iterator[tuple[PackedBatch, tuple[Routing, ...]]]:
        """Streams of encoded groups, in order, with what each router of a mixture decides on them, lowest layer first."""
        device = self.model.device
        self.model.eval()
        with self._shared_trunk(groups) as (trunk, store):
            for run in fill(groups, tokens_per_batch=self.tokens_per_batch):
                batch = pack(run).to(device)
                yield batch, self._forward(run, batch, trunk, store).routings

    def _refuse_too_long(self, groups: Sequence[EncodedGroup], names: Sequence[str]) -> None:
        longest = self.longest
        if longest is None:
            return
        for group, name in zip(groups, names, strict=True):
            found = max(len(tokens) for tokens in group.conversations)
            if found > longest and position_boundary(self.model) is not None:
                raise ModelError(
                    f"{name}: got a conversation of {found} tokens, expected at most {longest}: beyond that, dynamic rotary factors depend "
                    "on what was scored before, so no reward is the right one. Shorten the text, or pass overlong=drop or "
                    "overlong=truncate_prompt."
                )
            if found > longest:
                raise DataError(
                    f"{name}: got a conversation of {found} tokens, expected at most {longest}: this {self._kind} model has a table of "
                    f"{longest} positions and none for a later token. Shorten the text, pass overlong=drop or overlong=truncate_prompt, "
                    "or take a model with rotary positions."
                )

    @property
    def _kind(self) -> str:
        return str(self.model.config.model_type)

    @contextlib.contextmanager
    def _shared_trunk(self, groups: Sequence[EncodedGroup]) -> Iterator[tuple[FrozenTrunk | None, TrunkStore | None]]:
        store = self._lent or self._own_store()
        if store is None or not store.fits(groups):
            yield None, None
            return
        for _ in store.add(groups, tokens_per_batch=self.tokens_per_batch):
            pass
        trunk = FrozenTrunk(self.model, self._trunk_layers)
        with trunk.detached():
            yield trunk, store

    def _own_store(self) -> TrunkStore | None:
        if not self.shares_trunk:
            return None
        precision = resolve_precision(self.precision, self.model.device)
        return TrunkCache(self.model, self._trunk_layers, precision=precision, limit_gb=self._trunk_limit_gb)

    def _parts(self, group: EncodedGroup, boundary: int | None) -> list[EncodedGroup]:
        sides = [group] if boundary is None else split_at_position(group, boundary)
        return [part for side in sides for part in split_large(side, tokens_per_batch=self.tokens_per_batch)]

    def _forward(
        self,
        run: Sequence[EncodedGroup],
        batch: PackedBatch,
        trunk: FrozenTrunk | None,
        store: TrunkStore | None,
        *,
        tokens: bool = False,
    ) -> PackedRewards:
        """One stream, from the activations that are stored of it where they are."""
        device = self.model.device
        feed = trunk.feeding(store.read(run).to(device)) if trunk is not None and store is not None else contextlib.nullcontext()
        with torch.inference_mode(), computing_in(self.precision, device), feed:
            if self.experts is not None:
                return self.experts(self.model, batch, backend=self.backend)
            return packed_rewards(self.model, batch, backend=self.backend, tokens=tokens)

    def _read_stream(
        self,
        parts: list[tuple[int, EncodedGroup]],
        names: Sequence[str],
        read: Reader[ReadT],
        found: list[dict[tuple[int, ...], ReadT]],
        *,
        trunk: FrozenTrunk | None,
        store: TrunkStore | None,
        tokens: bool,
    ) -> None:
        owners = iter(parts)
        device = self.model.device
        for run in fill((part for _, part in parts), tokens_per_batch=self.tokens_per_batch):
            places = [(place, one) for place, group in itertools.islice(owners, len(run)) for one in group.conversations]
            batch = pack(run).to(device)
            values = read(self._forward(run, batch, trunk, store, tokens=tokens), batch, [names[place] for place, _ in places])
            for (place, conversation), value in zip(places, values, strict=True):
                found[place][conversation] = value


def _finite(value: FoundT, name: str) -> FoundT:
    if not np.isfinite(value).all():
        raise EvaluationError(
            f"The reward of {name} is {value}, expected a finite number; the model's weights or its precision are broken. "
            "Score in fp32, or check the checkpoint."
        )
    return value
