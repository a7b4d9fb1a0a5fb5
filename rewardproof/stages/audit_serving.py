"""Would the model score the same where it is served? Batch, padding, precision and template changed; the rewards should not move."""

# B answers, T tokens of the longest.
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from rewardproof.data import Group
from rewardproof.data.encoding import PLAIN_TEMPLATE, EncodedGroup, encode_text, render, shared_prefix
from rewardproof.data.group import as_chat
from rewardproof.models.factor_head import FACTORS_KEY
from rewardproof.models.families import is_padded_only
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import is_upcycled
from rewardproof.scoring import Scorer

PROMPTS, ANSWERS = 8, 3
"""Prompts of which so many answers are scored again."""
AT_ONCE = 16
"""Answers padded to one length together."""
Rewards = list[tuple[float, ...]]


class Check(NamedTuple):
    """Something that should not change a reward."""

    what: str
    """What is changed."""
    tolerance: float
    """Standard deviations that the largest change may have."""


CHECKS: dict[str, Check] = {
    "batch": Check("each prompt scored by itself instead of with others", 0.01),
    "right_padding": Check("answers padded at their end in one batch, by the stock model", 0.01),
    "left_padding": Check("answers padded at their beginning in one batch, by the stock model", 0.01),
    "bf16": Check("computed in bf16 instead of fp32", 0.1),
    "special_tokens": Check("special tokens added to what the template wrote", 0.01),
    "whitespace": Check("an empty line after the answer", 0.01),
    "plain_template": Check("a plain Human/Assistant template instead of the model's own", 0.01),
}
"""By the name that a limit calls them."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a check found.

    Attributes:
        moved: Largest change of a reward, in standard deviations; nothing where the check was skipped.
        reordered: Share of pairs of answers to one prompt that change their order.
        skipped: Why it was.
    """

    moved: float | None = None
    reordered: float | None = None
    skipped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"moved": self.moved, "reordered": self.reordered} | ({"skipped": self.skipped} if self.skipped else {})


Reading = Callable[[RewardModel, Group, int], tuple[int, ...]]
"""Tokens of a conversation, by the place of its answer, as a client might make them."""


def _with_special_tokens(scorer: RewardModel, group: Group, place: int) -> tuple[int, ...]:
    return tuple(int(token) for token in scorer.tokenizer(render(group, group.answers[place], scorer.tokenizer))["input_ids"])


def _with_empty_line(scorer: RewardModel, group: Group, place: int) -> tuple[int, ...]:
    *turns, last = group.answers[place]
    longer = (*turns, last._replace(content=f"{last.content}\n\n"))
    return encode_text(render(group, longer, scorer.tokenizer), scorer.tokenizer, raw=False)


def _in_plain_template(scorer: RewardModel, group: Group, place: int) -> tuple[int, ...]:
    messages = as_chat([*group.prompt, *group.answers[place]])
    text = str(scorer.tokenizer.apply_chat_template(messages, chat_template=PLAIN_TEMPLATE, tokenize=False))
    return encode_text(text, scorer.tokenizer, raw=False)


_READINGS: dict[str, Reading] = {
    "special_tokens": _with_special_tokens,
    "whitespace": _with_empty_line,
    "plain_template": _in_plain_template,
}


def serving_checks(scorer: Scorer, groups: Sequence[Group], *, unit: float) -> dict[str, Served]:
    """Score some answers again in every way that should make no difference.

    Args:
        scorer: Whose rewards.
        groups: Prompts and their answers, of which a few are taken.
        unit: Standard deviation of the rewards.
    """
    groups = [replace(group, answers=group.answers[:ANSWERS], scores=None) for group in groups[:PROMPTS]]
    together = scorer.score(groups)
    found = {"batch": _compared(together, [row for group in groups for row in scorer.score([group])], unit)}
    full = _in_precision(scorer, "fp32") if isinstance(scorer, RewardModel) else None
    in_full: list[tuple[float, ...]] = []
    for name in [name for name in CHECKS if name != "batch"]:
        if reason := _why_not(scorer, groups, name):
            found[name] = Served(skipped=reason)
            continue
        assert isinstance(scorer, RewardModel)
        assert full is not None
        in_full = in_full or full.score(groups)
        if name == "bf16":
            other = _in_precision(scorer, "bf16").score(groups)
        elif name in _READINGS:
            other = _read(full, groups, _READINGS[name])
        else:
            other = _padded(full, groups, left=name == "left_padding")
        found[name] = _compared(in_full, other, unit)
    return found


def _why_not(scorer: Scorer, groups: Sequence[Group], name: str) -> str:
    """Why a check cannot be made of a scorer; empty where it can."""
    if not isinstance(scorer, RewardModel) or scorer.experts is not None:
        return "only for a single reward model that runs here"
    if name.endswith("padding") and (is_upcycled(scorer.model) or hasattr(scorer.model.config, FACTORS_KEY)):
        return "no stock program runs this checkpoint: its weights are in a file of our own"
    if name.endswith("padding") and is_padded_only(scorer.model):
        return "a model with ALiBi is scored padded here too"
    if name in _READINGS and any(group.raw for group in groups):
        return "raw text has no template"
    return ""


def _compared(one: Rewards, other: Rewards, unit: float) -> Served:
    """How far two lists of rewards of the same answers are apart."""
    rows = list(zip(one, other, strict=True))
    moved = max((abs(a - b) for first, second in rows for a, b in zip(first, second, strict=True)), default=0.0)
    turned = [
        np.sign(first[a] - first[b]) != np.sign(second[a] - second[b])
        for first, second in rows
        for a in range(len(first))
        for b in range(a)
    ]
    return Served(moved / unit, float(np.mean(turned)) if turned else 0.0)


def _in_precision(scorer: RewardModel, precision: Precision) -> RewardModel:
    """The same model, computing otherwise."""
    return RewardModel(
        scorer.model, scorer.tokenizer, precision=precision, tokens_per_batch=scorer.tokens_per_batch, backend=scorer.backend
    )


def _read(scorer: RewardModel, groups: Sequence[Group], reading: Reading) -> Rewards:
    """Rewards of conversations whose tokens are made in another way."""
    conversations = [tuple(reading(scorer, group, place) for place in range(len(group.answers))) for group in groups]
    encoded = [EncodedGroup(rows, shared_prefix(rows), (0,) * len(rows), index) for index, rows in enumerate(conversations)]
    return scorer.score_encoded(encoded)


@torch.inference_mode()
def _padded(scorer: RewardModel, groups: Sequence[Group], *, left: bool) -> Rewards:
    """Rewards of the same tokens by the stock model in padded batches."""
    rows = [tokens for group in scorer.encode(groups)[0] for tokens in group.conversations]
    pad, device = scorer.model.config.pad_token_id, scorer.model.device
    values: list[float] = []
    for start in range(0, len(rows), AT_ONCE):
        run = rows[start : start + AT_ONCE]
        longest = max(map(len, run))
        ids_BT = torch.full((len(run), longest), pad, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for row, tokens in enumerate(run):
            place = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
            ids_BT[row, place] = torch.tensor(tokens, device=device)
            mask_BT[row, place] = 1
        values += scorer.model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].float().tolist()
    found = iter(values)
    return [tuple(next(found) for _ in group.answers) for group in groups]
