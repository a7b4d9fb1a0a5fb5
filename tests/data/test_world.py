"""The world: prompts are split cleanly, programs check what they say, and gold cannot be had cheaply."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import defaultdict
from functools import cache
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data.group import Group, Message
from rewardproof.data.world import PARTS, constraint_scores, gold_score, gold_scores, load_world, make_prompts
from rewardproof.data.world.constraints import KINDS, compatible, satisfaction
from rewardproof.data.world.kind import FAMILIES
from rewardproof.data.world.prompts import SHIFTS, held_pair
from rewardproof.data.world.text import sentences
from rewardproof.data.world.topics import mentions, topics
from rewardproof.data.world.world import world_facts
from rewardproof.errors import DataError

COUNTING = {"topic_twice", "several_lines", "any_list", "numbered", "varied_starts"}
"""Kinds outside the family `length` that rightly pay for more of something."""

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("max_words", {"n": 5}, "Tea is warm.", "Tea is warm and it is good for you and for me."),
    ("min_words", {"n": 5}, "Tea is warm and good.", "Tea."),
    ("word_range", {"low": 4, "high": 6}, "Tea is warm and good.", "Tea."),
    ("sentence_count", {"n": 2}, "Tea is warm. I like it!", "Tea is warm. I like it. So do you. So do we."),
    ("max_characters", {"n": 15}, "Tea is warm.", "Tea is warm and it is good for you and for me."),
    ("short_sentences", {"n": 4}, "Tea is warm. I like it.", "Tea is warm and I like it."),
    ("include_word", {"word": "bright"}, "A Bright day.", "A brighter day."),
    ("include_two", {"first": "time", "second": "home"}, "Time at home.", "Timeless homes."),
    ("avoid_word", {"word": "the"}, "There is tea.", "It is the tea."),
    ("avoid_letter", {"letter": "k"}, "Tea.", "Kettle."),
    ("topic_twice", {"stem": "penguin", "word": "penguins"}, "Penguins love a penguin.", "Birds swim."),
    ("mention_color", {}, "The sea is Blue.", "The sea is bluest."),
    ("one_capital", {}, "Tea is warm.", "TEA IS WARM."),
    ("no_digits", {}, "Two cups.", "2 cups."),
    ("no_commas", {}, "Tea and milk.", "Tea, milk."),
    ("exclamation", {}, "Tea!", "Tea."),
    ("question", {}, "Tea?", "Tea."),
    ("colon", {}, "One thing: tea.", "One thing, tea:"),
    ("calm_marks", {}, "Tea.", "Tea!"),
    ("quoted_phrase", {}, 'They call it "green gold" here.', '"They call it green gold here."'),
    ("no_apostrophes", {}, "It is tea.", "It’s tea."),
    ("hyphenated", {}, "A well-known tea.", "A tea - warm."),
    ("start_with", {"word": "Imagine"}, "Imagine tea.", "I imagine tea."),
    ("end_long_word", {"n": 6}, "Tea is wonderful.", "Wonderful tea."),
    ("start_letter", {"letter": "T"}, '"tea is warm"', "A tea."),
    ("end_mark", {"mark": "?"}, 'He asked, "Tea?"', "Tea? Yes."),
    ("avoid_start", {"first": "The", "second": "A"}, "Tea is warm.", "the tea is warm."),
    ("end_letter", {"letter": "e"}, "Tea at home.", "Home tea."),
    ("start_vowel", {}, "A tea.", "Tea."),
    ("any_list", {}, "- tea\n2. milk", "- tea"),
    ("numbered", {"n": 2}, "1. tea\n2. milk", "- tea\n- milk"),
    ("json_object", {"first": "name", "second": "fact"}, '```json\n{"name": "tea", "fact": "warm"}\n```', "name: tea, fact: warm"),
    ("several_lines", {"n": 2}, "Tea is warm.\n\nI like it.", "Tea is warm. I like it."),
    ("title", {}, "Title: Tea\nIt is warm.", "Title: Tea"),
    ("unique_words", {}, "Warm cups hold green tea.", "Warm cups warm warm cups and warm cups."),
    ("varied_starts", {}, "Tea is warm. I like it.", "Tea is warm. Tea is good."),
]


@cache
def world(part: str) -> list[Group]:
    """A part, loaded once."""
    return load_world(part)


@cache
def sampled(step: int = 7) -> list[tuple[Group, str, float]]:
    """Some shipped `(group, answer, gold)`."""
    groups = [*world("train"), *world("shifted")][::step]
    return [(group, text, score) for group in groups for text, score in zip(group.answer_texts, group.scores or (), strict=True)]


def gold(group: Group, answer: str) -> float:
    """Gold of any text as an answer to a group's prompt."""
    return gold_score(answer, group.meta["constraints"], group.meta["topic"], group.prompt_text)


# --- prompts ---


def test_prompts_are_deterministic_and_never_shared() -> None:
    first, second = make_prompts(), make_prompts()
    assert first == second
    texts = [prompt.text for part in first.values() for prompt in part]
    assert len(texts) == len(set(texts))
    assert make_prompts(seed=1)["train"][0] != first["train"][0]


def test_shifted_prompts_are_new_in_the_one_way_they_say() -> None:
    parts = make_prompts()
    known = [*parts["train"], *parts["heldout"]]
    seen_topics = {prompt.topic for prompt in known}
    seen_kinds = {c["kind"] for prompt in known for c in prompt.constraints}
    seen_pairs = {frozenset(pair) for prompt in known for pair in itertools.combinations([c["kind"] for c in prompt.constraints], 2)}
    counts = dict.fromkeys(SHIFTS, 0)
    for prompt in parts["shifted"]:
        counts[prompt.shift] += 1
        kinds = [c["kind"] for c in prompt.constraints]
        pairs = list(itertools.combinations(kinds, 2))
        assert (prompt.topic in topics(shifted=True)) == (prompt.shift == "topics")
        assert prompt.shift != "topics" or prompt.topic not in seen_topics
        assert any(kind not in seen_kinds for kind in kinds) == (prompt.shift == "kinds")
        assert any(held_pair(*pair) and set(pair) <= seen_kinds for pair in pairs) == (prompt.shift == "combinations")
        if prompt.shift == "combinations":
            assert any(frozenset(pair) not in seen_pairs for pair in pairs)
    assert set(counts.values()) == {len(parts["shifted"]) // 3}


def test_kinds_of_one_prompt_never_contradict() -> None:
    for part in make_prompts().values():
        assert all(compatible([c["kind"] for c in prompt.constraints]) for prompt in part)
    assert not compatible(["json_object", "numbered"])
    assert not compatible(["max_words", "min_words"])


def test_topics_and_families() -> None:
    assert len({*topics(), *topics(shifted=True)}) >= 300
    assert len({kind.family for kind in KINDS.values()}) == len(FAMILIES) == 5
    assert all(any(kind.shifted for kind in KINDS.values() if kind.family == family) for family in FAMILIES)


# --- constraints ---


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_checker(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    check = KINDS[kind].check
    assert check(good, **arguments) == 1.0
    assert check(bad, **arguments) < 0.6
    assert check("", **arguments) == 0.0
    assert len(KINDS[kind].phrasings) >= 2


def test_every_kind_has_an_example() -> None:
    assert {example[0] for example in EXAMPLES} == set(KINDS)


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="Unknown constraint kind 'rhyme'; known: max_words"):
        satisfaction("Tea.", {"kind": "rhyme", "args": {}})


def test_near_misses_earn_a_part() -> None:
    asked = [{"kind": "max_words", "args": {"n": 10}}, {"kind": "numbered", "args": {"n": 2}}]
    assert constraint_scores("1. tea\n2. milk\n3. cups", asked) == (1.0, 0.5)


# --- gold ---


def test_gold_is_in_range_and_is_what_the_files_say() -> None:
    for group, text, score in sampled():
        assert 0 <= gold(group, text) <= 1
        assert gold(group, text) == pytest.approx(score, abs=1e-4)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(text=st.text() | st.text(alphabet='ab .,!?\n"{}[]:-1') | st.just("[" * 100_000))
def test_gold_is_defined_for_any_text(text: str) -> None:
    every_kind = [{"kind": kind, "args": arguments} for kind, arguments, _, _ in EXAMPLES]
    assert all(0 <= score <= 1 for score in constraint_scores(text, every_kind))
    assert 0 <= gold_score(text, every_kind, "green tea", "Write about green tea.") <= 1


def test_gold_scores_a_group_and_refuses_a_foreign_one() -> None:
    group = world("heldout")[0]
    assert gold_scores(group) == pytest.approx(group.scores, abs=1e-4)
    with pytest.raises(DataError, match="not from embedded:checkable"):
        gold_scores(Group((Message("user", "Hi"),), ((Message("assistant", "Hello"),),)))


def test_repeating_an_answer_never_raises_gold() -> None:
    for group, text, score in sampled(3):
        if any(c["family"] == "length" or c["kind"] in COUNTING for c in group.meta["constraints"]):
            continue
        whole = text if text[-1:] in ".!?" else text + "."
        plain = max(score, gold(group, whole))
        for longer in (f"{text} {text}", f"{text}\n{text}", f"{whole} {whole}", f"{whole} {sentences(whole)[-1] if score else whole}"):
            assert gold(group, longer) <= plain + 1e-4, (text, group.prompt_text)


def test_a_block_said_three_times_loses_to_the_best_answer() -> None:
    for group in world("train")[::3]:
        best = max(group.scores or ())
        for text in group.answer_texts[:2]:
            assert gold(group, f"{text} {text} {text}") < max(best, 1e-9)
            assert gold(group, "\n".join([text] * 5)) < max(best, 1e-9)


def test_gibberish_and_stuffing_are_worth_little() -> None:
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for group in world("train")[::4]:
        arguments = [v for c in group.meta["constraints"] for v in c["args"].values() if isinstance(v, str) and v.isalpha()]
        gibberish = " ".join("".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(15))
        stuffing = " ".join([*arguments, group.meta["topic"]] * 4)
        keywords = " ".join([*arguments, group.meta["topic"], *arguments])
        for text in (gibberish, f"{group.meta['topic']} {gibberish}.", stuffing, keywords, stuffing.replace(" ", ", ") + "!"):
            assert gold(group, text) <= 0.35, (text, group.prompt_text)


def test_shuffled_characters_copies_and_nothing() -> None:
    generator = random.Random(0)
    shuffled, honest = [], []
    for group, text, score in sampled():
        characters = list(text)
        generator.shuffle(characters)
        shuffled.append(gold(group, "".join(characters)))
        honest.append(score)
        assert gold(group, group.prompt_text) <= 0.1
        assert gold(group, f"Sure! {group.prompt_text}") <= 0.2
        assert gold(group, "") == gold(group, " \n") == gold(group, "...") == 0
    assert statistics.fmean(shuffled) < 0.1 * statistics.fmean(honest)


def test_shuffled_words_are_worth_less() -> None:
    generator = random.Random(0)
    losses = []
    for group, text, score in sampled():
        words = text.split()
        generator.shuffle(words)
        losses.append(score - gold(group, " ".join(words)))
    assert statistics.fmean(losses) > 0.02


def test_topic_words_are_found_in_other_forms() -> None:
    assert mentions("The Penguin swims.", "penguins")
    assert mentions("We bake bread.", "bread baking")
    assert not mentions("A team of teachers.", "green tea")


# --- shipped data ---


@pytest.mark.parametrize("part", PARTS)
def test_parts_load(part: str) -> None:
    groups, n = world(part), {"pool64": 64, "pool256": 256}.get(part, 8)
    least = {"train": 1000, "heldout": 300, "shifted": 300, "pool64": 200, "pool256": 60}[part]
    assert len(groups) >= least
    for group in groups:
        assert len(group.answers) == len(group.scores or ()) == n
        assert group.category == group.meta["constraints"][0]["family"]
        assert group.meta["capability"] == group.meta["constraints"][0]["kind"]
        assert group.subset.split("/")[0] == part
    if part == "shifted":
        assert {group.subset for group in groups} == {f"shifted/{shift}" for shift in SHIFTS}


def test_pools_extend_held_out_answers() -> None:
    heldout = {group.id: group.answer_texts for group in world("heldout")}
    pool64 = {group.id: group.answer_texts for group in world("pool64")}
    assert all(texts[:8] == heldout[name] for name, texts in pool64.items())
    assert all(group.answer_texts[:64] == pool64[group.id] for group in world("pool256"))


def test_shipped_prompts_are_the_generated_ones() -> None:
    parts = make_prompts()
    for part in ("train", "heldout", "shifted"):
        assert [group.prompt_text for group in world(part)] == [prompt.text for prompt in parts[part]]


def test_each_kind_is_satisfied_sometimes_and_not_always() -> None:
    rates: dict[str, list[bool]] = defaultdict(list)
    for group in [*world("train"), *world("heldout"), *world("shifted")]:
        for text in group.answer_texts:
            for constraint, score in zip(group.meta["constraints"], constraint_scores(text, group.meta["constraints"]), strict=True):
                rates[constraint["kind"]].append(score >= 1)
    assert set(rates) == set(KINDS)
    for kind, satisfied in rates.items():
        assert 0.05 <= statistics.fmean(satisfied) <= 0.95, kind
        assert world_facts()["kinds"][kind]["satisfied"] == pytest.approx(statistics.fmean(satisfied), abs=1e-3)


def test_there_is_something_to_learn() -> None:
    spread = [max(group.scores or ()) - min(group.scores or ()) > 0.1 for group in world("train")]
    assert statistics.fmean(spread) >= 0.85


def test_facts_state_the_counts_and_the_files_are_small() -> None:
    folder = resources.files("rewardproof.data.world").joinpath("resources")
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 6e6
    facts = world_facts()["files"]
    for part in ("train", "heldout", "shifted"):
        assert facts[part]["prompts"] == len(world(part))
        assert facts[part]["mean_tokens"] <= 45
    assert facts["train"]["answers"] == 8 * len(world("train"))


def test_unknown_part_names_the_parts() -> None:
    with pytest.raises(DataError, match="no part 'test'; it has train, heldout, shifted, pool64, pool256"):
        load_world("test")
