"""Perturbations: pure, seeded, known in what they keep, and None where they do not apply."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.evaluation.audit import PERTURBATIONS, Passage, neutral_text, perturbed, resized
from rewardproof.evaluation.audit.features import FEATURES
from rewardproof.evaluation.audit.passages import CODE, FENCED, WORD, sentences

TEA = "Tea is warm, and it can't be cold. A cup costs 12.50 dollars in 2024! Many people drink it."
CODED = f"{TEA} You can run this:\n```py\ncost = 1. # it is 2.\n\nprint(cost)\n```\nThen use `rm -rf 3` and wait."
TEXTS = {
    "plain": TEA,
    "code": CODED,
    "unclosed code": "Run it. It is fine:\n```sh\nls 3. can be",
    "list": "1. Water is wet.\n2. Fire can burn 10 trees.\n\nThat is all.",
    "unicode": "Ça coûte 30 €, naïve façade. Ведь это 15 рублей. 好的。是的。 🙂",
    "one word": "Yes",
    "no words": "...",
    "windows": "First line is here.\r\nSecond line is there.",
}
KEEPS_WORDS = [name for name, one in PERTURBATIONS.items() if one.effect == "kept" and name != "misspelling"]


def changed(name: str, text: str, *, prompt: str = "How is tea?", other: str = "Cats are fine.", seed: int = 0) -> str | None:
    return perturbed(name, Passage(text, prompt, other), seed=seed)


def words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


def is_within(inner: list[str], outer: list[str]) -> bool:
    rest = iter(outer)
    return all(any(one == word for one in rest) for word in inner)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_texts_and_seed_give_the_same_change_whatever_else_is_drawn(name: str, text: str) -> None:
    first = changed(name, text, seed=3)
    random.seed(99)
    assert changed(name, text, seed=3) == first


def test_the_seed_and_the_texts_choose() -> None:
    for name in ("opener", "praise", "misspelling", "emoji", "padding", "numbers", "shuffling"):
        assert len({changed(name, CODED, seed=seed) for seed in range(20)}) > 1, name
        assert len({changed(name, TEA, prompt=str(prompt)) for prompt in range(20)}) > 1, name


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_is_another_text_or_none(name: str, text: str) -> None:
    found = changed(name, text)
    assert found is None or (found.strip() and found.strip() != text.strip())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_nothing_can_be_changed_about_an_empty_answer(name: str) -> None:
    assert changed(name, "") is None
    assert changed(name, " \n") is None


def test_what_applies_to_one_word() -> None:
    found = {name for name in PERTURBATIONS if changed(name, "Yes") is not None}
    assert found == set(PERTURBATIONS) - {"bullets", "exclamation", "misspelling", "truncation", "numbers", "negation", "shuffling"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", KEEPS_WORDS)
def test_what_keeps_the_meaning_keeps_every_word_in_its_order(name: str, text: str) -> None:
    found = changed(name, text)
    assert found is None or is_within(words(text), words(found))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="ßŉǰΐΰﬀﬁﬂﬃﬄﬅﬆև"), max_size=80))
def test_any_text_is_changed_or_left_alone_and_keeps_its_words(text: str) -> None:
    for name in PERTURBATIONS:
        found = changed(name, text)
        assert found is None or found.strip() != text.strip()
        if found is not None and name in KEEPS_WORDS and name not in ("capitals", "emoji", "bullets", "markdown"):
            assert is_within(words(text), words(found)), name


@pytest.mark.parametrize("text", [CODED, TEXTS["unclosed code"]])
@pytest.mark.parametrize("name", [*KEEPS_WORDS, "misspelling", "negation", "shuffling"])
def test_fenced_code_stays_as_it_is(name: str, text: str) -> None:
    found = changed(name, text)
    assert found is not None
    assert set(FENCED.findall(text)) <= set(FENCED.findall(found)) or FENCED.findall(text)[0] in found


@pytest.mark.parametrize("name", ["capitals", "exclamation", "misspelling", "numbers", "negation"])
def test_code_within_a_line_stays_too(name: str) -> None:
    found = changed(name, CODED)
    assert found is not None
    assert CODE.findall(found) == CODE.findall(CODED)


@pytest.mark.parametrize("name", ["capitals", "exclamation", "bullets", "markdown", "refusal", "echo", "other_prompt"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_done_once_is_not_done_again(name: str, text: str) -> None:
    once = changed(name, text)
    assert once is None or changed(name, once) in (None, once)


def test_length_grows_by_padding_and_repetition() -> None:
    long = " ".join([TEA] * 10)
    assert len(words(changed("padding", long) or "")) >= 1.5 * len(words(long))
    assert words(changed("repetition", TEA) or "") == words(TEA) * 2


def test_dressing_has_the_features_that_it_is_named_after() -> None:
    for name, feature in (("bullets", "bullets"), ("markdown", "bold"), ("markdown", "headings"), ("emoji", "emoji")):
        assert FEATURES[feature].of(changed(name, TEA) or "") > FEATURES[feature].of(TEA) == 0, name
    assert (changed("bullets", TEA) or "").count("\n- ") == 2
    assert changed("bullets", TEXTS["list"]) is None, "it is a list already"
    assert changed("exclamation", "It costs 1.50. Wait... no.") == "It costs 1.50! Wait... no!"


def test_misspelling_changes_a_few_longer_words_and_no_letter_is_lost() -> None:
    found = changed("misspelling", CODED) or ""
    before, after = words(CODED), words(found)
    different = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert 1 <= len(different) <= 4
    assert all(len(one) >= 4 and Counter(one) == Counter(other) and one[0] == other[0] for one, other in different)


def test_truncation_is_a_beginning_of_half_the_words() -> None:
    found = changed("truncation", TEA) or ""
    assert TEA.startswith(found)
    assert len(words(found)) == len(words(TEA)) // 2
    assert changed("truncation", "Too short.") is None


def test_numbers_keep_their_form_and_none_stays() -> None:
    found = changed("numbers", TEA) or ""
    assert re.sub(r"\d", "0", found) == re.sub(r"\d", "0", TEA)
    assert "12.50" not in found
    assert "2024" not in found
    assert (changed("numbers", TEXTS["list"]) or "").startswith("1. Water"), "numbers of list items are no statements"
    assert changed("numbers", "No digits here.") is None
    for seed in range(30):
        assert re.fullmatch(r"[1-9]\d", changed("numbers", "10", seed=seed) or ""), "a longer number does not begin with 0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tea is warm.", "Tea is not warm."),
        ("It can fly.", "It cannot fly."),
        ("It can't be. They were here.", "It can be. They were not here."),
        ("This isn't so; that is.", "This is so; that is."),
        ("It is not.", "It is."),
        ("Run fast.", None),
    ],
)
def test_negation(text: str, expected: str | None) -> None:
    assert changed("negation", text) == expected


@pytest.mark.parametrize("text", [TEA, TEXTS["list"], "One. One. Two."])
def test_shuffling_keeps_the_sentences_in_another_order(text: str) -> None:
    found = changed("shuffling", text) or ""
    assert Counter(piece.strip() for piece in sentences(found) if piece.strip()) == Counter(
        piece.strip() for piece in sentences(text) if piece.strip()
    )
    assert found != text
    assert changed("shuffling", "Same. Same.") is None
    assert changed("shuffling", "One sentence.") is None


def test_what_replaces_the_answer_needs_what_it_is_replaced_by() -> None:
    assert changed("other_prompt", TEA) == "Cats are fine."
    assert changed("other_prompt", TEA, other="") is None
    assert changed("echo", TEA) == "How is tea?"
    assert changed("echo", TEA, prompt="") is None
    assert changed("other_prompt", TEA, other=TEA) is None


@pytest.mark.parametrize("measure", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_an_answer_at_another_length_is_as_near_it_as_words_allow(measure: Callable[[str], int]) -> None:
    text = "Tea is warm, and (mostly) brown; people drink it in the afternoon."
    cuts = [text[:end] for end in range(1, len(text) + 1) if re.search(r"\w$", text[:end]) and not re.match(r"\w", text[end:])]
    for size in range(1, measure(text)):
        found = resized(text, size, measure)
        assert found in cuts
        assert abs(measure(found) - size) == min(abs(measure(cut) - size) for cut in cuts)
    assert resized(text, measure(text), measure) == text
    assert resized(text, measure(text) + 20, measure).startswith(f"{text} There is")
    assert resized("…!", 1, measure) == "…!", "nothing to cut after"


@pytest.mark.parametrize("size", [1, 2, 5, 17, 120])
def test_neutral_text_measures_what_is_asked(size: int) -> None:
    found = neutral_text(size, lambda text: len(text.split()))
    assert len(found.split()) == size
    assert found.endswith(".")
    assert abs(len(neutral_text(5 * size, len)) - 5 * size) <= 8
