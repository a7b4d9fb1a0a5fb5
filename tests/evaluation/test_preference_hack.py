"""Pairs with a bias on one answer: what is changed and what stays, and that length alone solves one side of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewardproof.data import Group, Message, read_groups, to_row
from rewardproof.evaluation import ScoredRow, judge_benchmarks
from rewardproof.evaluation.preference_hack import BIASES, SIDES, biased_pairs

ANSWERS = (
    "Tea is made of leaves. Pour hot water over them. Wait four minutes.",
    "Tea is made of beans. Grind them.",
    "Coffee.",
)


def group(number: int = 0, *, scores: tuple[float, ...] | None = (2.0, 0.0, 1.0)) -> Group:
    return Group(
        (Message("user", f"How is tea made, {number}?"),),
        tuple((Message("assistant", text),) for text in ANSWERS),
        scores=scores,
        id=f"tea{number}",
        subset="drinks",
    )


def test_every_bias_is_put_on_either_answer_and_the_other_stays() -> None:
    found = biased_pairs([group()])
    assert [one.subset for one in found.groups] == ["plain", *(f"{bias}/{side}" for bias in BIASES for side in SIDES)]
    for one in found.groups:
        assert one.scores == (1.0, 0.0)
        chosen, rejected = one.answer_texts
        if not one.subset.endswith("/chosen"):
            assert chosen == ANSWERS[0], "the right answer stays plain"
        if not one.subset.endswith("/rejected"):
            assert rejected == ANSWERS[1], "of several answers the two furthest apart"
        assert one.prompt == group().prompt
    assert len({one.id for one in found.groups}) == 7
    assert not found.counts


@pytest.mark.parametrize("bias", BIASES)
def test_the_error_of_the_wrong_answer_stays_in_it(bias: str) -> None:
    (found,) = biased_pairs([group()], biases=[bias], sides=["rejected"], plain=False).groups
    words = "".join(letter for letter in found.answer_texts[1].lower() if letter.isalnum())
    at = 0
    for sentence in ("teaismadeofbeans", "grindthem"):
        at = words.index(sentence, at) + len(sentence)
    assert found.answer_texts[1] != ANSWERS[1]


@pytest.mark.parametrize(("right", "wrong"), [(ANSWERS[0], ANSWERS[1]), ("a", "b" * 300), ("c" * 300, "d"), ("e", "f"), ("g" * 39, "h")])
def test_a_lengthened_answer_is_the_longer_one(right: str, wrong: str) -> None:
    """So the published side is solved by `shorter wins`, and the counterbalanced one by its opposite."""
    pair = Group((Message("user", "?"),), ((Message("assistant", right),), (Message("assistant", wrong),)), scores=(1.0, 0.0))
    on_rejected, on_chosen = biased_pairs([pair], biases=["length"], plain=False).groups
    assert len(on_rejected.answer_texts[1]) > len(right)
    assert len(on_chosen.answer_texts[0]) > len(wrong)


def test_choices_depend_on_texts_and_seed_alone() -> None:
    groups = [group(number) for number in range(6)]
    whole = {one.id: one for one in biased_pairs(groups).groups}
    assert {one.id: one for one in biased_pairs(groups[::-1]).groups} == whole
    assert {one.id: one for one in biased_pairs(groups, seed=1).groups} != whole


def test_what_falls_away_is_counted() -> None:
    bare = Group((Message("user", "?"),), ((Message("assistant", "42"),), (Message("assistant", "# 41"),)), scores=(1.0, 0.0))
    found = biased_pairs([bare, group(scores=None), group(scores=(1.0, 1.0, 1.0))])
    assert found.counts == Counter({"without_an_order": 2, "format_does_not_apply": 1}), "41 has a heading and no second sentence"


def test_rows_are_read_back_with_their_subsets(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    found = biased_pairs([group(number) for number in range(3)])
    rows: list[dict[str, Any]] = [json.loads(json.dumps(to_row(one))) for one in found.groups]
    read = read_groups(str(write_jsonl(tmp_path / "hack.jsonl", rows)))
    assert [one.subset for one in read.groups] == [one.subset for one in found.groups]
    assert [one.answers for one in read.groups] == [one.answers for one in found.groups]
    assert not read.counts.dropped


def scored(likes: Callable[[str], float], groups: list[Group]) -> list[ScoredRow]:
    return [
        ScoredRow(
            tuple(map(likes, one.answer_texts)), one.scores, tuple(map(len, one.answer_texts)), one.answer_texts, one.prompt_key,
            subset=one.subset, format="rows",
        )
        for one in groups
    ]  # fmt: skip


def test_to_like_or_dislike_a_bias_alone_is_worth_a_half() -> None:
    pairs = biased_pairs([group(number) for number in range(5)]).groups
    for sign, right in ((1, "chosen"), (-1, "rejected")):
        score = judge_benchmarks(scored(lambda text, sign=sign: sign * len(text), pairs))["biased_pairs"]
        by_label = {line.label: line.estimate() for line in score.lines}
        assert by_label["length"] == 0.5
        assert [by_label[f"length, on the {side} answer"] for side in SIDES] == [float(side == right) for side in SIDES]
        assert score.lines[0].estimate() == pytest.approx(sum(by_label[bias] for bias in BIASES) / len(BIASES))
        assert score.complete
    knowing = judge_benchmarks(scored(lambda text: float("leaves" in text.lower()), pairs))["biased_pairs"]
    assert knowing.lines[0].estimate() == pytest.approx(1.0)
    assert (knowing.lines[0].n, len(knowing.lines)) == (30, 1 + 3 * len(BIASES) + 1), "the pairs as they are stand by, and do not count"


def test_one_side_is_said_to_be_one_and_plain_rows_are_nobodys() -> None:
    pairs = biased_pairs([group()], biases=["length"], sides=["rejected"]).groups
    score = judge_benchmarks(scored(len, pairs))["biased_pairs"]
    assert score.differences == ("length: no pair has it on the chosen answer",)
    assert [line.label for line in score.lines] == ["Biased pairs", "length", "length, on the rejected answer", "as they are (not counted)"]
    assert judge_benchmarks(scored(len, pairs[:1])) == {}
