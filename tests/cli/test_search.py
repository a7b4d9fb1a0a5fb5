"""`rewardproof search` as a user runs it: policies of both classes, the search, and `train` on what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from rewardproof.cli.main import app

SMALL = ("compute.precision=fp32", "trainer.max_steps=3", "trainer.per_device_train_batch_size=8", "head.learning_rate=1e-2")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_policies_search_and_training(base_dir: Path, reward_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    for name, noise in (("aligned", 0), ("flipped", 1)):
        small = ["direct.steps=2", "direct.groups_per_step=8", "direct.max_new_tokens=4", "evaluate.prompts=2", "evaluate.answers=2"]
        made = invoke(
            "align", "dpo", tmp_path / name, f"policy={base_dir}", f"prompts={toy_file}", f"direct.read.label_noise={noise}", *small
        )
        assert made.exit_code == 0, made.output
    out = tmp_path / "found"
    policies = [f"{name}={tmp_path / name / 'model'}" for name in ("aligned", "flipped")]
    settings = [f"data={toy_file}", *policies, "alpha=0", "top_k=12", "share=0.2", "max_new_tokens=6"]
    ran = subprocess.run(
        [sys.executable, "-m", "rewardproof", "search", reward_dir, out, *settings], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((out / "report.json").read_text())
    assert ran.stdout.splitlines() == [f"{out}: {report['headline']}"]
    assert report["failures"] > 0
    again = invoke("search", reward_dir, out, *settings)
    assert again.exit_code == 2
    assert "is not empty; a run never overwrites another" in again.stderr
    once_more = invoke("search", reward_dir, out, *settings, "--overwrite", "--json")
    assert json.loads(once_more.stdout)["variants"] == report["variants"]
    trained = invoke("train", "dense", tmp_path / "run", f"model={base_dir}", f"data={toy_file},{out / 'failures.jsonl'}", *SMALL)
    assert trained.exit_code == 0, trained.output
    sources = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]["train_sources"]
    assert sources["used"] == 160 + report["failures"]


def test_mistakes_are_the_user_s(base_dir: Path, reward_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    mistakes = {
        ("search", reward_dir): "expected MODEL OUT",
        ("search", reward_dir, tmp_path / "a"): "Missing key 'data'",
        ("search", reward_dir, tmp_path / "a", f"data={toy_file}"): "Missing aligned=",
        ("search", reward_dir, tmp_path / "a", f"data={toy_file}", "alpha=-1"): "Bad value for 'alpha'",
        ("search", reward_dir, tmp_path / "a", f"data={toy_file}", "tops=3"): "Unknown key 'tops' (did you mean 'top_k'?)",
        ("search", base_dir, tmp_path / "a", f"data={toy_file}", f"aligned={base_dir}", f"flipped={base_dir}"): "it has no reward head",
        ("train", "reform", tmp_path / "a", f"model={base_dir}", f"data={toy_file}", "members=2"): "Got `reform` with members",
    }
    for command, message in mistakes.items():
        result = invoke(*command)
        assert result.exit_code == 2, (command, result.output)
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
