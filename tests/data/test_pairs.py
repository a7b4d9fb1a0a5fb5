"""Pairs, label noise and joined answers depend on the texts alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data import Group, Message, Pair, merge_single_answers, ordered_pairs, with_label_noise
from rewardproof.errors import ConfigError, DataError


def group(*scores: float, prompt: str = "p", margin: float | None = None) -> Group:
    answers = tuple((Message("assistant", f"answer {number}"),) for number in range(len(scores)))
    return Group((Message("user", prompt),), answers, scores, margin)


def permuted(original: Group, order: list[int]) -> Group:
    assert original.scores is not None
    return replace(original, answers=tuple(original.answers[i] for i in order), scores=tuple(original.scores[i] for i in order))


def texts(of: Group, pairs: tuple[Pair, ...]) -> set[tuple[str, str]]:
    return {(of.answer_texts[pair.winner], of.answer_texts[pair.loser]) for pair in pairs}


def test_every_strict_order_is_a_pair() -> None:
    assert ordered_pairs(group(2.0, 1.0, 2.0)) == (Pair(0, 1, None), Pair(2, 1, None))
    assert ordered_pairs(group(0.0, 1.0, margin=3.0)) == (Pair(1, 0, 3.0),)
    assert ordered_pairs(group(1.0, 1.0)) == ()
    assert ordered_pairs(replace(group(1.0, 0.0), scores=None)) == ()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), limit=st.integers(0, 20))
def test_a_limit_chooses_the_same_texts_in_any_order(order: list[int], limit: int) -> None:
    original = group(5.0, 4.0, 3.0, 3.0, 1.0, 0.0)
    chosen = ordered_pairs(original, limit=limit)
    assert len(chosen) == min(limit or 14, 14)
    assert set(chosen) <= set(ordered_pairs(original))
    other = permuted(original, order)
    assert texts(other, ordered_pairs(other, limit=limit)) == texts(original, chosen)


def test_a_limit_favours_no_place() -> None:
    counts = [0] * 15
    for number in range(600):
        many = group(*map(float, range(6)), prompt=str(number))
        every = ordered_pairs(many)
        for pair in ordered_pairs(many, limit=5):
            counts[every.index(pair)] += 1
    assert min(counts) > 150
    assert max(counts) < 250


def test_noise_flips_its_share_and_no_more() -> None:
    groups = [group(1.0, 0.0, prompt=str(number), margin=2.0) for number in range(2000)]
    flips = sum(with_label_noise(each, ordered_pairs(each), rate=0.25, seed=0)[0].winner == 1 for each in groups)
    assert abs(flips - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
    pairs = ordered_pairs(groups[0])
    assert with_label_noise(groups[0], pairs, rate=0.0, seed=0) == pairs
    assert with_label_noise(groups[0], pairs, rate=1.0, seed=0) == (Pair(1, 0, 2.0),)


def test_noise_is_fixed_on_the_data() -> None:
    groups = [group(1.0, 0.0, prompt=str(number)) for number in range(300)]

    def flipped(of: list[Group], seed: int) -> set[str]:
        return {each.prompt_text for each in of if with_label_noise(each, (Pair(0, 1, None),), rate=0.3, seed=seed)[0].winner == 1}

    first = flipped(groups, 1)
    assert flipped(random.Random(3).sample(groups, 300), 1) == first
    assert flipped([permuted(each, [1, 0]) for each in groups], 1) == first
    assert flipped(groups, 2) != first
    assert all(
        with_label_noise(each, (Pair(0, 1, None),), rate=0.6, seed=1)[0].winner == 1 for each in groups if each.prompt_text in first
    ), "more noise keeps the flips of less noise"


def test_single_answers_of_a_prompt_are_joined() -> None:
    def single(prompt: str, text: str, score: float) -> Group:
        return Group((Message("user", prompt),), ((Message("assistant", text),),), (score,), meta={"verbosity": len(text)}, id=text)

    pair = group(1.0, 0.0)
    raw = Group((), ((Message("assistant", "x"),),), (1.0,), raw=True)
    merged = merge_single_answers([single("a", "one", 3.0), pair, single("b", "two", 2.0), raw, single("a ", "three", 1.0)])
    assert [each.answer_texts for each in merged] == [("one", "three"), pair.answer_texts, ("two",), ("x",)]
    assert (merged[0].scores, merged[0].id, merged[0].meta) == ((3.0, 1.0), "one", {"verbosity": [3, 5]})
    assert merged[2].meta == {"verbosity": 3}


def test_scored_and_unscored_answers_do_not_join() -> None:
    scored = Group((Message("user", "a"),), ((Message("assistant", "x"),),), (1.0,))
    assert merge_single_answers([replace(scored, scores=None)] * 2)[0].scores is None
    with pytest.raises(DataError, match=r"f:2: got an answer without a score among scored answers"):
        merge_single_answers([scored, replace(scored, scores=None, origin="f:2")])


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="limit of -1 pairs"):
        ordered_pairs(group(1.0, 0.0), limit=-1)
    with pytest.raises(ConfigError, match=r"noise rate of 1\.5"):
        with_label_noise(group(1.0, 0.0), (), rate=1.5, seed=0)
