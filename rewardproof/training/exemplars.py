"""Labelled examples of an activation reward model: which of them are shown, and the prompts at whose ends heads are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rewardproof.config import Section
from rewardproof.data import Group, split_key, split_position
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import widest_pair
from rewardproof.data.questions import LabelledQuestion, Question, labelled_questions, question_tokens
from rewardproof.errors import ConfigError, DataError
from rewardproof.training.preparation import Read, noisy_pairs


class Exemplars(Section):
    """Labelled examples, and what each is for; every preference gives two, one for either reply."""

    count: Annotated[int, Field(ge=0)] = 80
    """Examples used at most, chosen by a hash of their prompts; 0 takes all."""
    shots: Annotated[int, Field(ge=0)] = 4
    """Examples with their replies that stand before the one at whose end heads are read."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Times that each example is read, behind other shots each time."""
    read_at: Literal["question", "reply"] = "question"
    """Read heads at the end of the example's question, where questions are read later, or at the end of its right reply."""
    select: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the prompts by which heads are selected; no activation is taken from them."""
    check: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts by which masks are compared; neither activations nor gradients are taken from them."""


class Parts(NamedTuple):
    """Examples by what they are for; no prompt is in two parts."""

    extract: list[LabelledQuestion]
    select: list[LabelledQuestion]
    check: list[LabelledQuestion]


def check_exemplars(settings: Exemplars) -> None:
    """Refuse settings by which no label would be read.

    Raises:
        ConfigError: Names the keys.
    """
    if not settings.shots and settings.read_at == "question":
        raise ConfigError(
            "Got exemplars.shots=0 with read_at=question, expected shots or read_at=reply: heads that have seen no reply know no label, "
            "and their mean is that of any text. Write exemplars.shots=4."
        )
    if settings.select + settings.check >= 1:
        raise ConfigError(
            f"Got exemplars.select={settings.select} and check={settings.check}, expected less than 1 together: activations are read from "
            "the other examples. Lower one."
        )


def parts_of(groups: Sequence[Group], read: Read, question: Question, settings: Exemplars) -> Parts:
    """Part the examples of preferences by prompt.

    Args:
        groups: Groups with an order; of several pairs the one whose scores are furthest apart is taken.
        read: How labels are disturbed.
        question: What is asked.
        settings: Shares and number.

    Raises:
        DataError: A part is too small.
    """
    by_prompt: dict[str, list[LabelledQuestion]] = {}
    ordered = sorted(groups, key=lambda group: split_position(group, "exemplars"))
    for group in ordered[: settings.count // 2 if settings.count else None]:
        pair = widest_pair(group, noisy_pairs(group, read))
        by_prompt.setdefault(split_key(group), []).extend(labelled_questions(group, pair, question))
    prompts = list(by_prompt)
    n_check, n_select = (max(1, round(share * len(prompts))) for share in (settings.check, settings.select))
    cuts = (prompts[n_check + n_select :], prompts[n_check : n_check + n_select], prompts[:n_check])
    parts = Parts(*([one for prompt in cut for one in by_prompt[prompt]] for cut in cuts))
    beside = len(parts.extract) - max((len(by_prompt[prompt]) for prompt in cuts[0]), default=0)
    if not all(parts) or beside < settings.shots:
        raise DataError(
            f"Got preferences on {len(prompts)} prompts, expected enough to select heads ({n_select}), compare masks ({n_check}) and show "
            f"{settings.shots} examples beside each that is read: no prompt is used for two of these. Give more rows, raise "
            "exemplars.count, or lower exemplars.shots."
        )
    return parts


def question_groups(examples: Sequence[LabelledQuestion], tokenizer: PreTrainedTokenizerBase) -> list[EncodedGroup]:
    """The questions alone, as scoring asks them."""
    return [_single(question_tokens(one.text, tokenizer)) for one in examples]


def shown_prompts(
    examples: Sequence[LabelledQuestion],
    question: Question,
    settings: Exemplars,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    replied: bool,
) -> list[EncodedGroup]:
    """Every example behind others with their replies, `settings.draws` times, one after the other.

    Args:
        examples: Those that heads are read from; the shots are drawn from other prompts among them.
        question: Gives the replies' words.
        settings: Number of shots and draws.
        tokenizer: The model's.
        seed: Of the shots.
        replied: Whether an example ends with its reply.
    """
    found: list[EncodedGroup] = []
    for number, one in enumerate(examples):
        others = [other for other in examples if split_key(other.group) != split_key(one.group)]
        dice = random.Random(f"{seed}\0{number}\0{one.text}")
        for _ in range(settings.draws):
            shots = [(other.text, question.words[other.right]) for other in dice.sample(others, settings.shots)]
            reply = question.words[one.right] if replied else ""
            found.append(_single(question_tokens(one.text, tokenizer, shots=shots, reply=reply)))
    return found


def _single(tokens: tuple[int, ...]) -> EncodedGroup:
    return EncodedGroup((tokens,), 0, (len(tokens) - 1,), 0)
