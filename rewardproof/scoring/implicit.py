"""The reward that a policy trained by DPO or its kin implies: how much likelier it makes an answer than its reference does.

Reference:
    Rafailov et al., arXiv:2305.18290, section 4; judged as a reward model in Lambert et al., arXiv:2403.13787.
"""

# C conversations of a stream, L answer tokens.
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup, OverlongOrCut, encode_groups
from rewardproof.data.group import Group
from rewardproof.data.packing import PackedBatch, fill, pack, split_at_position, split_large
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.cost import products_per_token
from rewardproof.models.packed import answer_log_probs, position_boundary, position_table
from rewardproof.models.precision import Precision, computing_in, default_budget, default_device
from rewardproof.models.token_scores import TokenScores, token_scores

UNLIMITED = 1 << 62
"""Tokens that a conversation may have where nothing limits them."""


class Implicit(Section):
    """How a language model's log-probabilities become a reward."""

    reference: str = ""
    """The model that the policy was trained from: a directory or a hub id; without one the policy's log-probabilities alone are read."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """What makes a reward of a log-ratio in nats; it changes no order of answers."""
    over: Literal["sum", "mean"] = "sum"
    """`sum` over the answer's tokens, or their `mean`, which does not grow with the length."""


class ImplicitReward:
    r"""Scores and encodes as `RewardModel` does.

    .. math:: r(x, y) = \beta \sum_t \left( \log \pi(y_t \mid x, y_{<t}) - \log \pi_\text{ref}(y_t \mid x, y_{<t}) \right)

    The answer's tokens are those after the prompt, the template's terminator among them. The difference is taken token by token and summed
    in float64: log-probabilities of long answers are in the thousands.
    """

    routes = False

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
        how: Implicit | None = None,
        *,
        precision: Precision = "fp32",
        tokens_per_batch: int = 0,
    ) -> None:
        """Join a policy and its reference.

        Args:
            policy: A causal model.
            tokenizer: Its tokenizer, whose template writes the conversations of both.
            reference: A causal model that reads the same tokens, or `None`.
            how: Temperature and reduction.
            precision: Of the forward passes.
            tokens_per_batch: Token budget of one stream; 0 takes what keeps the device busy.

        Raises:
            ConfigError: The two have tables of tokens of different sizes.
        """
        models = [model for model in (policy, reference) if model is not None]
        sizes = [cast("Tensor", model.get_input_embeddings().weight).shape[0] for model in models]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"Got a policy with {sizes[0]} tokens and a reference with {sizes[1]}, expected the model that the policy was trained "
                "from: the two have to read the same tokens. Name it as implicit.reference."
            )
        self.policy, self.reference = policy, reference
        self.tokenizer = tokenizer
        self.how = how or Implicit()
        self.precision: Precision = precision
        self.tokens_per_batch = tokens_per_batch or default_budget(policy.device)

    @classmethod
    def load(cls, policy: str, how: Implicit, *, precision: Precision = "fp32", device: torch.device | None = None) -> ImplicitReward:
        """Load a policy and the reference that `how` names.

        Args:
            policy: A directory or a hub id.
            how: The reference, and what is made of the log-ratios.
            precision: Of the forward passes.
            device: Where to put both; the accelerator if there is one.

        Raises:
            ConfigError: The two have different vocabularies.
        """
        place = device or default_device()
        model, tokenizer = load_causal(policy)
        reference = None
        if how.reference:
            reference, other = load_causal(how.reference)
            if other.get_vocab() != tokenizer.get_vocab():
                raise ConfigError(
                    f"{policy} and {how.reference} have different vocabularies, expected the model that the policy was trained from: their "
                    "log-probabilities would be of different tokens. Name it as implicit.reference."
                )
            reference.to(place)  # pyright: ignore[reportArgumentType]
        model.to(place)  # pyright: ignore[reportArgumentType]
        return cls(model, tokenizer, reference, how, precision=precision)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The policy, and the reference where there is one."""
        return [model for model in (self.policy, self.reference) if model is not None]

    @property
    def parameters(self) -> int:
        """Parameters of both."""
        return sum(parameter.numel() for model in self.models for parameter in model.parameters())

    @property
    def products(self) -> int:
        """Multiplications of the matrix products that one token takes part in, heads left out, of both."""
        return sum(map(products_per_token, self.models))

    @property
    def longest(self) -> int | None:
        """Tokens that a conversation may have at most; `None` where both compute at any length."""
        return min((table for model in self.models if (table := position_table(model)) is not None), default=None)

    def encode(
        self, groups: Sequence[Group], *, max_length: int = 0, overlong: OverlongOrCut = "fail"
    ) -> tuple[list[EncodedGroup], Counter[str]]:
        """Tokenise groups as the policy reads them; as `RewardModel.encode`."""
        own = self.longest or UNLIMITED
        if max_length > own:
            raise ConfigError(
                f"Got max_length={max_length}, expected at most {own} tokens, beyond which the policy or its reference has no positions; "
                "lower max_length."
            )
        return encode_groups(groups, self.tokenizer, max_length=max_length or own, overlong=overlong)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Implicit rewards of every answer of every group, in the caller's order; `context` is unused."""
        return self.score_encoded(self.encode(groups)[0], origins=[group.origin or group.id for group in groups])

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        """Implicit rewards of encoded groups, in order; as `RewardModel.score_encoded`.

        Raises:
            EvaluationError: A reward is not finite.
        """
        rewards = [tuple(float(parts_L.sum()) for parts_L in row) for row in self._by_token(list(groups))]
        for place, row in enumerate(rewards):
            if not all(map(math.isfinite, row)):
                raise EvaluationError(
                    f"The implicit rewards of {origins[place] if origins else f'answer group {place}'} are {row}, expected finite numbers; "
                    "the weights of one of the models or its precision are broken. Score in fp32, or check the checkpoints."
                )
        return rewards

    def score_tokens(self, groups: Sequence[Group], context: object = None) -> list[tuple[TokenScores, ...]]:
        """Implicit rewards of every answer as it is read, each token adding its log-ratio; as `RewardModel.score_tokens`."""
        encoded, _ = self.encode(groups)
        readings = [tuple(np.concatenate(([0.0], parts_L.cumsum())) for parts_L in row) for row in self._by_token(encoded)]
        return token_scores(groups, encoded, self.tokenizer, readings)

    def _by_token(self, groups: Sequence[EncodedGroup]) -> list[tuple[NDArray[np.float64], ...]]:
        """What each token of each answer adds to its reward, shape `(L,)` an answer."""
        found: list[dict[tuple[int, ...], NDArray[np.float64]]] = [{} for _ in groups]
        for stream in self._streams(groups):
            owners = [place for place, part in stream for _ in part.conversations]
            batch = pack([part for _, part in stream]).to(self.policy.device)
            conversations = [one for _, part in stream for one in part.conversations]
            for place, conversation, parts_L in zip(owners, conversations, self._log_ratios(batch), strict=True):
                size = max(len(parts_L), 1) if self.how.over == "mean" else 1
                found[place][conversation] = self.how.beta * parts_L.numpy() / size
        return [tuple(values[one] for one in group.conversations) for values, group in zip(found, groups, strict=True)]

    def _streams(self, groups: Sequence[EncodedGroup]) -> Iterable[list[tuple[int, EncodedGroup]]]:
        """Parts of groups with their places, a stream's worth at a time; long and short apart where rotary factors ask for it."""
        boundaries = {boundary for model in self.models if (boundary := position_boundary(model)) is not None}
        parts = list(enumerate(groups))
        for boundary in boundaries:
            parts = [(place, side) for place, part in parts for side in split_at_position(part, boundary)]
        parts = [(place, one) for place, part in parts for one in split_large(part, tokens_per_batch=self.tokens_per_batch)]
        kinds: dict[int, list[tuple[int, EncodedGroup]]] = {}
        for entry in parts:
            longest = max(map(len, entry[1].conversations))
            kinds.setdefault(sum(longest > boundary for boundary in boundaries), []).append(entry)
        for kind in kinds.values():
            done = 0
            for run in fill((part for _, part in kind), tokens_per_batch=self.tokens_per_batch):
                yield kind[done : done + len(run)]
                done += len(run)

    @torch.inference_mode()
    def _log_ratios(self, batch: PackedBatch) -> Sequence[Tensor]:
        """Log-ratios of the answer tokens of each conversation of a stream, in float64."""
        with computing_in(self.precision, self.policy.device):
            first, *others = (answer_log_probs(model, batch) for model in self.models)
        ratio_L = (first.double() - sum(other.double() for other in others)).cpu()
        counts_C = torch.bincount(batch.target_conversation_L, minlength=len(batch.end_index_C))
        return ratio_L.split(counts_C.tolist())
