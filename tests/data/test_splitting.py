"""Splits depend on the prompt's text alone and never put one prompt on both sides."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data import Group, Message, prompt_overlap, split_by_prompt, split_position, without_prompts_of
from rewardproof.errors import ConfigError


def group(prompt: str, answer: str = "a") -> Group:
    return Group((Message("user", prompt),), ((Message("assistant", answer),), (Message("assistant", "z"),)), (1.0, 0.0))


def raw(first: str, second: str) -> Group:
    return Group((), ((Message("assistant", first),), (Message("assistant", second),)), (1.0, 0.0), raw=True)


@settings(max_examples=50, deadline=None)
@given(prompts=st.lists(st.text("abc \n\t", max_size=4), max_size=30), fraction=st.floats(0, 1), salt=st.sampled_from(["", "inner"]))
def test_no_prompt_is_on_both_sides(prompts: list[str], fraction: float, salt: str) -> None:
    groups = [group(f"p{prompt}", str(number)) for number, prompt in enumerate(prompts)]
    groups += [group(f"  p{prompt}\n", "other") for prompt in prompts]
    kept, held_out = split_by_prompt(groups, fraction=fraction, salt=salt)
    assert prompt_overlap(kept, held_out) == 0
    assert len(kept) + len(held_out) == len(groups)


def test_the_split_ignores_order_answers_and_company() -> None:
    groups = [group(f"prompt {number}") for number in range(200)]
    shuffled = random.Random(0).sample(groups, 200)
    _, held_out = split_by_prompt(groups, fraction=0.2)
    _, again = split_by_prompt(shuffled[:100] + shuffled[100:], fraction=0.2)
    assert {each.prompt_text for each in held_out} == {each.prompt_text for each in again}
    assert [each.prompt_text for each in held_out] == sorted((each.prompt_text for each in held_out), key=lambda text: int(text.split()[1]))
    assert split_position(groups[0]) == split_position(group("prompt 0", "another answer"))


def test_the_fraction_is_about_right_and_salts_are_independent() -> None:
    groups = [group(f"prompt {number}") for number in range(2000)]
    assert all(0 <= split_position(each) < 1 for each in groups)
    kept, held_out = split_by_prompt(groups, fraction=0.3)
    assert len(held_out) == pytest.approx(600, abs=100)
    _, inner = split_by_prompt(kept, fraction=0.5, salt="inner")
    assert len(inner) == pytest.approx(len(kept) / 2, abs=100)
    assert split_by_prompt(groups, fraction=0.0)[1] == []
    assert split_by_prompt(groups, fraction=1.0)[0] == []


def test_text_without_a_prompt_is_split_by_its_answers() -> None:
    positions = {split_position(raw(f"a{number}", "b")) for number in range(10)}
    assert len(positions) == 10
    assert split_position(raw("a", "b")) == split_position(raw("b", "a"))


def test_overlap_counts_distinct_prompts() -> None:
    assert prompt_overlap([group("a"), group("a ", "x"), group("b"), group("c")], [group("a"), group("c"), group("d")]) == 2


def test_groups_whose_prompts_others_have_are_left_out_in_order() -> None:
    groups = [group("c"), group("a ", "x"), raw("p", "q"), group("b"), group("a")]
    assert without_prompts_of(groups, [group("a", "other"), raw("q", "p")]) == [groups[0], groups[3]]
    assert without_prompts_of(groups, []) == groups


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="split fraction of"):
        split_by_prompt([], fraction=fraction)
