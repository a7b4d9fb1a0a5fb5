"""A gold server that fails while `stress` and `align` run: tried again and counted, or an error after which nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewardproof.config import load_recipe, parse
from rewardproof.data import endpoint
from rewardproof.errors import EvaluationError
from rewardproof.stages import align, stress, stress_best_of_n

Answer = Callable[[dict[str, Any]], tuple[int, str]]
PATIENCE = 5
"""Attempts before a request is given up."""


def judged(body: dict[str, Any]) -> tuple[int, str]:
    """Gold: how many characters an answer has."""
    return 200, json.dumps({"rewards": [[len(answer[-1]["content"]) for answer in group["answers"]] for group in body["groups"]]})


FAULTS: dict[str, Answer] = {
    "HTTP status 503": lambda body: (503, ""),
    "no finite number": lambda body: (200, json.dumps({"rewards": [[float("nan") for _ in group["answers"]] for group in body["groups"]]})),
    "scores in": lambda body: (200, json.dumps({"rewards": []})),
}


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)


def picks(model: Path, pool: Path, gold: str) -> stress.Stress:
    return stress.Stress(models=(str(model),), pool=(str(pool),), gold=gold, precision="fp32")


@pytest.mark.parametrize("reason", FAULTS)
def test_best_of_n_is_the_same_after_faults_that_pass(reason: str, serve, reward_dir: Path, pool_file: Path, tmp_path: Path) -> None:
    expected = stress.run(picks(reward_dir, pool_file, serve(judged)), tmp_path / "whole").results["methods"]
    found = stress.run(picks(reward_dir, pool_file, serve(FAULTS[reason], FAULTS[reason], judged)), tmp_path / "out")
    strip = {"scoring_seconds"}
    for one, other in zip(found.results["methods"].values(), expected.values(), strict=True):
        assert {k: v for k, v in one.items() if k not in strip} == {k: v for k, v in other.items() if k not in strip}
    assert list(found.results["retries"].values()) == [2]


@pytest.mark.parametrize("reason", FAULTS)
def test_best_of_n_goes_on_once_the_server_is_back(
    reason: str, serve, reward_dir: Path, pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_best_of_n, "CHUNK", 8)
    broken = [FAULTS[reason]] * PATIENCE
    address = serve(judged, *broken, judged)
    config = picks(reward_dir, pool_file, address)
    with pytest.raises(EvaluationError, match=f"gave no scores for 8 groups: .*{reason}"):
        stress.run(config, tmp_path / "out")
    kept = tmp_path / "out" / "scores" / "gold.jsonl"
    assert len(kept.read_text().splitlines()) == 8
    report = stress.run(config, tmp_path / "out", resume=True)
    assert len(kept.read_text().splitlines()) == 20
    lengths = [json.loads(line)["scores"] for line in kept.read_text().splitlines()]
    assert all(score == int(score) > 0 for row in lengths for score in row)
    assert report.results["rows"]["used"] == 20
    assert report.results["retries"] == {address: PATIENCE - 1}, "those of the run that failed are not forgotten"


def policy(base: Path, reward: Path, prompts: Path, gold: str) -> align.Align:
    chosen = load_recipe("rloo", verb="align")
    chosen["optimise"] |= {"steps": 3, "prompts_per_step": 4, "answers": 2, "max_new_tokens": 4, "learning_rate": 1e-3}
    keys = {"policy": str(base), "reward": [str(reward)], "gold": gold, "prompts": [str(prompts)], "split": 0.3}
    evaluate = {"every": 1, "prompts": 4, "answers": 2}
    return parse(align.Align, {**chosen, **keys, "evaluate": evaluate, "compute": {"precision": "fp32", "save_every": 1}})


@pytest.mark.parametrize("reason", FAULTS)
def test_a_policy_run_goes_on_once_the_server_is_back(
    reason: str, serve, base_dir: Path, reward_dir: Path, pool_file: Path, tmp_path: Path
) -> None:
    whole = align.run(policy(base_dir, reward_dir, pool_file, serve(judged)), tmp_path / "whole").results["evaluations"]
    config = policy(base_dir, reward_dir, pool_file, serve(judged, judged, *[FAULTS[reason]] * PATIENCE, judged))
    with pytest.raises(EvaluationError, match=f"gave no scores for 4 groups: .*{reason}"):
        align.run(config, tmp_path / "out")
    assert len(list((tmp_path / "out" / "evaluations").iterdir())) == 2
    report = align.run(config, tmp_path / "out", resume=True)
    assert report.results["evaluations"] == whole
    assert report.results["retries"] == PATIENCE - 1, "those of the run that failed are not forgotten"


def test_retries_of_a_policy_run_are_counted(serve, base_dir: Path, reward_dir: Path, pool_file: Path, tmp_path: Path) -> None:
    gold = serve(FAULTS["HTTP status 503"], judged)
    assert align.run(policy(base_dir, reward_dir, pool_file, gold), tmp_path / "out").results["retries"] == 1
