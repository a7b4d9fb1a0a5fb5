"""Answers that a policy has sampled: as text for who judges them, as tokens for who learns from them."""

# B answers, T tokens of the longest, L answer tokens.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.data.encoding import EncodedGroup, encode_prompt, shared_prefix
from rewardproof.data.group import Group, Message
from rewardproof.policy.sampling import Answer, Request, Sampling, iterate


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to answer, as text and as tokens."""

    group: Group
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, group: Group, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Encode a group's prompt, ready to be answered; answers that it came with are left aside."""
        return cls(replace(group, answers=(), scores=None), encode_prompt(group, tokenizer))


@dataclass(frozen=True, slots=True)
class Rollouts:
    """K answers to each of some prompts, by one policy.

    Attributes:
        groups: The prompts with their answers as text.
        encoded: The same as tokens, the end token included where one was drawn.
        finished_B: Whether each answer ended by itself, prompt by prompt.
        sampler_B: Log-probability of each answer under the copy that sampled it.
        mask_BT: Which places of a padded table are answer tokens; row by row they are in the order of a packed stream.
    """

    groups: tuple[Group, ...]
    encoded: tuple[EncodedGroup, ...]
    finished_B: Tensor
    sampler_B: Tensor
    mask_BT: Tensor

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of each answer, its end token counted."""
        return self.mask_BT.sum(dim=1)

    def table(self, values_L: Tensor) -> Tensor:
        """Values of the answer tokens in stream order as a padded table, shape `(B, T)`, with a gradient."""
        return as_table(values_L, self.mask_BT.to(values_L.device))

    def at_end(self, values_B: Tensor) -> Tensor:
        """A table that has each answer's value at its last token, 0 elsewhere."""
        table_BT = torch.zeros(self.mask_BT.shape, dtype=values_B.dtype)
        table_BT[torch.arange(len(values_B)), self.lengths_B - 1] = values_B
        return table_BT


def as_table(values_L: Tensor, mask_BT: Tensor) -> Tensor:
    """Values laid row by row where the mask is true, 0 elsewhere, with a gradient."""
    return values_L.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_L)


def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    streams: Sequence[int],
    *,
    answers: int,
    sampling: Sampling,
) -> Rollouts:
    """Sample answers to prompts.

    Args:
        model: The causal model that samples.
        tokenizer: Its tokenizer.
        prompts: At least one.
        streams: What names each prompt in the random numbers.
        answers: Answers a prompt.
        sampling: How to draw.
    """
    requests = [Request(prompt.token_ids, range(answers), stream) for prompt, stream in zip(prompts, streams, strict=True)]
    found = dict(iterate(model, requests, sampling))
    drawn = [found[place] for place in range(len(prompts))]
    lengths = torch.tensor([len(answer.token_ids) + answer.finished for made in drawn for answer in made])
    return Rollouts(
        groups=tuple(_as_text(prompt, made, tokenizer) for prompt, made in zip(prompts, drawn, strict=True)),
        encoded=tuple(_as_tokens(prompt, made, place) for place, (prompt, made) in enumerate(zip(prompts, drawn, strict=True))),
        finished_B=torch.tensor([answer.finished for made in drawn for answer in made]),
        sampler_B=torch.tensor([answer.logprob for made in drawn for answer in made]),
        mask_BT=torch.arange(int(lengths.max()))[None] < lengths[:, None],
    )


def _as_text(prompt: Prompt, made: Sequence[Answer], tokenizer: PreTrainedTokenizerBase) -> Group:
    texts = [str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)) for answer in made]
    return replace(prompt.group, answers=tuple((Message("assistant", text.strip()),) for text in texts))


def _as_tokens(prompt: Prompt, made: Sequence[Answer], place: int) -> EncodedGroup:
    ends = [() if answer.end is None else (answer.end,) for answer in made]
    conversations = tuple((*prompt.token_ids, *answer.token_ids, *end) for answer, end in zip(made, ends, strict=True))
    return EncodedGroup(conversations, shared_prefix(conversations), (len(prompt.token_ids),) * len(made), place)
