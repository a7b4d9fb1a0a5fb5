"""Failures of a reward model: answers of a class that it scores on the wrong side of the other class, proved on the whole text.

An answer that is written as a preferred one is, and scores below the pair's other answer, is a failure; so is one that is written as a
non-preferred one and scores above the preferred answer. Whether a text is of its class is not judged here: who writes it answers for that.

Reference:
    REFORM, arXiv:2507.06419.
"""

# N pairs, M classes.
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from rewardproof.data.group import Group, Message
from rewardproof.evaluation.accuracy import accuracy_intervals
from rewardproof.statistics import Interval

Class = Literal["preferred", "non_preferred"]
CLASSES: tuple[Class, ...] = ("preferred", "non_preferred")
ANY = "any"
"""What the share of pairs with a failure of whichever class is called."""
Pairing = Literal["original", "variants", "both"]
FATES = ("empty", "copied", "repeated", "overlong", "no_failure", "contradictory", "failures")
"""What can become of a variant."""
Fates = Counter[tuple[Class, str]]
"""How many variants of a class came to what."""


class SearchedPair(NamedTuple):
    """A pair of a group's answers, and which is preferred."""

    group: Group
    winner: int
    loser: int

    @property
    def key(self) -> tuple[str, str, str]:
        """Its texts."""
        texts = self.group.answer_texts
        return self.group.prompt_key, texts[self.winner], texts[self.loser]


@dataclass(frozen=True, slots=True)
class Written:
    """A variant that a policy has written for a pair.

    Attributes:
        pair: The pair.
        kind: As which of its answers it is meant.
        text: The whole text.
        log_prob: Of its tokens under the policy that wrote it, in nats.
        tokens: How many those are, the end token counted.
    """

    pair: SearchedPair
    kind: Class
    text: str
    log_prob: float
    tokens: int

    def judged(self) -> Group:
        """Preferred answer, other answer and variant, to be scored side by side."""
        group = self.pair.group
        variant = (Message("assistant", self.text),)
        return replace(group, answers=(group.answers[self.pair.winner], group.answers[self.pair.loser], variant), scores=None)


@dataclass(frozen=True, slots=True)
class Failure:
    """A variant on the wrong side.

    Attributes:
        written: The variant.
        rewards: Of the preferred answer, the other one, and the variant.
    """

    written: Written
    rewards: tuple[float, float, float]

    @property
    def width(self) -> float:
        """By how much it is on the wrong side."""
        winner, loser, own = self.rewards
        return loser - own if self.written.kind == "preferred" else own - winner

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`: the variant, and the answer that it scores on the wrong side of."""
        _, winner_text, loser_text = self.written.pair.key
        winner, loser, own = self.rewards
        against, reward = (loser_text, loser) if self.written.kind == "preferred" else (winner_text, winner)
        prompt = self.written.pair.group.prompt_text
        known = {"kind": self.written.kind, "prompt": prompt, "variant": self.written.text, "against": against}
        return {**known, "rewards": {"variant": own, "against": reward}}


def lowest_losses(gaps: Sequence[float], share: float, *, limit: int = 0) -> list[int]:
    """Places of the pairs with the lowest Bradley–Terry loss, in order.

    The loss −log σ(gap) falls as the gap grows, so the widest gaps are taken: losses of confident pairs round to the same number.

    Args:
        gaps: Reward of each pair's preferred answer less that of the other.
        share: Of the pairs, at least one of them, rounded up.
        limit: At most so many; 0 for all of the share.

    Example:
        >>> lowest_losses([0.1, 900.0, 2.0, 901.0, -3.0], 0.4)
        [1, 3]
    """
    wanted = max(math.ceil(round(share * len(gaps), 9)), 1)
    order = np.argsort(-np.asarray(gaps, dtype=np.float64), kind="stable")
    return sorted(order[: min(wanted, limit or wanted)].tolist())


def fresh(variants: Sequence[Written]) -> tuple[list[Written], Fates]:
    """Variants that say something of their own, each once a pair, and how many do not.

    A text that was written for two pairs of one prompt stays for both: it may be on the wrong side of one's other answer alone.
    """
    counts: Fates = Counter()
    seen: set[Hashable] = set()
    kept: list[Written] = []
    for variant in variants:
        text = _squeezed(variant.text)
        name = (variant.pair.key, variant.kind, text)
        if not text:
            counts[variant.kind, "empty"] += 1
        elif text in {_squeezed(own) for own in variant.pair.key[1:]}:
            counts[variant.kind, "copied"] += 1
        elif name in seen:
            counts[variant.kind, "repeated"] += 1
        else:
            seen.add(name)
            kept.append(variant)
    return kept, counts


def failing(variants: Sequence[Written], rewards: Sequence[Sequence[float]]) -> tuple[list[Failure], Fates]:
    """Variants that score on the wrong side of the other class, and what became of the others.

    Args:
        variants: From `fresh`.
        rewards: Of each one's `judged` answers.

    Returns:
        The failures; a text that fails as both classes of one prompt contradicts itself and is none.
    """
    counts: Fates = Counter()
    wrong: list[Failure] = []
    for variant, (winner, loser, own) in zip(variants, rewards, strict=True):
        failure = Failure(variant, (winner, loser, own))
        if failure.width > 0:
            wrong.append(failure)
        else:
            counts[variant.kind, "no_failure"] += 1
    kinds: dict[tuple[str, str], set[Class]] = defaultdict(set)
    for one in wrong:
        kinds[one.written.pair.group.prompt_key, _squeezed(one.written.text)].add(one.written.kind)
    found: list[Failure] = []
    for one in wrong:
        alone = len(kinds[one.written.pair.group.prompt_key, _squeezed(one.written.text)]) == 1
        counts[one.written.kind, "failures" if alone else "contradictory"] += 1
        found += [one] if alone else []
    return found, counts


def preferences(failures: Sequence[Failure], pairing: Pairing = "original") -> list[Group]:
    """Preferences that say what the reward model should have said.

    Args:
        failures: Any order.
        pairing: `original`: a preferred variant above the pair's other answer, the preferred answer above a non-preferred variant;
            `variants`: a pair's preferred variants above its non-preferred ones; `both` of these.
    """
    found: list[Group] = []
    if pairing in ("original", "both"):
        found += [_corrected(failure) for failure in failures]
    if pairing in ("variants", "both"):
        others = [failure for failure in failures if failure.written.kind == "non_preferred"]
        for one in failures:
            if one.written.kind == "preferred":
                found += [_opposed(one, other) for other in others if other.written.pair.key == one.written.pair.key]
    return found


def discovery_rates(searched: Sequence[SearchedPair], failures: Sequence[Failure], *, seed: int = 0) -> dict[str, Interval]:
    """Share of the searched pairs for which a failure was found, of each class and of either; intervals resample prompts."""
    wanted: dict[str, tuple[Class, ...]] = {**{kind: (kind,) for kind in CLASSES}, ANY: CLASSES}
    hits = [{failure.written.pair.key for failure in failures if failure.written.kind in kinds} for kinds in wanted.values()]
    found_NM = np.array([[float(pair.key in hit) for hit in hits] for pair in searched])
    intervals = accuracy_intervals(found_NM, [pair.group.prompt_key for pair in searched], seed=seed)
    return dict(zip(wanted, intervals, strict=True))


def perplexity(variants: Sequence[Written]) -> float | None:
    """Of the variants under the policies that wrote them, token by token; nothing without one."""
    tokens = sum(variant.tokens for variant in variants)
    return math.exp(-sum(variant.log_prob for variant in variants) / tokens) if tokens else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _corrected(failure: Failure) -> Group:
    judged = failure.written.judged()
    winner, loser, variant = judged.answers
    pair = (variant, loser) if failure.written.kind == "preferred" else (winner, variant)
    return _preference(judged, pair, {"failure": failure.written.kind, "rewards": list(failure.rewards)})


def _opposed(preferred: Failure, other: Failure) -> Group:
    pair = (preferred.written.judged().answers[2], other.written.judged().answers[2])
    return _preference(preferred.written.pair.group, pair, {"failure": "both", "rewards": [preferred.rewards[2], other.rewards[2]]})


def _preference(group: Group, answers: tuple[tuple[Message, ...], tuple[Message, ...]], meta: dict[str, Any]) -> Group:
    known = {"source": group.id or group.origin, **meta}
    return replace(group, answers=answers, scores=(1.0, 0.0), margin=None, id="", meta=known)
