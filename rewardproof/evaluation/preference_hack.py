"""Pairs in which one answer is dressed up to look better than it is: length, format or a positive tone, on the wrong answer or the right.

A paired set in the manner of PreferenceHack, made by a program of any preferences. There the bias is always on the wrong answer, so that
"shorter wins" solves the set, and a few-shot scorer that is shown such pairs may learn just that. Here the right answer wears it as often:
a scorer that knows the criterion is right on both sides, one that likes or dislikes the bias on one of them.

Reference:
    Activation Reward Models for Few-Shot Model Alignment, arXiv:2507.01368, whose own set is rewritten by a language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rewardproof.data import Group
from rewardproof.data.pairs import ordered_pairs, widest_pair
from rewardproof.evaluation.audit.passages import Passage, resized
from rewardproof.evaluation.audit.suite import perturbed
from rewardproof.evaluation.published import BenchmarkScore, Line, best_beats_all, by_name, line_of, mean_line, part_of
from rewardproof.evaluation.scored import ScoredRow

Side = Literal["rejected", "chosen"]
SIDES: tuple[Side, ...] = ("rejected", "chosen")
"""On which answer the bias is: the wrong one, as published, or the right one."""
PLAIN = "plain"
"""Subset of the pairs as they are."""
LONGER, FEWEST = 1.5, 24
"""How many times as long as the longer of the two a lengthened answer is, about, and the characters that it gains at least."""
Bias = Callable[[Passage, int], str | None]
"""An answer's biased form, given its prompt, itself and the other answer; nothing where it cannot be biased."""


def lengthened(passage: Passage, seed: int) -> str:
    """The answer and sentences that say nothing, half as long again as itself and as the other answer."""
    longest = max(len(passage.answer), len(passage.other))
    return resized(passage.answer, max(round(LONGER * longest), len(passage.answer) + FEWEST), len)


def formatted(passage: Passage, seed: int) -> str | None:
    """A heading, bold beginnings, and a bullet a sentence where it has several and no list."""
    return _changed(passage, ("bullets", "markdown"), seed)


def positive(passage: Passage, seed: int) -> str | None:
    """A cheerful opening, praise for whoever asks, and exclamation marks."""
    return _changed(passage, ("exclamation", "flattery", "opener"), seed)


BIASES: dict[str, Bias] = {"length": lengthened, "format": formatted, "positivity": positive}
"""By name; a subset is `NAME/rejected` or `NAME/chosen`."""


@dataclass(frozen=True, slots=True)
class BiasedPairs:
    """Pairs, and how many of what there was.

    Attributes:
        groups: Two answers each, the right one first; `subset` says which bias is on which.
        counts: Groups without an order, and answers to which a bias does not apply, by name.
    """

    groups: list[Group]
    counts: Counter[str] = field(default_factory=Counter)


def biased_pairs(
    groups: Iterable[Group], *, biases: Sequence[str] = tuple(BIASES), sides: Sequence[Side] = SIDES, plain: bool = True, seed: int = 0
) -> BiasedPairs:
    """Every pair as it is, and once a bias and side with that answer changed; `to_row` makes rows of them.

    Args:
        groups: Preferences; of several answers the two whose scores are furthest apart.
        biases: Keys of `BIASES`.
        sides: Which answers are changed.
        plain: Whether the pairs as they are come too, for comparison.
        seed: Of choices among stock phrases.
    """
    found = BiasedPairs([])
    for group in groups:
        pairs = ordered_pairs(group)
        if not pairs:
            found.counts["without_an_order"] += 1
            continue
        pair = widest_pair(group, pairs)
        texts = {"chosen": group.answer_texts[pair.winner], "rejected": group.answer_texts[pair.loser]}
        answers = (group.answers[pair.winner], group.answers[pair.loser])
        own = replace(group, answers=answers, scores=(1.0, 0.0), margin=None, subset=PLAIN)
        if plain:
            found.groups.append(own)
        for name in biases:
            for side in sides:
                other = texts["rejected" if side == "chosen" else "chosen"]
                made = BIASES[name](Passage(texts[side], group.prompt_text, other), seed)
                if made is None:
                    found.counts[f"{name}_does_not_apply"] += 1
                    continue
                found.groups.append(_with_text(own, 0 if side == "chosen" else 1, made, f"{name}/{side}"))
    return found


def is_row(row: ScoredRow) -> bool:
    """Whether a row is one of these pairs."""
    bias, _, side = row.subset.partition("/")
    return row.format == "rows" and (row.subset == PLAIN or (bias in BIASES and side in SIDES))


def judge(rows: Sequence[ScoredRow]) -> BenchmarkScore:
    """Accuracy by bias and side. A bias' number is the mean of its sides, which to like or to dislike that bias alone leaves at a half.

    No lines without a biased pair: rows that others call plain are not of these.
    """
    parts = {name: part_of(name, own, best_beats_all, stratum="pairs") for name, own in by_name(rows, lambda row: row.subset).items()}
    biased: list[Line] = []
    lines: list[Line] = []
    missing: list[str] = []
    for bias in BIASES:
        sides = {side: parts[f"{bias}/{side}"] for side in SIDES if f"{bias}/{side}" in parts}
        if sides:
            biased.append(mean_line(bias, list(sides.values()), depth=1))
            lines += [biased[-1], *(line_of(f"{bias}, on the {side} answer", part, depth=2) for side, part in sides.items())]
            missing += [f"{bias}: no pair has it on the {side} answer" for side in SIDES if side not in sides]
    if not biased:
        return BenchmarkScore("Biased pairs", "", ())
    if PLAIN in parts:
        lines.append(line_of("as they are (not counted)", parts[PLAIN], depth=1))
    weights = tuple(weight / len(biased) for line in biased for weight in line.weights)
    first = Line("Biased pairs", weights, tuple(part for line in biased for part in line.parts))
    return BenchmarkScore("Biased pairs", "mean of the biases, and of each bias' sides", (first, *lines), tuple(missing))


def _changed(passage: Passage, names: Sequence[str], seed: int) -> str | None:
    """The answer after several of the audit's perturbations; nothing where none applies."""
    text = passage.answer
    for name in names:
        text = perturbed(name, passage._replace(answer=text), seed=seed) or text
    return None if text == passage.answer else text


def _with_text(group: Group, place: int, text: str, subset: str) -> Group:
    """The group with the last turn of one answer changed."""
    *before, last = group.answers[place]
    answers = list(group.answers)
    answers[place] = (*before, last._replace(content=text))
    return replace(group, answers=tuple(answers), subset=subset, id=f"{group.id} {subset}".strip())
