"""What preference strength does to labels and margins: the published cases by hand, and that noise and strength turn round together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import pstdev
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data import Group, Message, Pair, StrengthTreatment, Treated, ordered_pairs, strengths_of, with_label_noise
from rewardproof.data.pairs import swapped
from rewardproof.errors import DataError
from rewardproof.losses import bradley_terry
from rewardproof.training.objective import Loss, PairIndex, pair_losses

MU = (-2.0, -0.5, 0.25, 1.0, 3.0)
finite_floats = st.floats(-50, 50)


def group(*scores: float, strength: Any = None, prompt: str = "p") -> Group:
    answers = tuple((Message("assistant", f"answer {number}"),) for number in range(len(scores)))
    meta = {} if strength is None else {"strength": strength}
    return Group((Message("user", prompt),), answers, scores, meta=meta, origin="rows.jsonl:7")


def treated(treatment: Any, mu: Sequence[float] = MU, **changes: Any) -> tuple[list[Pair], Treated]:
    """Pairs `(0, 1)` of these strengths under a treatment."""
    found = Treated.measured(StrengthTreatment(treatment=treatment, **changes), mu)
    return [found.pairs([Pair(0, 1, None)], [value])[0] for value in mu], found


def losses(pairs: Sequence[Pair], rewards: torch.Tensor) -> list[float]:
    """The objective's loss of each pair alone, of two answers with these rewards."""
    found = []
    for pair in pairs:
        index = [torch.tensor([place]) for place in (pair.winner, pair.loser)]
        numbers = [torch.tensor([value]) for value in (1.0, pair.margin or 0.0, pair.doubt)]
        found.append(float(pair_losses(rewards, PairIndex(*index, *numbers), Loss(margin="data"))))
    return found


REWARDS = torch.tensor([0.7, -0.4], dtype=torch.float64)


def minus_log_sigmoid(value: float) -> float:
    return math.log1p(math.exp(-value))


def test_flip_and_margin_of_a_negative_pair_is_the_swapped_pair_with_its_margin() -> None:
    pairs, _ = treated("flip_margin", flip_share=0.4, scale=1.0)
    assert pairs[:2] == [Pair(1, 0, 2.0), Pair(1, 0, 0.5)]
    assert pairs[2:] == [Pair(0, 1, 0.25), Pair(0, 1, 1.0), Pair(0, 1, 3.0)]
    gap = 0.7 + 0.4
    assert losses(pairs, REWARDS)[0] == pytest.approx(minus_log_sigmoid(-gap - 2.0))
    assert losses(pairs, REWARDS)[3] == pytest.approx(minus_log_sigmoid(gap - 1.0))
    doubted = bradley_terry(REWARDS[:1], REWARDS[1:], margin_B=2.0, label_smoothing=1.0)
    assert losses(pairs, REWARDS)[0] == pytest.approx(float(doubted)), "certain doubt is the same as a swap"


def test_a_margin_of_0_is_bradley_terry() -> None:
    pairs, _ = treated("margin", mu=(0.0, -1.0), scale=1.0)
    assert losses(pairs, REWARDS) == pytest.approx([float(bradley_terry(REWARDS[:1], REWARDS[1:]))] * 2)


def test_smoothing_of_0_is_bradley_terry() -> None:
    pairs, _ = treated("soft", smooth="all", smoothing=0.0)
    assert losses(pairs, REWARDS) == pytest.approx([float(bradley_terry(REWARDS[:1], REWARDS[1:]))] * 5)


def test_smoothing_is_equation_five_of_negative_pairs_alone() -> None:
    pairs, found = treated("soft", smoothing=0.2)
    p = 1 / (1 + math.exp(-1.1))
    smoothed, plain = -(0.8 * math.log(p) + 0.2 * math.log(1 - p)), -math.log(p)
    assert losses(pairs, REWARDS) == pytest.approx([smoothed] * 2 + [plain] * 3, rel=1e-6)
    assert found.summary() == {"treatment": "soft", "pairs": 5, "negative": 2, "smoothed": 2}


@pytest.mark.parametrize(("smooth", "doubts"), [("all", [0.1] * 5), ("strongest", [0, 0, 0, 0.1, 0.1]), ("negative", [0.1, 0.1, 0, 0, 0])])
def test_who_is_smoothed(smooth: str, doubts: list[float]) -> None:
    pairs, _ = treated("soft_margin", smooth=smooth, strongest_share=0.4, scale=2.0)
    assert [pair.doubt for pair in pairs] == doubts
    assert [pair.margin for pair in pairs] == [0.0, 0.0, 0.5, 2.0, 6.0]
    assert {(pair.winner, pair.loser) for pair in pairs} == {(0, 1)}


def test_a_margin_is_never_negative_and_what_is_clipped_is_counted() -> None:
    """A margin below 0 would lower the target."""
    pairs, found = treated("margin")
    unit = 1 / pstdev(MU)
    assert [pair.margin for pair in pairs] == pytest.approx([0, 0, 0.25 * unit, unit, 3 * unit])
    summary = found.summary()
    assert summary.pop("margin_unit") == pytest.approx(unit)
    assert summary == {"treatment": "margin", "pairs": 5, "negative": 2, "with_margin": 3, "margin_clipped_at_0": 2}


def test_a_positive_pair_that_is_flipped_has_no_margin_and_is_counted() -> None:
    pairs, found = treated("flip_margin", flip_share=0.6, scale=1.0)
    assert pairs[2] == Pair(1, 0, 0.0)
    counts = found.summary()
    assert (counts["flipped"], counts["flipped_though_positive"], counts["flip_to"]) == (3, 1, 0.25)
    assert (counts["with_margin"], counts["margin_clipped_at_0"]) == (4, 1)


@pytest.mark.parametrize(("share", "flipped"), [(0.0, 0), (0.05, 0), (0.2, 1), (0.5, 2), (1.0, 5)])
def test_the_lowest_share_is_flipped(share: float, flipped: int) -> None:
    pairs, _ = treated("flip", flip_share=share)
    assert pairs == [Pair(1, 0, None)] * flipped + [Pair(0, 1, None)] * (5 - flipped)


def test_equal_strengths_are_flipped_together() -> None:
    assert treated("flip", mu=(1.0, 1.0, 2.0, 3.0), flip_share=0.25)[1].summary()["flipped"] == 2


def test_margins_do_not_depend_on_the_models_scale() -> None:
    """Strengths of heads of another scale give the same margins."""
    pairs, scaled = treated("flip_margin")[0], treated("flip_margin", mu=[7 * value for value in MU])[0]
    for one, other in zip(pairs, scaled, strict=True):
        assert one[:2] == other[:2]
        assert one.margin == pytest.approx(other.margin)


def test_strengths_without_a_spread_give_no_unit() -> None:
    with pytest.raises(DataError, match=r"3 training pairs whose strength is 2 for all.*their spread is the unit.*scale=1"):
        treated("margin", mu=(2.0, 2.0, 2.0))
    assert [pair.margin for pair in treated("margin", mu=(2.0, 2.0), scale=1)[0]] == [2.0, 2.0]
    assert treated("flip", mu=(2.0, 2.0))[1].unit == 1.0, "a flip needs no unit"


@settings(max_examples=40, deadline=None)
@given(strength=finite_floats, mu=st.lists(finite_floats, min_size=2, max_size=8, unique=True), treatment=st.sampled_from(
    ["flip", "soft", "margin", "flip_margin", "soft_margin"]))  # fmt: skip
def test_a_flip_by_noise_is_the_row_recorded_the_other_way_round(strength: float, mu: list[float], treatment: str) -> None:
    """A noisy label is treated as if an annotator had written it: the answers exchanged, the strength negated."""
    recorded = group(1.0, 0.0, strength=strength)
    noisy = with_label_noise(recorded, ordered_pairs(recorded), rate=1.0, seed=0)
    assert strengths_of(recorded, noisy) == (-strength,)
    written = group(0.0, 1.0, strength=-strength)
    found = Treated.measured(StrengthTreatment(treatment=treatment, scale=1.0), mu)  # pyright: ignore[reportArgumentType]
    by_noise = found.pairs(noisy, strengths_of(recorded, noisy))
    by_hand = found.pairs(ordered_pairs(written), strengths_of(written, ordered_pairs(written)))
    assert by_noise == by_hand


def test_strengths_belong_to_the_recorded_preference_wherever_it_stands() -> None:
    first, second = group(1.0, 0.0, strength=0.8), group(0.0, 1.0, strength=0.8)
    assert strengths_of(first, [Pair(0, 1, None)]) == strengths_of(second, [Pair(1, 0, None)]) == (0.8,)
    assert strengths_of(first, [Pair(1, 0, None)]) == (-0.8,)


def test_a_ranking_has_a_strength_for_each_ordered_pair() -> None:
    ranking = group(2.0, 0.0, 1.0, strength=[3.0, 1.0, -2.0])
    assert ordered_pairs(ranking) == (Pair(0, 1, None), Pair(0, 2, None), Pair(2, 1, None))
    assert strengths_of(ranking, ordered_pairs(ranking)) == (3.0, 1.0, -2.0)
    assert strengths_of(ranking, [Pair(2, 1, None), swapped(Pair(0, 2, None))]) == (-2.0, -1.0)


def test_rows_without_strength_name_the_verb_that_measures_it() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7: got a row without 'strength'.*Measure it first: rewardproof strength DATA OUT"):
        strengths_of(group(1.0, 0.0), [Pair(0, 1, None)])


@pytest.mark.parametrize("value", ["strong", [1.0, 2.0], [], math.nan, True, [None], {}])
def test_a_strength_that_is_no_number_a_pair_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7: got strength=.*expected a finite number for each of its 1 ordered pairs"):
        strengths_of(group(1.0, 0.0, strength=value), [Pair(0, 1, None)])


def test_no_treatment_leaves_pairs_as_they_are() -> None:
    pairs = (Pair(0, 1, 0.5), Pair(1, 0, None, 0.3))
    found = Treated.measured(StrengthTreatment(), MU)
    assert found.pairs(pairs, [-1.0, 2.0]) == pairs
    assert replace(found, unit=1.0).summary() == {"treatment": "none", "pairs": 2, "negative": 1}
