"""Training and evaluation cut the same data alike: trained on some prompts and sources, judged by all four scenarios in one command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.data import SCENARIOS, cut_scenarios, read_groups
from rewardproof.data.scenarios import Scenarios
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.evaluation import pair_accuracy, rank_agreement
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.evaluate import Evaluate, run
from tests.evaluation.test_ranking import tau_b

MODELS = ("ada", "bob", "cyd", "dan", "eve", "fay")
CUT = ("split=0.3", "scenarios.source=models", "scenarios.unseen=eve,fay")
SETTINGS = Scenarios(source=("models",), unseen=("eve", "fay"))


def sourced_row(dice: random.Random, number: int) -> dict[str, Any]:
    """An answer is the better the more words below w10 it has; each is by another model."""
    good = dice.sample(range(6), 6)
    answers = [" ".join(f"w{dice.randint(*((0, 9) if place < share else (10, 19)))}" for place in range(5)) for share in good]
    return {"prompt": f"w{40 + number % 50} w{20 + number // 50} w30", "answers": answers, "scores": good, "models": list(MODELS)}


@pytest.fixture(scope="module")
def sourced(write_jsonl: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    dice = random.Random(0)
    return write_jsonl(tmp_path_factory.mktemp("sourced") / "sourced.jsonl", [sourced_row(dice, number) for number in range(80)])


def done(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def trained(base_dir: Path, sourced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bsr"
    done(
        "train", "bsr", out, f"model={base_dir}", f"data={sourced}", *CUT, "compute.precision=fp32", "trainer.learning_rate=5e-3",
        "head.learning_rate=1e-2", "trainer.num_train_epochs=4", "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
    )  # fmt: skip
    return out


def test_training_sees_training_prompts_and_seen_sources_alone(trained: Path, sourced: Path) -> None:
    cut = cut_scenarios(read_groups(str(sourced)).groups, SETTINGS, fraction=0.3)
    report = json.loads((trained / "report.json").read_text())
    rows = report["rows"]
    assert rows["scenarios"] == cut.counts
    assert rows["train"] == len(cut.train)
    assert rows["held_out_set"] == len(cut.prompt_disjoint) == report["accuracy"]["n_groups"]
    rewards = RewardModel.load(trained / "model").score(cut.prompt_disjoint)
    assert report["accuracy"]["overall"]["estimate"] == pytest.approx(pair_accuracy(cut.prompt_disjoint, rewards).overall.estimate)
    assert report["members"][0]["dense"]["states"]["after"]["effective_rank"] > 1
    assert report["members"][0]["dense"]["last"]["loss/bsr"] >= 0
    assert "What the head reads" in (trained / "report.html").read_text()


def test_one_command_judges_all_four_scenarios(trained: Path, sourced: Path, tmp_path: Path) -> None:
    printed = done("evaluate", trained / "model", sourced, *CUT, "precision=fp32", "--out", tmp_path / "e")
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    cut = cut_scenarios(read_groups(str(sourced)).groups, SETTINGS, fraction=0.3)
    model = RewardModel.load(trained / "model")
    for name in SCENARIOS:
        groups = getattr(cut, name)
        rewards = model.score(groups)
        assert report["accuracy"][name]["overall"]["estimate"] == pytest.approx(pair_accuracy(groups, rewards).overall.estimate)
        taus = [tau_b(list(row), list(entry.scores or ())) for entry, row in zip(groups, rewards, strict=True)]
        found = report["kendall"][name]
        assert found["tau"]["estimate"] == pytest.approx(sum(taus) / len(taus), abs=1e-6)
        assert found["tau"]["low"] < found["tau"]["estimate"] < found["tau"]["high"]
        assert found["n_prompts"] == len(groups) == report["rows"][name]["used"]
        assert found == json.loads(json.dumps(rank_agreement(groups, rewards).as_dict()))
        assert name.replace("_", "-") in printed
    assert report["rows"]["scenarios"] == cut.counts
    last = printed.splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'e'}: in-domain accuracy ")
    assert last.count("[") == 4, "every number comes with its interval"
    assert "Scenarios" in (tmp_path / "e" / "report.html").read_text()


def test_single_answers_and_several_files_are_one_data_set(reward_dir: Path, sourced: Path, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sourced.read_text().splitlines()]
    singles = [
        {"prompt": row["prompt"], "answers": [answer], "scores": [score], "models": model}
        for row in rows[:40]
        for answer, score, model in zip(row["answers"], row["scores"], row["models"], strict=True)
    ]
    files = [write_jsonl(tmp_path / "singles.jsonl", singles), write_jsonl(tmp_path / "rest.jsonl", rows[40:])]
    settings = {"model": str(reward_dir), "precision": "fp32", "split": 0.3, "scenarios": SETTINGS}
    whole, _ = run(Evaluate(data=(str(sourced),), **settings))
    parts, _ = run(Evaluate(data=tuple(map(str, files)), **settings))
    for name in SCENARIOS:
        assert parts.results["kendall"][name]["tau"]["estimate"] == pytest.approx(whole.results["kendall"][name]["tau"]["estimate"])


def test_pairs_have_no_in_domain_answers_and_that_is_said(reward_dir: Path, toy_rows: Any, write_jsonl: Any, tmp_path: Path) -> None:
    sides = [("ada", "bob"), ("eve", "fay")]
    rows = [
        {**row, "chosen_model": sides[number % 2][0], "rejected_model": sides[number % 2][1]} for number, row in enumerate(toy_rows(60))
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    keys = ("split=0.3", "scenarios.source=chosen_model,rejected_model", "scenarios.unseen=eve,fay", "precision=fp32")
    printed = done("evaluate", reward_dir, data, *keys)
    assert "no in-domain answers; mean Kendall tau: prompt-disjoint" in printed.replace("\n", "")
    report = json.loads(done("evaluate", reward_dir, data, *keys, "--json"))
    assert report["kendall"]["in_domain"] is None
    assert report["kendall"]["mutual_disjoint"]["n_prompts"] > 3


def test_what_cannot_be_judged_is_refused(reward_dir: Path, sourced: Path, write_jsonl: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scenarios.unseen=eve,fay with split=0.0, expected .*write the same split"):
        run(Evaluate(model=str(reward_dir), data=(str(sourced),), scenarios=SETTINGS))
    rows = [{"prompt": f"w{number}", "answers": ["w1", "w2"], "scores": [1, 0], "models": ["ada", "eve"]} for number in range(20)]
    data = write_jsonl(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(EvaluationError, match=r"None of the four scenarios has two answers .*Check scenarios.unseen"):
        run(Evaluate(model=str(reward_dir), data=(str(data),), split=0.3, scenarios=Scenarios(source=("models",), unseen=("eve",))))
