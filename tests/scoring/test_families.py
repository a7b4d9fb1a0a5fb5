"""Families of the embedded world's rules as scorers: parts of gold that together make its satisfaction, and clear errors."""

from __future__ import annotations

import numpy as np
import pytest

from rewardproof.data import Group, Message
from rewardproof.data.world import FAMILIES, constraint_scores, load_world
from rewardproof.data.world.constraints import family_of
from rewardproof.errors import DataError
from rewardproof.scoring import load_scorer, stream_names


def test_families_add_up_to_the_satisfaction_of_all_rules() -> None:
    groups = load_world("heldout")[:60]
    by_family = {family: load_scorer(f"embedded:checkable/{family}").score(groups) for family in FAMILIES}
    for place, group in enumerate(groups):
        asked = group.meta["constraints"]
        for answer, text in enumerate(group.answer_texts):
            weights = {family: sum(family_of(one) == family for one in asked) for family in FAMILIES}
            parts = sum(weights[family] * by_family[family][place][answer] for family in FAMILIES)
            assert parts == pytest.approx(sum(constraint_scores(text, asked)))
            assert all(by_family[family][place][answer] == 1 for family in FAMILIES if not weights[family])


def test_every_family_tells_answers_apart_and_does_not_see_quality() -> None:
    groups = load_world("heldout")[:60]
    for family in FAMILIES:
        scores = load_scorer(f"embedded:checkable/{family}").score(groups)
        assert np.ptp([value for row in scores for value in row]) == 1
        assert [len(row) for row in scores] == [len(group.answers) for group in groups]
    short = next(group for group in groups if "max_words" in {one["kind"] for one in group.meta["constraints"]})
    empty = Group(prompt=short.prompt, answers=((Message("assistant", "a"),),), meta=short.meta)
    assert load_scorer("embedded:checkable/length").score([empty])[0][0] > load_scorer("embedded:checkable").score([empty])[0][0]


def test_unknown_families_and_foreign_prompts_are_refused() -> None:
    with pytest.raises(DataError, match=r"Got embedded:checkable/lengths as a scorer \(did you mean 'length'\?\), expected"):
        load_scorer("embedded:checkable/lengths")
    with pytest.raises(
        DataError, match="Got embedded:checkable/train as a scorer, expected embedded:checkable, which is gold, or a family"
    ):
        load_scorer("embedded:checkable/train")
    foreign = Group(prompt=(Message("user", "Hello"),), answers=((Message("assistant", "Hi"),),))
    with pytest.raises(DataError, match="so it is not from embedded:checkable"):
        load_scorer("embedded:checkable/length").score([foreign])


def test_families_have_names_of_their_own() -> None:
    specs = [f"embedded:checkable/{family}" for family in FAMILIES]
    assert stream_names(specs) == list(FAMILIES)
