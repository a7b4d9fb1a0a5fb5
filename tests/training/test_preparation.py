"""From rows to training sets: what is noisy, what is held out, what is left out, and that all of it is counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair
from rewardproof.errors import DataError
from rewardproof.training.batches import Collator, TrainingSet, keep_paired
from rewardproof.training.preparation import Prepared, Read, Sources, Validate, prepare

Rows = list[dict[str, Any]]


@pytest.fixture
def ready(tiny: ModuleType, tmp_path: Path, write_jsonl: Callable[[Path, Rows], Path]) -> Callable[..., Prepared]:
    """Prepare rows as `train` does: `ready(rows, eval_rows=…, split=…, merge=…, **read)`."""

    def make(
        rows: Rows,
        *,
        eval_rows: Rows | None = None,
        split: float = 0.2,
        merge: float = 0.0,
        max_length: int = 200,
        validate: Validate | None = None,
        **read: Any,
    ) -> Prepared:
        data = (str(write_jsonl(tmp_path / "train.jsonl", rows)),)
        evaluation = (str(write_jsonl(tmp_path / "eval.jsonl", eval_rows)),) if eval_rows is not None else ()
        sources = Sources(data, evaluation, split, merge, Read(**read), max_length, validate=validate)
        return prepare(sources, tiny.word_tokenizer())

    return make


def orders(found: TrainingSet) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Winner's and loser's tokens of every pair."""
    return [
        (entry.group.conversations[pair.winner], entry.group.conversations[pair.loser]) for entry in found.groups for pair in entry.pairs
    ]


def test_noise_flips_training_labels_and_no_others(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    clean, noisy = ready(toy_rows(80), merge=0.3), ready(toy_rows(80), merge=0.3, label_noise=1.0)
    for name in ("train", "merge_fit", "merge_stop"):
        assert orders(getattr(noisy, name)) == [(loser, winner) for winner, loser in orders(getattr(clean, name))], name
        assert len(getattr(clean, name)) > 0
    assert orders(noisy.held_out_set) == orders(clean.held_out_set)
    assert [group.scores for group in noisy.held_out] == [(1.0, 0.0)] * len(clean.held_out)
    n_noisy = len(clean.train) + len(clean.merge_fit) + len(clean.merge_stop)
    assert noisy.rows["fell_away"]["flipped_pairs"] == n_noisy
    assert "flipped_pairs" not in clean.rows["fell_away"]
    assert noisy.rows["label_noise"] == 1.0


def test_noise_flips_about_its_rate_the_same_pairs_every_time(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(300)
    clean, first = set(orders(ready(rows, split=0.0).train)), set(orders(ready(rows, split=0.0, label_noise=0.25).train))
    random.Random(1).shuffle(rows)
    again, other = (
        set(orders(ready(rows, split=0.0, label_noise=0.25).train)),
        set(orders(ready(rows, split=0.0, label_noise=0.25, noise_seed=1).train)),
    )
    assert first == again
    assert first != other
    assert len(first - clean) == pytest.approx(75, abs=25)


def test_every_prompt_falls_on_one_side(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(100)
    rows += [{**row, "chosen": "w1 w1"} for row in rows]
    found = ready(rows, merge=0.3)
    parts = [{tokens[:6] for tokens, _ in orders(part)} for part in (found.train, found.merge_fit, found.merge_stop, found.held_out_set)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 100
    assert found.rows["train_sources"] == {"read": 200, "used": 200, "dropped": {}}
    assert sum(found.rows[name] for name in ("train", "merge_fit", "merge_stop", "held_out_set")) == 200
    assert found.rows["prompts_shared_by_train_and_eval"] == 0


def test_max_groups_does_not_depend_on_the_order_of_rows(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(60)
    first = ready(rows, max_groups=20)
    shuffled = random.Random(2).sample(rows, 60)
    again = ready(shuffled, max_groups=20)
    assert len(first.train) == 20
    assert set(orders(first.train)) == set(orders(again.train))
    assert first.rows["left_out_by_max_groups"] == 60 - 20 - len(first.held_out)
    assert set(orders(first.train)) <= set(orders(ready(rows).train))
    assert "left_out_by_max_groups" not in ready(rows, max_groups=60).rows


def test_a_few_of_many_groups_are_of_as_many_prompts_as_there_are(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(24)
    for place, row in enumerate(rows):
        row["prompt"] = f"w{place % 6} w50"
    found = ready(rows, split=0.0, max_groups=8)
    prompts = Counter(entry.group.conversations[0][: entry.group.shared] for entry in found.train.groups)
    assert len(prompts) == 6
    assert sorted(prompts.values()) == [1, 1, 1, 1, 2, 2]


def test_max_groups_bounds_groups_of_one_prompt_and_of_none(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    one_prompt = [{**row, "prompt": "w50 w51"} for row in toy_rows(40)]
    assert len(ready(one_prompt, split=0.0, max_groups=10).train) == 10
    no_prompt = [{"chosen": f"w{40 + number} w1 w2", "rejected": f"w{40 + number} w11"} for number in range(40)]
    found = ready(no_prompt, split=0.0, max_groups=10, text="raw")
    assert len(found.train) == 10
    assert found.rows["left_out_by_max_groups"] == 30


def test_eval_data_is_used_whole_and_shared_prompts_are_counted(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(30)
    found = ready(rows, eval_rows=[*rows[:7], *toy_rows(5, seed=9)], split=0.5)
    assert (len(found.train), len(found.held_out), len(found.held_out_set)) == (30, 12, 12)
    assert found.rows["prompts_shared_by_train_and_eval"] == 7
    assert found.rows["eval_sources"] == {"read": 12, "used": 12, "dropped": {}}


def test_rows_that_fall_away_are_counted_by_reason(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(20)
    same, empty, long = ({**row} for row in toy_rows(3, seed=4))
    same["rejected"], empty["rejected"], long["chosen"] = same["chosen"], " ", "w1 " * 100
    found = ready([*rows, same, empty, long], split=0.0, on_bad="drop_unfit", overlong="drop", max_length=60)
    assert found.rows["train_sources"] == {"read": 23, "used": 21, "dropped": {"identical answers": 1, "empty answer": 1}}
    assert found.rows["fell_away"] == {"overlong_dropped": 1}
    assert found.rows["train"] == len(found.train) == 20
    with pytest.raises(DataError, match=r"train.jsonl:23: got a conversation of \d+ tokens.*max_length=60"):
        ready([*rows, same, empty, long], split=0.0, on_bad="drop", max_length=60)


def test_rankings_keep_at_most_the_pairs_asked_for(ready: Callable[..., Prepared]) -> None:
    rows = [{"prompt": f"w{40 + number}", "answers": ["w1", "w2 w3", "w4", "w5"], "scores": [3, 1, 2, 1]} for number in range(10)]
    assert [len(entry.pairs) for entry in ready(rows, split=0.0).train.groups] == [5] * 10
    limited = ready(rows, split=0.0, pairs_per_group=1).train
    assert [len(entry.pairs) for entry in limited.groups] == [1] * 10
    assert {len(entry.group.conversations) for entry in limited.groups} == {2}, "answers without a pair are not computed"


def test_data_without_an_order(ready: Callable[..., Prepared]) -> None:
    single = [{"prompt": f"w{number}", "completion": "w1", "label": True} for number in range(5)]
    with pytest.raises(DataError, match=r"train.jsonl: 5 groups but no two answers that the data orders.*read.format="):
        ready(single, split=0.0)


def test_too_few_groups_for_the_merge_are_refused_before_training(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    with pytest.raises(
        DataError, match=r"merge.held_out=0.01 of 8 training groups leaves 0 .* raise merge.held_out, or write merge.method"
    ):
        ready(toy_rows(8), split=0.0, merge=0.01)


def test_keep_paired_renames_what_stays() -> None:
    group = EncodedGroup(((5, 1), (5, 2), (5, 3), (5, 4)), 1, (1, 1, 1, 1), 0)
    found = keep_paired(group, [Pair(3, 1, 0.5)])
    assert found.group.conversations == ((5, 2), (5, 4))
    assert found.pairs == (Pair(1, 0, 0.5),)


def test_streams_keep_groups_pairs_and_the_budget(random_set: Callable[..., TrainingSet]) -> None:
    data = random_set(12)
    streams = list(Collator(tokens_per_batch=50, cache=None).streams(data.groups))
    assert len(streams) > 2
    assert sum(stream.batch.n_groups for stream in streams) == 12
    assert [pairs for stream in streams for pairs in stream.batch.pairs] == [entry.pairs for entry in data.groups]
    assert all(stream.batch.n_tokens <= 50 or stream.batch.n_groups == 1 for stream in streams)


def test_held_out_groups_are_limited_by_the_texts_alone(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    whole, some = ready(toy_rows(80), split=0.5), ready(list(reversed(toy_rows(80))), split=0.5, max_held_out=10)
    assert len(some.held_out) == len(some.held_out_set) == 10
    assert {group.prompt_key for group in some.held_out} <= {group.prompt_key for group in whole.held_out}
    assert some.rows["left_out_by_max_held_out"] == len(whole.held_out) - 10
    assert "left_out_by_max_held_out" not in whole.rows
    assert len(some.train) == len(whole.train)


def with_strengths(rows: Rows) -> Rows:
    """Strengths from -3 up, in steps of a tenth."""
    return [{**row, "strength": number / 10 - 3.0} for number, row in enumerate(rows)]


def test_the_weakest_training_labels_are_turned_round_and_the_held_out_ones_are_not(
    ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]
) -> None:
    rows = with_strengths(toy_rows(80))
    clean, found = ready(rows, merge=0.3), ready(rows, merge=0.3, strength={"treatment": "flip", "flip_share": 0.25})
    names = ("train", "merge_fit", "merge_stop")
    before, after = ([order for name in names for order in orders(getattr(one, name))] for one in (clean, found))
    turned = [one != other for one, other in zip(before, after, strict=True)]
    assert sum(turned) == round(0.25 * len(turned)), "the share is of all training pairs together"
    assert [other for one, other, flip in zip(before, after, turned, strict=True) if flip] == [
        (loser, winner) for (winner, loser), flip in zip(before, turned, strict=True) if flip
    ]
    weakest = min(float(row["strength"]) for row in rows)
    assert found.rows["strength"]["flip_to"] > weakest
    assert found.rows["strength"] | {"flip_to": 0} == {
        "treatment": "flip", "pairs": len(turned), "negative": found.rows["strength"]["negative"], "flip_to": 0, "flipped": sum(turned),
        "flipped_though_positive": 0,
    }  # fmt: skip
    assert orders(found.held_out_set) == orders(clean.held_out_set)
    assert "strength" not in clean.rows


def test_a_noisy_label_is_as_weak_as_its_row_is_strong(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    """All rows are strong; the labels that noise turns round are exactly those that a flip turns back."""
    rows = [{**row, "strength": 2.0 + number / 100} for number, row in enumerate(toy_rows(200))]
    clean, noisy = ready(rows, split=0.0), ready(rows, split=0.0, label_noise=0.2)
    share = noisy.rows["fell_away"]["flipped_pairs"] / 200
    assert 0.1 < share < 0.3
    settings = {"treatment": "flip_margin", "flip_share": share, "scale": 1.0}
    found = ready(rows, split=0.0, label_noise=0.2, strength=settings)
    assert orders(found.train) == orders(clean.train) != orders(noisy.train)
    margins = [pair.margin for entry in found.train.groups for pair in entry.pairs]
    assert margins == pytest.approx([row["strength"] for row in rows])
    assert found.rows["strength"]["negative"] == found.rows["strength"]["flipped"] == noisy.rows["fell_away"]["flipped_pairs"]


def test_a_ranking_s_margins_are_its_pairs(ready: Callable[..., Prepared]) -> None:
    rows = [
        {
            "prompt": f"w{number}",
            "answers": ["w1", "w2", "w3", "w4"],
            "scores": [1.0, 3.0, 1.0, 2.0],
            "strength": [1.0, -2.0, 3.0, 4.0, 5.0],
        }
        for number in range(4)
    ]
    found = ready(rows, split=0.0, strength={"treatment": "margin", "scale": 2.0})
    assert [(pair.winner, pair.loser, pair.margin) for pair in found.train.groups[0].pairs] == [
        (1, 0, 2.0), (1, 2, 0.0), (1, 3, 6.0), (3, 0, 8.0), (3, 2, 10.0)
    ]  # fmt: skip
    few = ready(rows, split=0.0, pairs_per_group=2, strength={"treatment": "margin", "scale": 2.0})
    strengths = {("w2", "w1"): 2.0, ("w2", "w3"): 0.0, ("w2", "w4"): 6.0, ("w4", "w1"): 8.0, ("w4", "w3"): 10.0}
    words = {tokens: text for text, tokens in zip(("w1", "w2", "w3", "w4"), found.train.groups[0].group.conversations, strict=True)}
    chosen = few.train.groups[0]
    assert len(chosen.pairs) == 2
    for pair in chosen.pairs:
        winner, loser = (words[chosen.group.conversations[place]] for place in (pair.winner, pair.loser))
        assert pair.margin == strengths[winner, loser], "also where only some pairs are taken"


def test_rows_without_a_strength_stop_a_treatment(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = with_strengths(toy_rows(20))
    del rows[7]["strength"]
    with pytest.raises(DataError, match=r"train.jsonl:8: got a row without 'strength'.*rewardproof strength DATA OUT"):
        ready(rows, split=0.0, strength={"treatment": "soft"})


def test_a_treatment_of_data_without_an_order(ready: Callable[..., Prepared]) -> None:
    with pytest.raises(DataError, match="no two answers that the data orders"):
        ready([{"prompt": "w1", "answers": ["w2"], "scores": [1.0]}], split=0.0, strength={"treatment": "margin"})


def test_training_groups_know_the_key_of_their_prompt(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(10)
    keys = [entry.key for entry in ready([*rows, *rows[:3]], split=0.0).train.groups]
    assert keys[10:] == keys[:3]
    assert len(set(keys)) == 10


def kept(fraction: float, *categories: str) -> Validate:
    return Validate((), fraction, categories, "domain.held_out")


def test_validation_prompts_are_neither_trained_on_nor_evaluated(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = toy_rows(200)
    rows += [{**row, "chosen": "w1 w1"} for row in rows]
    found = ready(rows, merge=0.2, validate=kept(0.3))
    parts = (found.train, found.validation, found.merge_fit, found.merge_stop, found.held_out_set)
    prompts = [{tokens[:6] for tokens, _ in orders(part)} for part in parts]
    assert all(prompts)
    assert sum(len(part) for part in prompts) == len(set.union(*prompts)) == 200
    assert len(prompts[1]) == pytest.approx(0.3 * (200 - len(prompts[4])), abs=20)
    assert found.rows["validation"] == len(found.validation)
    assert "validation" not in ready(rows).rows
    assert len(ready(rows).validation) == 0


def test_validation_rows_from_elsewhere_give_up_prompts_that_are_trained_on_or_evaluated(
    ready: Callable[..., Prepared], toy_rows: Callable[..., Rows], write_jsonl: Callable[[Path, Rows], Path], tmp_path: Path
) -> None:
    rows = toy_rows(60)
    wanted = Validate((str(write_jsonl(tmp_path / "validation.jsonl", [*rows[:30], *toy_rows(20, seed=9)])),), 0.1, (), "domain.data")
    found = ready(rows, validate=wanted)
    assert found.rows["validation_sources"] == {"read": 50, "used": 50, "dropped": {}, "of_prompts_in_train_or_eval": 30}
    assert len(found.validation) == 20
    assert len(found.train) + len(found.held_out_set) == 60, "no prompt is kept from training"
    own = Validate((str(write_jsonl(tmp_path / "own.jsonl", rows)),), 0.1, (), "domain.data")
    with pytest.raises(DataError, match=r"domain\.data: none of 0 groups to choose on .*other prompts than training and"):
        ready(rows, validate=own)


def test_validation_by_category_keeps_prompts_of_no_other(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    rows = [{**row, "category": "math" if number % 4 == 0 else "chat"} for number, row in enumerate(toy_rows(200))]
    math = {row["chosen"] for row in rows if row["category"] == "math"}
    found, whole = ready(rows, validate=kept(0.999, "math")), ready(rows)
    assert 30 < len(found.validation) <= len(math)
    assert len(found.train) == len(whole.train) - len(found.validation), "of other categories every prompt is trained on"
    with pytest.raises(DataError, match=r"domain\.held_out: .*a category of maths, expected some; the categories there are: chat, math"):
        ready(rows, validate=kept(0.5, "maths"))


def test_noise_is_in_the_labels_of_kept_prompts_and_not_in_rows_from_elsewhere(
    ready: Callable[..., Prepared], toy_rows: Callable[..., Rows], write_jsonl: Callable[[Path, Rows], Path], tmp_path: Path
) -> None:
    elsewhere = Validate((str(write_jsonl(tmp_path / "validation.jsonl", toy_rows(20, seed=9))),), 0.1, (), "domain.data")
    for validate, winner in ((kept(0.3), 1), (elsewhere, 0)):
        found = ready(toy_rows(80), validate=validate, label_noise=1.0).validation
        assert {pair.winner for entry in found.groups for pair in entry.pairs} == {winner}


def test_a_fraction_that_keeps_nothing_or_all(ready: Callable[..., Prepared], toy_rows: Callable[..., Rows]) -> None:
    for fraction, found in ((1e-6, r"keeps 0 to choose on and leaves \d\d"), (1 - 1e-6, r"keeps \d\d to choose on and leaves 0")):
        with pytest.raises(DataError, match=rf"domain\.held_out=.* of \d\d groups {found} to train on.*name validation data"):
            ready(toy_rows(20), validate=kept(fraction))
