"""Labelled examples: parts that share no prompt, shots of other prompts, and few rows refused in words."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from rewardproof.data import Group, Message, split_key
from rewardproof.data.questions import Question, question_tokens
from rewardproof.errors import ConfigError, DataError
from rewardproof.training.exemplars import Exemplars, Parts, check_exemplars, parts_of, question_groups, shown_prompts
from rewardproof.training.preparation import Read

QUESTION = Question(template="{prompt} | {response}", options=("w90", "w91"))


def preferences(count: int, *, answers: int = 2, prompts: int = 0) -> list[Group]:
    return [
        Group(
            (Message("user", f"w{number % (prompts or count)}"),),
            tuple((Message("assistant", f"w{40 + number} w{place}"),) for place in range(answers)),
            scores=tuple(float(answers - place) for place in range(answers)),
        )
        for number in range(count)
    ]


def parts(groups: list[Group], read: Read | None = None, **settings: Any) -> Parts:
    return parts_of(groups, read or Read(), QUESTION, Exemplars(**settings))


def test_no_prompt_is_in_two_parts() -> None:
    """What selects heads gives no activations, and what compares masks gives neither."""
    found = parts(preferences(40, prompts=20), count=0)
    keys = [{split_key(one.group) for one in part} for part in found]
    assert [len(part) for part in keys] == [10, 6, 4]
    assert len(keys[0] | keys[1] | keys[2]) == 20
    assert sum(map(len, found)) == 80, "two examples a preference"


def test_parts_do_not_depend_on_the_order_of_rows() -> None:
    groups = preferences(16)
    assert [sorted(one.text for one in part) for part in parts(groups)] == [
        sorted(one.text for one in part) for part in parts(groups[::-1])
    ]


def test_every_preference_gives_one_example_a_reply() -> None:
    found = parts(preferences(16))
    for part in found:
        assert sum(one.right for one in part) * 2 == len(part)


def test_at_most_so_many_examples_are_used() -> None:
    assert sum(map(len, parts(preferences(60), count=80))) == 80
    assert sum(map(len, parts(preferences(60), count=0))) == 120


def test_of_several_answers_the_two_furthest_apart_are_taken() -> None:
    for one in parts(preferences(16, answers=4)).extract:
        assert one.text.endswith("w3" if one.right else "w0")


def test_label_noise_flips_what_examples_say() -> None:
    """A run with noisy exemplars is the same with a share of the labels wrong."""
    clean, noisy, wrong = (parts(preferences(40), Read(label_noise=rate)) for rate in (0.0, 0.3, 1.0))
    texts = {(one.text, one.right) for part in clean for one in part}
    flipped = {(one.text, 1 - one.right) for part in wrong for one in part}
    assert texts == flipped
    assert 0 < len(texts - {(one.text, one.right) for part in noisy for one in part}) < len(texts)


def test_few_rows_are_refused_with_what_is_needed() -> None:
    with pytest.raises(DataError, match=r"Got preferences on 2 prompts, expected enough to select heads \(1\), compare masks \(1\)"):
        parts(preferences(2))
    with pytest.raises(DataError, match=r"show 9 examples beside each"):
        parts(preferences(8), shots=9)
    parts(preferences(16))


def test_heads_are_read_at_a_questions_end_behind_shots_of_other_prompts(tiny: ModuleType) -> None:
    tokenizer, settings = tiny.word_tokenizer(), Exemplars(shots=3, draws=2)
    found = parts(preferences(16)).extract
    prompts = shown_prompts(found, QUESTION, settings, tokenizer, seed=0, replied=False)
    assert len(prompts) == 2 * len(found)
    right = {one.text: QUESTION.words[one.right] for one in found}
    for number, group in enumerate(prompts):
        one, (tokens,) = found[number // 2], group.conversations
        alone = question_tokens(one.text, tokenizer)
        assert tokens[-len(alone) :] == alone, "the template of the question that is scored later"
        turns = [turn.strip() for turn in tokenizer.decode(tokens).split("<bar>") if turn.strip()]
        shots = list(zip(turns[:-1:2], turns[1::2], strict=True))
        assert len(shots) == 3
        for asks, says in shots:
            asks, says = asks.removesuffix(" <eos>"), says.removesuffix(" <eos>")
            text = next(text for text in right if tokenizer.decode(tokenizer(text)["input_ids"]) == asks)
            assert says == right[text]
            assert asks.split()[0] != one.text.split()[0], "a shot of its own prompt would give the label away"
    assert prompts[0] != prompts[1], "drawn anew"
    assert prompts == shown_prompts(found, QUESTION, settings, tokenizer, seed=0, replied=False)
    assert prompts != shown_prompts(found, QUESTION, settings, tokenizer, seed=1, replied=False)


def test_or_at_the_end_of_the_right_reply(tiny: ModuleType) -> None:
    tokenizer = tiny.word_tokenizer()
    found = parts(preferences(16), shots=0, read_at="reply").extract
    for one, group in zip(
        found, shown_prompts(found, QUESTION, Exemplars(shots=0, read_at="reply"), tokenizer, seed=0, replied=True), strict=True
    ):
        (tokens,) = group.conversations
        assert tokens[:-1] == question_tokens(one.text, tokenizer)
        assert tokenizer.decode(tokens[-1:]) == QUESTION.words[one.right]


def test_questions_alone_are_those_of_scoring(tiny: ModuleType) -> None:
    tokenizer = tiny.word_tokenizer()
    found = parts(preferences(16)).select
    assert [group.conversations[0] for group in question_groups(found, tokenizer)] == [
        question_tokens(one.text, tokenizer) for one in found
    ]


def test_settings_by_which_no_label_is_read_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Got exemplars.shots=0 with read_at=question, expected shots or read_at=reply"):
        check_exemplars(Exemplars(shots=0))
    with pytest.raises(ConfigError, match=r"Got exemplars.select=0.6 and check=0.5, expected less than 1 together"):
        check_exemplars(Exemplars(select=0.6, check=0.5))
