"""Rules certify what they can tell and no more; their programs break what they have certified; groups get references and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from rewardproof.data import Group, Message, read_groups
from rewardproof.data.encoding import as_read
from rewardproof.data.references import labelled, with_references
from rewardproof.data.rules import Rule, checker_of, final_number
from rewardproof.data.world import load_world
from rewardproof.errors import ConfigError, DataError
from rewardproof.policy.cooper import first_difference


def group(*answers: str, reference: str | None = "72", **more: Any) -> Group:
    texts = tuple((Message("assistant", text),) for text in answers)
    return Group((Message("user", "How many?"),), texts, reference=reference, **more)


def even_length(conversation: Sequence[Mapping[str, str]], reference: str, answer: str) -> bool | None:
    """Right where the answer is of even length; not told of empty ones."""
    assert conversation[0]["role"] == "user"
    return None if not answer else len(answer) % 2 == 0


def says_maybe(*_: object) -> str:
    return "maybe"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 72.", "72"), ("1,000 pens", "1000"), ("-3.50 degrees", "-3.5"), ("3 then 4", "4"), ("#### 5 (of 9 tries)", "5"),
        ("7-3 apples", "3"), ("at 3, 4", "4"),
        ("x=5", "5"), ("**42**", "42"), ("5km", "5"), ("4*3=12", "12"), ("Answer:5", "5"),
        ("3/4", None), ("#### 3/4", None), ("2^8", None), ("1e3", None), ("at 7:30", None), ("4*3", None), ("x2", None),
        ("no idea", None), ("", None), ("$18.00", "18"), ("a 5 #### none", None),
    ],
)  # fmt: skip
def test_final_numbers(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_numbers_tells_nothing_where_one_side_has_none() -> None:
    checker = checker_of(Rule(name="numbers"))
    assert checker.verdict(group(), "so 72.0 in all") is True
    assert checker.verdict(group(), "so 71") is False
    assert checker.verdict(group(), "I cannot say") is None
    assert checker.verdict(group(reference="a proof"), "so 72") is None
    assert checker.verdict(group(reference=None), "so 72") is None


@pytest.mark.parametrize("attempt", range(12))
def test_numbers_breaks_every_place_where_the_answer_stands(attempt: int) -> None:
    checker = checker_of(Rule(name="numbers"))
    broken = checker.broken(group(), "36 + 36 = 72, which is 72. #### 72", attempt)
    assert checker.verdict(group(), broken) is False
    assert not re.search(r"\b72\b", broken)
    assert broken.count("36") >= 2
    assert checker.broken(group(), "no number", attempt) == ""


def test_numbers_breaks_in_ways_that_do_not_tell_the_broken_one() -> None:
    """Neither one offset, nor one direction, nor a lost separator or sign would do in the answer's place."""
    checker = checker_of(Rule(name="numbers"))
    offs = []
    for number in range(100, 400):
        one = group(reference=str(number))
        offs.append(int(checker.broken(one, f"so {number}", 0).split()[1]) - number)
        assert len({checker.broken(one, f"so {number}", attempt) for attempt in range(8)}) == 8
    assert max(offs.count(off) for off in set(offs)) < 0.25 * len(offs)
    assert 0.4 < np.mean([off > 0 for off in offs]) < 0.6
    for text, form in (
        ("1,234 pens", r"1,2\d\d pens"), ("$18.00 each", r"\$\d+\.00 each"), ("it is 3", r"it is \d+"), ("-2 degrees", r"-\d+ degrees"),
        ("1,500 or 1500", r"1,[45]\d\d or 1[45]\d\d"),
    ):  # fmt: skip
        right = str(final_number(text))
        for attempt in range(8):
            broken = checker.broken(group(reference=right), text, attempt)
            assert re.fullmatch(form, broken), broken
            assert checker.verdict(group(reference=right), broken) is False


def test_checkable_cuts_gold_at_two_places_and_leaves_the_middle_untold() -> None:
    checker = checker_of(Rule())
    seen = set()
    for one in load_world("heldout")[:60]:
        for text, gold in zip(one.answer_texts, one.scores or (), strict=True):
            verdict = checker.verdict(one, text)
            assert verdict == (True if gold >= 0.9 else False if gold <= 0.7 else None)
            seen.add(verdict)
    assert seen == {True, False, None}
    assert checker.text(one).startswith("About ")


def test_checkable_breaks_what_it_certifies_and_neither_place_nor_length_tells() -> None:
    checker = checker_of(Rule())
    places, lengths, made = [], [], set()
    for one in load_world("heldout"):
        for text in one.answer_texts:
            if checker.verdict(one, text) is not True:
                continue
            broken = checker.broken(one, text, 0)
            assert checker.verdict(one, broken) is False, (one.prompt_text, text, broken)
            assert checker.broken(one, text, 0) == broken
            made.add(checker.broken(one, text, 1) == broken)
            places.append(first_difference(text, broken) / len(text))
            lengths.append(len(broken) > len(text))
    assert len(places) > 100
    assert np.std(places) > 0.2
    assert 0.25 < np.mean(lengths) < 0.75
    assert False in made, "another try is another break"


def test_a_rule_of_ones_own() -> None:
    checker = checker_of(Rule(name="tests.data.test_rules:even_length"))
    assert [checker.verdict(group(), text) for text in ("ab", "abc", "")] == [True, False, None]
    assert checker.text(group()) is None
    with pytest.raises(ConfigError, match=r"rule.name=tests.data.test_rules:even_length with no assistant, expected one"):
        checker.broken(group(), "ab", 0)
    with pytest.raises(DataError, match=r"said 'maybe' of an answer, expected True, False, or None"):
        checker_of(Rule(name="tests.data.test_rules:says_maybe")).verdict(group(), "x")


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rule.wrong=0.9 with rule.correct=0.9, expected it below"):
        checker_of(Rule(wrong=0.9))
    with pytest.raises(ConfigError, match=r"Unknown rule.name='number' \(did you mean 'numbers'\?\)"):
        checker_of(Rule(name="number"))
    with pytest.raises(ConfigError, match=r"rule.reference=text with rule.name=numbers, expected rule.name=checkable"):
        checker_of(Rule(name="numbers", reference="text"))
    with pytest.raises(ConfigError, match=r"rule.name=nowhere:none"):
        checker_of(Rule(name="nowhere:none"))
    with pytest.raises(DataError, match=r"got a prompt without 'constraints' and 'topic'"):
        checker_of(Rule()).verdict(group(), "x")


def test_references_come_from_the_data_or_the_best_right_answer() -> None:
    rule = Rule(name="tests.data.test_rules:even_length")
    checker = checker_of(rule)
    given, best, none = group("a"), group("ab", "abcd", "a", reference=None, scores=(0.1, 0.9, 1.0)), group("a", reference=None)
    found = with_references([given, best, none], rule, checker)
    assert [one.reference for one in found.groups] == ["72", "abcd"]
    assert found.counts == {"without_reference": 1}
    world = load_world("heldout")[:20]
    texts = with_references(world, Rule(reference="text"), checker_of(Rule(reference="text")))
    assert len(texts.groups) == 20
    answers = with_references(world, Rule(), checker_of(Rule()))
    assert 0 < len(answers.groups) < 20
    assert all(one.reference in one.answer_texts for one in answers.groups)


def test_labels_are_the_rules_and_what_it_cannot_tell_is_left_out() -> None:
    checker = checker_of(Rule(name="numbers"))
    told = labelled([group("72", "it is 72", "it is 3", "who knows"), group("who knows")], checker)
    (one,) = told.groups
    assert one.answer_texts == ("it is 72", "it is 3")
    assert one.scores == (1.0, 0.0)
    assert told.counts == {
        "answers_right": 1, "answers_wrong": 1, "answers_not_told": 2, "answers_that_are_the_reference": 1, "groups_not_told": 1,
    }  # fmt: skip


def test_question_reference_and_answer_are_one_text() -> None:
    read = as_read(group("x"), "reference")
    assert read.prompt == (Message("user", "How many?\n\n[Reference answer]\n72"),)
    assert read.answers == group("x").answers
    with pytest.raises(DataError, match=r"'How many\?': got no reference, expected one: this reward model reads prompt, reference"):
        as_read(group("x", reference=None), "reference")


def test_gsm8k_rows_are_such_tasks(tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\\n#### 4"}\n')
    (one,) = read_groups([str(file)], purpose="answer").groups
    assert one.reference == "4"
    assert checker_of(Rule(name="numbers")).verdict(one, "That makes 4.") is True
