"""Four scenarios: every answer on one side, sides that training and evaluation agree on, and all that is left out counted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from rewardproof.config import parse
from rewardproof.data import SCENARIOS, Group, Message, ScenarioCut, Scenarios, cut_scenarios, merge_single_answers, split_by_prompt
from rewardproof.errors import ConfigError, DataError

SOURCES = ("ada", "bob", "cyd", "dan", "eve", "fay")
SETTINGS = Scenarios(source=("models",), unseen=("eve", "fay"))


def group(number: int, sources: tuple[str, ...] = SOURCES, **changes: object) -> Group:
    """Answer `p3 ada` is ada's to prompt p3; scores are in no order."""
    answers = tuple((Message("assistant", f"p{number} {source}"),) for source in sources)
    scores = tuple(float((7 * number + 5 * place) % 11) for place in range(len(sources)))
    found = Group((Message("user", f"p{number}"),), answers, scores, meta={"models": list(sources), "kept": 1}, origin=f"f:{number}")
    return replace(found, **changes)


def cut(groups: list[Group], settings: Scenarios = SETTINGS, **changes: float) -> ScenarioCut:
    return cut_scenarios(groups, settings, **{"fraction": 0.3, **changes})


def answers(groups: tuple[Group, ...]) -> set[str]:
    return {text for found in groups for text in found.answer_texts}


def test_prompts_and_sources_of_each_scenario_are_those_of_the_table() -> None:
    groups = [group(number) for number in range(60)]
    found = cut(groups)
    kept, held_out = ({entry.prompt_text for entry in part} for part in split_by_prompt(groups, fraction=0.3))
    unseen = set(SETTINGS.unseen)
    table = {
        "train": (kept, set(SOURCES) - unseen),
        "in_domain": (kept, set(SOURCES) - unseen),
        "prompt_disjoint": (held_out, set(SOURCES) - unseen),
        "response_disjoint": (kept, unseen),
        "mutual_disjoint": (held_out, unseen),
    }
    for name, (prompts, sources) in table.items():
        part = getattr(found, name)
        assert {entry.prompt_text for entry in part} == prompts, name
        assert {source for entry in part for source in entry.meta["models"]} == sources, name
        assert found.counts["groups"][name] == len(part)
    assert {len(entry.answers) for entry in found.train} == {len(entry.answers) for entry in found.in_domain} == {2}
    assert {len(entry.answers) for entry in found.prompt_disjoint} == {4}


def test_no_answer_is_on_two_sides_and_scores_and_sources_stay_with_their_answers() -> None:
    groups = [group(number) for number in range(60)]
    found = cut(groups)
    parts = [answers(getattr(found, name)) for name in ("train", *SCENARIOS)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60 * len(SOURCES)
    score = {text: value for entry in groups for text, value in zip(entry.answer_texts, entry.scores or (), strict=True)}
    for name in ("train", *SCENARIOS):
        for entry in getattr(found, name):
            assert [score[text] for text in entry.answer_texts] == list(entry.scores or ())
            assert [text.split()[1] for text in entry.answer_texts] == entry.meta["models"]
            assert entry.meta["kept"] == 1


def test_the_cut_depends_on_texts_alone() -> None:
    groups, settings = [group(number) for number in range(40)], SETTINGS.model_copy(update={"max_prompts": 11})
    expected = cut(groups, settings)
    dice = random.Random(0)
    shuffled = []
    for entry in dice.sample(groups, len(groups)):
        order = dice.sample(range(len(SOURCES)), len(SOURCES))
        names = [SOURCES[place] for place in order]
        shuffled.append(
            replace(
                entry, answers=tuple(entry.answers[p] for p in order), scores=tuple(entry.scores[p] for p in order), meta={"models": names}
            )
        )
    again = cut(shuffled, settings)
    assert all(answers(getattr(expected, name)) == answers(getattr(again, name)) for name in ("train", *SCENARIOS))
    assert len(expected.train) == len(expected.in_domain) == len(expected.response_disjoint) == 11
    assert expected.counts["left_out_by_max_prompts"] == len(cut(groups).train) - 11
    assert answers(expected.prompt_disjoint) == answers(cut(groups).prompt_disjoint), "held-out prompts stay"


def test_the_answers_that_train_are_by_sources_in_no_fixed_order() -> None:
    chosen = Counter(source for entry in cut([group(number) for number in range(200)]).train for source in entry.meta["models"])
    assert set(chosen) == {"ada", "bob", "cyd", "dan"}
    assert min(chosen.values()) > 0.7 * max(chosen.values())


def test_another_number_of_answers_trains() -> None:
    found = cut([group(number) for number in range(30)], SETTINGS.model_copy(update={"answers": 3}))
    assert {len(entry.answers) for entry in found.train} == {3}
    assert not found.in_domain
    assert found.counts["fewer_than_two_answers"] == {"in_domain": len(found.train)}


def test_pairs_name_a_source_a_side_and_have_no_further_answers() -> None:
    sides = [("ada", "bob"), ("ada", "eve"), ("eve", "fay")]
    groups = []
    for number in range(60):
        names = sides[number % 3]
        pair = group(number, names, scores=(1.0, 0.0), margin=0.5, meta=dict(zip(("chosen_model", "rejected_model"), names, strict=True)))
        groups.append(pair)
    found = cut(groups, Scenarios(source=("chosen_model", "rejected_model"), unseen=("eve", "fay")))
    assert {entry.meta["chosen_model"] for entry in (*found.train, *found.prompt_disjoint)} == {"ada"}
    assert {entry.meta["chosen_model"] for entry in (*found.response_disjoint, *found.mutual_disjoint)} == {"eve"}
    assert all(entry.margin == 0.5 for entry in found.train), "a pair that is left as it was keeps its margin"
    assert not found.in_domain
    in_domain = found.counts["fewer_than_two_answers"]["in_domain"]
    assert in_domain == len(split_by_prompt(groups, fraction=0.3)[0]), "said of every training prompt"


def test_a_part_of_a_pair_has_no_margin() -> None:
    found = cut([group(number, margin=0.5) for number in range(20)])
    assert {entry.margin for entry in found.train} == {None}


def test_single_answers_joined_by_prompt_bring_their_sources_along() -> None:
    singles = [group(number, (source,), meta={"models": source}) for number in range(20) for source in SOURCES]
    whole = cut([group(number) for number in range(20)])
    joined = cut(merge_single_answers(singles))
    assert joined.counts["answers_by_source"] == dict.fromkeys(sorted(SOURCES), 20)
    assert answers(joined.train) == answers(whole.train)


def test_repeated_prompts_and_answers_are_left_out_and_counted() -> None:
    groups = [group(number) for number in range(30)]
    other = replace(group(3), answers=tuple((Message("assistant", f"another {place}"),) for place in range(len(SOURCES))))
    twice = group(99, answers=tuple((Message("assistant", "same"),) for _ in SOURCES))
    found = cut([*groups, other, twice])
    assert found.counts["left_out"] == {"duplicate_prompts": 1, "identical_answers": 1}
    assert answers(cut([other, *groups, twice]).train) == answers(found.train), "which of two groups stays is a hash of the texts"
    prompts = Counter(entry.prompt_text for entry in (*found.train, *found.prompt_disjoint))
    assert set(prompts.values()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": {"kept": 1}}, r"f:0: got \[None\] in models for 6 answers, expected the name of each .*Its columns are kept; name one"),
        ({"meta": {"models": ["ada"]}}, r"f:0: got \['ada'\] in models for 6 answers"),
        ({"meta": {"models": [1, 2, 3, 4, 5, 6]}}, r"f:0: got \[1, 2, 3, 4, 5, 6\] in models"),
    ],
)
def test_a_group_without_named_sources_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut([group(0, **changes)])


@pytest.mark.parametrize(
    ("settings", "fraction", "message"),
    [
        (SETTINGS, 0.0, r"scenarios.unseen=eve,fay with split=0.0, expected one source or more and a fraction between 0 and 1"),
        (Scenarios(source=("models",), unseen=()), 0.3, r"scenarios.unseen=none with split=0.3"),
        (Scenarios(source=("models",), unseen=("gus",)), 0.3, r"scenarios.unseen=gus, expected some, not all, of .*: ada, bob, cyd"),
        (
            Scenarios(source=("models",), unseen=SOURCES),
            0.3,
            r"expected some, not all, of the sources .*Training needs answers by the others",
        ),
    ],
)
def test_a_cut_that_leaves_a_side_empty_is_refused(settings: Scenarios, fraction: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut([group(number) for number in range(9)], settings, fraction=fraction)


def test_names_may_be_given_with_commas() -> None:
    assert parse(Scenarios, {"source": "chosen_model,rejected_model", "unseen": "a b,c"}).unseen == ("a b", "c")
