"""What a language model is asked about answers, and as which tokens."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from rewardproof.data import Group, Message, Pair
from rewardproof.data.encoding import encode_groups
from rewardproof.data.questions import (
    Question,
    asked,
    check_question,
    encode_questions,
    labelled_questions,
    option_tokens,
    question_tokens,
)
from rewardproof.errors import ConfigError, DataError

GROUP = Group(
    (Message("user", "w1 w2"),),
    ((Message("assistant", "w3"),), (Message("assistant", "w4 w5"),), (Message("assistant", "w6"),)),
    scores=(1.0, 0.0, 0.5),
)
SCALAR = Question(template="{prompt} | {response} | {criterion}", criterion="w9")
RANKED = Question(form="ranked", template="{prompt} | {first} | {second}")


def test_a_scalar_question_is_about_one_answer_and_a_ranked_one_about_two() -> None:
    assert asked(GROUP, (1,), SCALAR) == "w1 w2 | w4 w5 | w9"
    assert asked(GROUP, (2, 0), RANKED) == "w1 w2 | w6 | w3"


def test_the_forms_own_words_show_prompt_answers_and_criterion() -> None:
    scalar, ranked = asked(GROUP, (1,), Question(criterion="be kind")), asked(GROUP, (0, 1), Question(form="ranked"))
    assert all(text in scalar for text in ("w1 w2", "w4 w5", "be kind", "Yes or No"))
    assert ranked.index("w3") < ranked.index("w4 w5")
    assert Question(form="ranked").resolved.words == ("A", "B")
    assert "{first}" in Question(form="ranked").resolved.template


def test_several_turns_say_whose_each_is() -> None:
    group = Group((Message("system", "s"), Message("user", "u")), ((Message("assistant", "a"),),))
    assert asked(group, (0,), SCALAR).startswith("System: s\n\nUser: u | a")


def test_braces_in_a_text_stay_as_they_are() -> None:
    group = Group((Message("user", "{prompt} {0}"),), ((Message("assistant", "{x!r} }"),),))
    assert asked(group, (0,), SCALAR) == "{prompt} {0} | {x!r} } | w9"


def test_a_preference_answers_a_question_with_either_option() -> None:
    good, bad = labelled_questions(GROUP, Pair(1, 2, None), SCALAR)
    assert (good.text, good.right, bad.text, bad.right) == ("w1 w2 | w4 w5 | w9", 0, "w1 w2 | w6 | w9", 1)
    first, second = labelled_questions(GROUP, Pair(1, 2, None), RANKED)
    assert (first.text, first.right) == ("w1 w2 | w4 w5 | w6", 0)
    assert (second.text, second.right) == ("w1 w2 | w6 | w4 w5", 1), "the same two in the other order, so that no place is right more often"


@pytest.mark.parametrize("name", ["word_tokenizer", "byte_tokenizer"])
def test_shots_and_question_are_of_one_template(name: str, tiny: ModuleType) -> None:
    """A question behind shots ends in the very tokens of the question alone."""
    tokenizer = getattr(tiny, name)()
    alone = question_tokens("w1 w2", tokenizer)
    behind = question_tokens("w1 w2", tokenizer, shots=[("w3", "w8"), ("w4 w5", "w9")])
    assert behind[-len(alone) :] == alone
    assert len(behind) > 2 * len(alone)
    replied = question_tokens("w1 w2", tokenizer, reply="w8")
    assert replied[: len(alone)] == alone
    assert tokenizer.decode(replied[len(alone) :]).strip() == "w8"


def test_conversations_are_one_an_answer_or_one_an_ordered_pair(tiny: ModuleType) -> None:
    tokenizer = tiny.word_tokenizer()
    scalar, ranked = (encode_questions(GROUP, tokenizer, question=question, index=7) for question in (SCALAR, RANKED))
    assert (len(scalar.conversations), len(ranked.conversations), scalar.index) == (3, 6, 7)
    assert scalar.conversations[1] == question_tokens("w1 w2 | w4 w5 | w9", tokenizer)
    assert ranked.conversations[3] == question_tokens("w1 w2 | w4 w5 | w6", tokenizer)
    assert scalar.shared >= 3, "the prompt is read once"


def test_a_ranked_question_needs_two_answers(tiny: ModuleType) -> None:
    alone = Group(GROUP.prompt, GROUP.answers[:1])
    with pytest.raises(DataError, match=r"'w1 w2': got one answer for a ranked question, expected two or more"):
        encode_questions(alone, tiny.word_tokenizer(), question=RANKED)


def test_a_prompt_too_long_is_shortened_and_the_question_kept(tiny: ModuleType) -> None:
    def ask(group: Group, tokenizer: Any, *, index: int = 0) -> Any:
        return encode_questions(group, tokenizer, question=SCALAR, index=index)

    tokenizer = tiny.word_tokenizer()
    long = Group((Message("user", " ".join(f"w{place}" for place in range(40))),), GROUP.answers)
    (found,), counts = encode_groups([long], tokenizer, max_length=16, overlong="truncate_prompt", encode=ask)
    assert max(map(len, found.conversations)) == 16
    assert counts == {"overlong_prompt_truncated": 1}
    assert tokenizer.decode(found.conversations[2]).split()[-5:] == ["w6", "<unk>", "w9", "<eos>", "<bar>"]


def test_a_reply_is_its_word_with_and_without_a_space(tiny: ModuleType) -> None:
    """Byte-level tokenizers write `Yes` and ` Yes` with different first tokens; both count for the word."""
    tokenizer = tiny.byte_tokenizer()
    yes, no = option_tokens(("cat", "the"), tokenizer)
    written = {word: tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("cat", " cat", "the", " the")}
    assert set(yes) == {written["cat"], written[" cat"]} - {written["the"], written[" the"]}
    assert set(no) == {written["the"], written[" the"]} - {written["cat"], written[" cat"]}
    assert yes
    assert no
    word = tiny.word_tokenizer()
    assert option_tokens(("w1", "w2"), word) == ((5,), (6,)), "here a space changes nothing, and the token counts once"


def test_words_that_the_tokenizer_cannot_tell_apart_are_refused(tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"writes 'Yes' with no first token of its own, expected one that 'Yes' and 'No' do not share"):
        option_tokens(("Yes", "No"), tiny.word_tokenizer())
    with pytest.raises(ConfigError, match=r"writes 'w1' with no first token"):
        option_tokens(("w1", "w1 w2"), tiny.word_tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{prompt}"}, r"fields prompt, expected prompt, response and, if wanted, criterion: a scalar question"),
        ({"form": "ranked", "template": "{prompt} {response}"}, r"expected first, prompt, second"),
        ({"template": "{prompt} {response} {other}"}, r"fields other, prompt, response"),
        ({"template": "{prompt} {response"}, r"Bad question.template"),
        ({"options": ("Yes",)}, r"Got question.options=Yes, expected two different words"),
        ({"options": ("Yes", "Yes")}, r"Got question.options=Yes,Yes, expected two different words"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_question(Question(**settings))
