"""`rewardproof evaluate` reads what training reads: single answers joined by prompt, over-long groups by rule, all of it counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewardproof.data import merge_single_answers, read_groups, split_by_prompt
from rewardproof.errors import CheckpointError, ConfigError, DataError
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import Implicit
from rewardproof.stages.evaluate import Evaluate, run


def accuracy(model: RewardModel, groups: Any) -> float:
    rewards = model.score(groups)
    wins = [
        (row[scores.index(max(scores))] > row[scores.index(min(scores))])
        for row, scores in zip(rewards, [list(group.scores or ()) for group in groups], strict=True)
    ]
    return sum(wins) / len(wins)


@pytest.fixture
def singles(toy_rows: Callable[..., list[dict[str, Any]]], write_jsonl: Callable[..., Path], tmp_path: Path) -> Path:
    """KTO: one judged answer a row, the two answers of a prompt apart from each other."""
    rows = toy_rows(20, seed=3)
    good = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    bad = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows]
    return write_jsonl(tmp_path / "kto.jsonl", [*good, *bad])


@pytest.fixture
def mixed(toy_rows: Callable[..., list[dict[str, Any]]], write_jsonl: Callable[..., Path], tmp_path: Path) -> Path:
    """Twenty pairs, of which every fifth has a prompt of 60 words more."""
    rows = toy_rows(20, seed=5)
    for number in range(0, 20, 5):
        rows[number]["prompt"] += " w50" * 60
    return write_jsonl(tmp_path / "mixed.jsonl", rows)


def test_single_answers_are_joined_by_prompt(reward_dir: Path, singles: Path) -> None:
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(singles),), precision="fp32"))
    groups = merge_single_answers(read_groups(str(singles)).groups)
    assert len(groups) == 20
    found = report.results["accuracy"][str(singles)]
    assert found["n_pairs"] == 20
    assert found["overall"]["estimate"] == pytest.approx(accuracy(RewardModel.load(reward_dir), groups))
    assert report.results["rows"][str(singles)] == {"read": 40, "used": 20, "dropped": {}, "prompt_truncated": 0}


def test_a_split_of_single_answers_is_the_one_of_training(reward_dir: Path, singles: Path) -> None:
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(singles),), precision="fp32", split=0.3))
    held = split_by_prompt(merge_single_answers(read_groups(str(singles)).groups), fraction=0.3)[1]
    assert report.results["rows"][str(singles)]["used"] == len(held) > 0


def test_the_seconds_are_those_of_the_verb(reward_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    import time

    def slow(_what: str, _done: int, _total: int) -> None:
        time.sleep(0.4)

    run(Evaluate(model=str(reward_dir), data=(str(toy_file),)), tmp_path / "e", progress=slow)
    assert json.loads((tmp_path / "e" / "report.json").read_text())["seconds"] >= 0.4


def test_an_input_inside_the_output_directory_is_refused(reward_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    run(Evaluate(model=str(reward_dir), data=(str(toy_file),)), tmp_path / "e")
    mine = tmp_path / "e" / "mine.jsonl"
    mine.write_bytes(toy_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"mine.jsonl lies in the output directory"):
        run(Evaluate(model=str(reward_dir), data=(str(mine),)), tmp_path / "e", overwrite=True)
    reference = Implicit(reference=str(tmp_path / "e"))
    with pytest.raises(CheckpointError, match="lies in the output directory"):
        run(Evaluate(model=str(reward_dir), data=(str(toy_file),), implicit=reference), tmp_path / "e", overwrite=True)
    assert mine.exists()


def test_long_groups_fail_fall_away_or_are_shortened(reward_dir: Path, mixed: Path) -> None:
    settings = Evaluate(model=str(reward_dir), data=(str(mixed),), precision="fp32", max_length=30)
    with pytest.raises(
        DataError, match=r"mixed.jsonl:1: got a conversation of \d+ tokens, expected at most max_length=30; .*overlong=drop"
    ):
        run(settings)
    found, _ = run(settings.model_copy(update={"overlong": "drop"}))
    assert found.results["rows"][str(mixed)] == {"read": 20, "used": 16, "dropped": {"overlong": 4}, "prompt_truncated": 0}
    short = [group for number, group in enumerate(read_groups(str(mixed)).groups) if number % 5]
    assert found.results["accuracy"][str(mixed)]["n_pairs"] == 16
    assert found.results["accuracy"][str(mixed)]["overall"]["estimate"] == pytest.approx(accuracy(RewardModel.load(reward_dir), short))
    shortened, _ = run(settings.model_copy(update={"overlong": "truncate_prompt"}))
    assert shortened.results["rows"][str(mixed)] == {"read": 20, "used": 20, "dropped": {}, "prompt_truncated": 4}
    assert shortened.results["accuracy"][str(mixed)]["n_pairs"] == 20
    with pytest.raises(DataError, match=r"mixed.jsonl: all 20 groups are longer than 3 tokens and were dropped; .*Raise max_length"):
        run(settings.model_copy(update={"overlong": "drop", "max_length": 3}))


def test_raw_text_takes_no_template(reward_dir: Path, mixed: Path) -> None:
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(mixed),), precision="fp32", text="raw"))
    groups = read_groups(str(mixed), text="raw").groups
    rewards = RewardModel.load(reward_dir).score(groups)
    mean = sum(map(sum, rewards)) / 40
    assert report.results["accuracy"][str(mixed)]["reward_mean"] == pytest.approx(mean, abs=1e-5)


def test_what_frozen_layers_put_out_is_kept_for_the_next_model(
    reward_dir: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    config = Evaluate(model=str(reward_dir), data=(str(mixed),), precision="fp32")
    expected = run(config)[0].results["accuracy"]
    assert not (tmp_path / "trunk").exists()
    shared = config.model_copy(update={"layers": "top:1"})
    assert run(shared)[0].results["accuracy"] == expected
    assert list((tmp_path / "trunk").iterdir())
    monkeypatch.setattr("rewardproof.models.trunk.trunk_states", None)  # nothing is left to compute
    assert run(shared)[0].results["accuracy"] == expected
    with pytest.raises(ConfigError, match=r"Got layers=top:1 with implicit, expected all"):
        run(shared.model_copy(update={"implicit": Implicit()}))


def test_rows_that_repeat_prompts_and_answers_are_computed_once(
    reward_dir: Path, write_jsonl: Callable[..., Path], toy_rows: Callable[..., list[dict[str, Any]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = toy_rows(6, seed=4)
    again = [{**row, "rejected": other["rejected"]} for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
    asked: list[int] = []
    score = RewardModel.score_encoded

    def counted(self: RewardModel, groups: Any, **others: Any) -> Any:
        asked.extend(len(group.conversations) for group in groups)
        return score(self, groups, **others)

    monkeypatch.setattr(RewardModel, "score_encoded", counted)
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(write_jsonl(tmp_path / "again.jsonl", rows + again)),), precision="fp32"))
    assert report.results["accuracy"][str(tmp_path / "again.jsonl")]["n_pairs"] == 12
    assert asked == [3] * 6, "a prompt's chosen answer once, and two rejected ones"
