"""Groups into ordered pairs, with a bounded number a group, controlled label noise, and single answers joined by prompt.

Every choice here is a hash of the texts: it depends on neither the order of rows and answers nor any training seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rewardproof.data.group import Group
from rewardproof.errors import ConfigError, DataError


class Pair(NamedTuple):
    """Indices of two answers of a group, the strength of the preference where the data gives one, and how likely its label is wrong."""

    winner: int
    loser: int
    margin: float | None
    doubt: float = 0.0


def ordered_pairs(group: Group, *, limit: int = 0) -> tuple[Pair, ...]:
    """Every pair of answers whose scores differ.

    Args:
        group: The group; its margin belongs to its one pair when it has two answers.
        limit: At most so many pairs, chosen by a hash of the texts; 0 is all.

    Returns:
        The pairs, by winner and then loser.

    Raises:
        ConfigError: When the limit is negative.
    """
    if limit < 0:
        raise ConfigError(
            f"Got a limit of {limit} pairs a group; expected 0 for all or a positive number. A group cannot give fewer than 0."
        )
    if group.scores is None:
        return ()
    margin = group.margin if len(group.answers) == 2 else None
    scores = group.scores
    places = range(len(scores))
    pairs = [Pair(winner, loser, margin) for winner in places for loser in places if scores[winner] > scores[loser]]
    if not limit or len(pairs) <= limit:
        return tuple(pairs)
    texts = group.answer_texts
    key = group.prompt_key
    return tuple(sorted(sorted(pairs, key=lambda pair: _pair_hash(key, texts, pair, "limit"))[:limit]))


def widest_pair(group: Group, pairs: Sequence[Pair]) -> Pair:
    """The pair whose scores are furthest apart, whichever way round it is; the first of equals."""
    scores = group.scores or ()
    return max(pairs, key=lambda pair: abs(scores[pair.winner] - scores[pair.loser]))


def with_label_noise(group: Group, pairs: Sequence[Pair], *, rate: float, seed: int) -> tuple[Pair, ...]:
    """Flip each pair with probability `rate`, as a noisy annotator would.

    The draw is fixed on the data: a hash of the prompt, the two answers' texts and the seed, the same whichever answer comes first.

    Args:
        group: The group that the pairs index.
        pairs: The pairs.
        rate: Probability of a flip, in [0, 1]; the margin stays.
        seed: Seed of the noise, not of the training.

    Returns:
        The pairs, in their order, some with winner and loser exchanged.

    Raises:
        ConfigError: When the rate is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ConfigError(
            f"Got a label noise rate of {rate}; expected a probability from 0 to 1. It is the share of pairs flipped; correct it."
        )
    if rate == 0:
        return tuple(pairs)
    texts, key = group.answer_texts, group.prompt_key
    draws = (int(_pair_hash(key, texts, pair, f"noise {seed}")[:13], 16) / 16**13 for pair in pairs)
    return tuple(swapped(pair) if draw < rate else pair for pair, draw in zip(pairs, draws, strict=True))


def swapped(pair: Pair) -> Pair:
    """The pair with the other answer preferred."""
    return pair._replace(winner=pair.loser, loser=pair.winner)


def merge_single_answers(groups: Iterable[Group]) -> list[Group]:
    """Join the one-answer groups of each prompt into one group, at the place of the first.

    Groups of several answers, and of no known prompt, stay as they are. Of a joined group, `meta` holds lists with one entry an answer; the
    other columns are the first one's.

    Args:
        groups: Rows of KTO or of rated answers, and any others.

    Raises:
        DataError: When some answers of a prompt have a score and others have none.
    """
    members: dict[str, list[Group]] = {}
    order: list[str | Group] = []
    for group in groups:
        if len(group.answers) != 1 or not group.prompt_text.strip():
            order.append(group)
            continue
        if group.prompt_key not in members:
            order.append(group.prompt_key)
        members.setdefault(group.prompt_key, []).append(group)
    return [_joined(members[item]) if isinstance(item, str) else item for item in order]


def _joined(members: list[Group]) -> Group:
    first = members[0]
    if len(members) == 1:
        return first
    judged = [group.scores for group in members if group.scores is not None]
    if judged and len(judged) < len(members):
        without = next(group.origin for group in members if group.scores is None)
        raise DataError(
            f"{without}: got an answer without a score among scored answers to the same prompt; expected scores for all or none. It could "
            "not be ranked; score it or drop it."
        )
    names = dict.fromkeys(name for group in members for name in group.meta)
    meta: dict[str, Any] = {name: [group.meta.get(name) for group in members] for name in names}
    scores = tuple(score for part in judged for score in part) if judged else None
    return replace(first, answers=tuple(group.answers[0] for group in members), scores=scores, meta=meta)


def _pair_hash(key: str, texts: Sequence[str], pair: Pair, purpose: str) -> str:
    both = sorted((texts[pair.winner], texts[pair.loser]))
    return hashlib.sha256(json.dumps([purpose, key, *both]).encode()).hexdigest()
