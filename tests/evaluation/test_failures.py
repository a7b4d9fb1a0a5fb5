"""Failures of a reward model: which pairs are searched, what counts as a failure, and what is learned from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardproof.data import Group, Message, ordered_pairs
from rewardproof.evaluation.failures import (
    Class,
    Failure,
    SearchedPair,
    Written,
    discovery_rates,
    failing,
    fresh,
    lowest_losses,
    perplexity,
    preferences,
)
from rewardproof.losses import bradley_terry


def pair_of(prompt: str, preferred: str = "good", other: str = "bad") -> SearchedPair:
    answers = ((Message("assistant", preferred),), (Message("assistant", other),))
    return SearchedPair(Group((Message("user", prompt),), answers, scores=(1.0, 0.0), id=f"id of {prompt}"), 0, 1)


def written(pair: SearchedPair, kind: Class, text: str, *, log_prob: float = -2.0, tokens: int = 2) -> Written:
    return Written(pair, kind, text, log_prob, tokens)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_5_percent_are_the_pairs_of_the_smallest_bradley_terry_losses(share: float) -> None:
    gaps = np.random.default_rng(0).normal(size=60)
    losses = bradley_terry(torch.from_numpy(gaps), torch.zeros(60, dtype=torch.float64), reduction="none").numpy()
    found = lowest_losses(gaps.tolist(), share)
    assert len(found) == round(share * 60)
    assert set(found) == set(np.argsort(losses)[: round(share * 60)].tolist())
    assert found == sorted(found)


def test_confident_pairs_are_told_apart_where_their_losses_round_to_0() -> None:
    gaps = [200.0, 300.0, 150.0, 400.0]
    assert (bradley_terry(torch.tensor(gaps), torch.zeros(4), reduction="none") == 0).all()
    assert lowest_losses(gaps, 0.5) == [1, 3]
    assert lowest_losses(gaps, 0.01) == [3], "at least one"
    assert lowest_losses(gaps, 1.0, limit=2) == [1, 3]


def test_empty_copied_and_repeated_variants_are_left_out() -> None:
    pair = pair_of("a")
    given = [
        written(pair, "preferred", " \n"),
        written(pair, "preferred", "good "),
        written(pair, "non_preferred", "bad"),
        written(pair, "preferred", "new  text"),
        written(pair, "preferred", "new text"),
        written(pair, "non_preferred", "new text"),
        written(pair_of("b"), "preferred", "new text"),
    ]
    kept, counts = fresh(given)
    assert kept == [given[3], given[5], given[6]], "the same text may be sought for another class or prompt"
    assert counts == {("preferred", "empty"): 1, ("preferred", "copied"): 1, ("non_preferred", "copied"): 1, ("preferred", "repeated"): 1}


def test_a_text_for_two_pairs_of_a_prompt_is_proved_on_each() -> None:
    """What the argmin writes for a prompt and a class does not depend on the pair; whether it is on the wrong side does."""
    pair, twin = pair_of("a"), pair_of("a", "good", "better than it scores")
    kept, counts = fresh([written(pair, "preferred", "new text"), written(twin, "preferred", "new text")])
    assert not counts
    found, counts = failing(kept, [(3.0, 0.0, 1.0), (3.0, 2.0, 1.0)])
    assert [one.written.pair for one in found] == [twin]
    assert counts == {("preferred", "no_failure"): 1, ("preferred", "failures"): 1}
    both, counts = failing(kept, [(3.0, 2.0, 1.0), (3.0, 2.0, 1.0)])
    assert [one.written.pair for one in both] == [pair, twin], "to fail twice as one class is no contradiction"


def test_only_true_failures_are_kept() -> None:
    """Both inequalities, strict, over random rewards."""
    rewards = np.random.default_rng(0).integers(-2, 3, size=(200, 3)).astype(float).tolist()
    kinds: list[Class] = ["preferred" if number % 2 else "non_preferred" for number in range(200)]
    variants = [written(pair_of(str(number)), kind, f"text {number}") for number, kind in enumerate(kinds)]
    found, counts = failing(variants, rewards)
    expected = [
        variant
        for variant, (winner, loser, own) in zip(variants, rewards, strict=True)
        if (own < loser if variant.kind == "preferred" else own > winner)
    ]
    assert [one.written for one in found] == expected
    assert counts.total() == 200
    assert sum(count for (_, fate), count in counts.items() if fate == "failures") == len(expected)
    assert all(one.width > 0 for one in found)


def test_a_text_that_fails_as_both_classes_is_none() -> None:
    pair = pair_of("a")
    variants = [written(pair, "preferred", "same  text"), written(pair, "non_preferred", "same text"), written(pair, "preferred", "own")]
    found, counts = failing(variants, [(0.0, 3.0, 2.0), (0.0, 3.0, 2.0), (0.0, 3.0, 1.0)])
    assert [one.written.text for one in found] == ["own"]
    assert counts["preferred", "contradictory"] == counts["non_preferred", "contradictory"] == 1


@pytest.fixture
def failures() -> list[Failure]:
    pair, other = pair_of("a"), pair_of("b")
    return [
        Failure(written(pair, "preferred", "v+"), (2.0, 1.0, 0.5)),
        Failure(written(pair, "non_preferred", "v-"), (2.0, 1.0, 3.0)),
        Failure(written(other, "preferred", "w+"), (2.0, 1.0, 0.0)),
    ]


def texts(groups: list[Group]) -> list[tuple[str, ...]]:
    assert all([pair[:2] for pair in ordered_pairs(group)] == [(0, 1)] for group in groups), "the first answer is the preferred one"
    return [group.answer_texts for group in groups]


def test_failures_become_preferences_against_the_pair_s_other_answer(failures: list[Failure]) -> None:
    made = preferences(failures)
    assert texts(made) == [("v+", "bad"), ("good", "v-"), ("w+", "bad")]
    assert [group.prompt_text for group in made] == ["a", "a", "b"]
    assert made[0].meta == {"source": "id of a", "failure": "preferred", "rewards": [2.0, 1.0, 0.5]}


def test_the_other_pairings(failures: list[Failure]) -> None:
    assert texts(preferences(failures, "variants")) == [("v+", "v-")]
    assert texts(preferences(failures, "both")) == [("v+", "bad"), ("good", "v-"), ("w+", "bad"), ("v+", "v-")]


def test_the_discovery_rate_counts_pairs_once(failures: list[Failure]) -> None:
    searched = [pair_of(prompt) for prompt in "abcd"]
    again = Failure(written(searched[0], "preferred", "another"), (2.0, 1.0, 0.5))
    rates = discovery_rates(searched, [*failures, again])
    assert {name: rate.estimate for name, rate in rates.items()} == {"preferred": 0.5, "non_preferred": 0.25, "any": 0.5}
    nothing = discovery_rates(searched, [])["any"]
    assert nothing.high > 0.4, "four pairs without a failure do not prove that there is none"


def test_perplexity_is_over_tokens() -> None:
    pair = pair_of("a")
    found = perplexity([written(pair, "preferred", "x", log_prob=-3.0, tokens=1), written(pair, "preferred", "y", log_prob=-1.0, tokens=3)])
    assert found == pytest.approx(np.exp(1.0))
    assert perplexity([]) is None
