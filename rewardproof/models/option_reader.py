"""`OptionReader`: which of a few words a language model would say next, with its heads as they are or replaced by masks.

A mask changes nothing before a conversation's last token, so a stream holds what comes before once, and the last token once a mask.
"""

# N conversations, M masks, L layers, H query heads, D head width, O options, C conversations of a stream.
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import fill, pack, split_large
from rewardproof.errors import DataError
from rewardproof.models.head_activations import Replacement, head_activations, option_log_probs
from rewardproof.models.packed import position_boundary, position_table
from rewardproof.models.precision import Precision, computing_in, default_budget


@dataclass(frozen=True, slots=True)
class OptionReader:
    """A language model and the words that are listened for.

    Attributes:
        model: A causal model.
        options: For each word the tokens that begin it.
        precision: Of the forward passes.
        tokens_per_batch: Token budget of one stream; 0 takes what keeps the device busy.
    """

    model: PreTrainedModel
    options: Sequence[Sequence[int]]
    precision: Precision = "fp32"
    tokens_per_batch: int = 0

    def activations(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """What every head puts out at the end of every conversation, in order, shape `(N, L, H, D)`, on the CPU.

        Raises:
            DataError: A conversation has more tokens than the model has positions.
        """
        found: dict[int, Tensor] = {}
        for places, parts in self._streams(groups, copies=1):
            batch = pack(parts).to(self.model.device)
            with torch.inference_mode(), computing_in(self.precision, self.model.device):
                found |= zip(places, head_activations(self.model, batch).cpu(), strict=True)
        values = torch.stack([found[place] for place in range(len(found))])
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def log_probs(self, groups: Sequence[EncodedGroup], values_LHD: Tensor, masks_MLH: Tensor) -> Tensor:
        """Log-probability of each option after every conversation under every mask, shape `(N, M, O)`, on the CPU.

        Args:
            groups: The conversations.
            values_LHD: What replaced heads put out, shape `(L, H, D)`.
            masks_MLH: Which heads each mask replaces, true or false, shape `(M, L, H)`.

        Raises:
            DataError: A conversation has more tokens than the model has positions.
        """
        device, n_masks = self.model.device, len(masks_MLH)
        values_1LHD, masks_MLH = values_LHD.to(device)[None], masks_MLH.to(device)
        found: dict[int, Tensor] = {}
        for places, parts in self._streams(groups, copies=n_masks):
            batch = pack(parts).to(device)
            what = Replacement(masks_MLH[torch.tensor(places, device=device) % n_masks], values_1LHD)
            with torch.inference_mode(), computing_in(self.precision, device):
                found |= zip(places, option_log_probs(self.model, batch, self.options, what).cpu(), strict=True)
        if not found:
            return torch.empty(0, n_masks, len(self.options))
        return torch.stack([found[place] for place in range(len(found))]).unflatten(0, (-1, n_masks))

    def _streams(self, groups: Sequence[EncodedGroup], *, copies: int) -> Iterator[tuple[list[int], list[EncodedGroup]]]:
        """Streams with `copies` of every conversation side by side, each with its conversations' places among all copies."""
        self._refuse_too_long(groups)
        boundary = position_boundary(self.model)
        budget = self.tokens_per_batch or default_budget(self.model.device)
        kinds: tuple[list[tuple[int, EncodedGroup]], ...] = ([], [])
        place = 0
        for group in groups:
            laid_out = _cheapest(group, copies) if boundary is None else _apart(group, copies)
            for part in (one for entry in laid_out for one in split_large(entry, tokens_per_batch=budget)):
                kinds[boundary is not None and len(part.conversations[0]) > boundary].append((place, part))
                place += len(part.conversations)
        for kind in kinds:
            done = 0
            for run in fill((part for _, part in kind), tokens_per_batch=budget):
                firsts = kind[done : done + len(run)]
                yield [first + number for first, part in firsts for number in range(len(part.conversations))], run
                done += len(run)

    def _refuse_too_long(self, groups: Sequence[EncodedGroup]) -> None:
        table = position_table(self.model)
        longest = max((len(tokens) for group in groups for tokens in group.conversations), default=0)
        if table is not None and longest > table:
            raise DataError(
                f"Got a question of {longest} tokens, expected at most {table}: this {self.model.config.model_type} model has no position "
                "for a later token. Pass overlong=drop or overlong=truncate_prompt, show fewer examples before each (exemplars.shots), or "
                "take a model with rotary positions."
            )


def _apart(group: EncodedGroup, copies: int) -> list[EncodedGroup]:
    """A group a conversation: its copies share all but the last token."""
    return [
        EncodedGroup((tokens,) * copies, len(tokens) - 1 if copies > 1 else 0, (len(tokens) - 1,) * copies, group.index)
        for tokens in group.conversations
    ]


def _cheapest(group: EncodedGroup, copies: int) -> list[EncodedGroup]:
    """One group of all copies, which share what the conversations share, or a group a conversation, whichever has fewer tokens."""
    apart = _apart(group, copies)
    own = sum(len(tokens) - group.shared for tokens in group.conversations)
    if group.shared + copies * own > sum(part.n_tokens for part in apart):
        return apart
    conversations = tuple(tokens for tokens in group.conversations for _ in range(copies))
    starts = tuple(start for start in group.answer_starts for _ in range(copies))
    return [EncodedGroup(conversations, group.shared, starts, group.index)]
