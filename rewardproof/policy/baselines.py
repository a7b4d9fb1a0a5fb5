"""Answers of the initial policy to the prompts of preferences: the baseline that RPO may be kept near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup, shared_prefix
from rewardproof.errors import DataError
from rewardproof.policy.sampling import Request, Sampling, iterate
from rewardproof.training.batches import TrainingGroup


def with_sampled_answers(model: PreTrainedModel, groups: Sequence[TrainingGroup], sampling: Sampling) -> list[TrainingGroup]:
    """Groups with one sampled answer more, as their last, which no pair names.

    Args:
        model: The policy as it starts.
        groups: Prompts with ordered answers.
        sampling: How to draw; what is drawn to a prompt depends on the seed and on its place alone.

    Raises:
        DataError: Preferences without a prompt.
    """
    for entry in groups:
        if not entry.group.answer_starts[0]:
            raise DataError(
                "Got preferences without a known prompt, expected one for each: with direct.baseline=sampled the policy answers them. Give "
                "prompts, or write direct.baseline=chosen."
            )
    requests = [Request(_prompt(entry.group), range(1), place) for place, entry in enumerate(groups)]
    drawn = dict(iterate(model, requests, sampling))
    found: list[TrainingGroup] = []
    for place, entry in enumerate(groups):
        (answer,) = drawn[place]
        prompt = requests[place].prompt_ids
        added = (*prompt, *answer.token_ids, *(() if answer.end is None else (answer.end,)))
        conversations = (*entry.group.conversations, added)
        starts = (*entry.group.answer_starts, len(prompt))
        group = replace(entry.group, conversations=conversations, shared=shared_prefix(conversations), answer_starts=starts)
        found.append(entry._replace(group=group))
    return found


def _prompt(group: EncodedGroup) -> tuple[int, ...]:
    """The prompt as the first answer has it, up to where that begins."""
    return group.conversations[0][: group.answer_starts[0]]
