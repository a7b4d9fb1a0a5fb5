"""`rewardproof strength` as a user runs it, and `train` on what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_yaml

PROGRAM = [sys.executable, "-m", "rewardproof"]
SMALL = ("members=4", "trainer.max_steps=3", "compute.precision=fp32", "head.learning_rate=1e-2", "trainer.per_device_train_batch_size=8")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_verb_and_what_train_makes_of_its_rows(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows" / "strong.jsonl"
    command = [*PROGRAM, "strength", toy_file, out, f"model={base_dir}", *SMALL]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(Path(f"{out}.report/report.json").read_text())
    assert ran.stdout.splitlines() == [f"{out}: {report['headline']}"]
    assert "[" in report["headline"], "a number comes with its interval"
    assert "Traceback" not in ran.stderr
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == 160
    assert all(row.keys() == {"prompt", "chosen", "rejected", "strength", "strength_std"} for row in written)
    config = load_yaml(Path(f"{out}.report/config.yaml").read_text(), origin="config.yaml")
    assert (config["members"], config["folds"], config["train"]["data"]) == (4, 2, [str(toy_file)])
    assert config["train"]["read"]["on_bad"] == "drop_unfit", "the recipe's"
    again = invoke("strength", toy_file, out, f"model={base_dir}", *SMALL)
    assert again.exit_code == 2
    assert "exists; a run never overwrites a file" in again.stderr
    resumed = invoke("strength", toy_file, out, f"model={base_dir}", *SMALL, "--resume", "--json")
    assert json.loads(resumed.stdout) == report
    trained = invoke("train", "secrets_flip_margin", tmp_path / "run", f"model={base_dir}", f"data={out}", "trainer.max_steps=2")
    assert trained.exit_code == 0, trained.output
    treated = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]["strength"]
    assert treated["treatment"] == "flip_margin"
    assert treated["flipped"] == round(0.1 * treated["pairs"])


def test_mistakes_are_the_user_s(base_dir: Path, toy_file: Path, tmp_path: Path, toy_rows: Callable[..., list[dict[str, Any]]]) -> None:
    mistakes = {
        ("strength", toy_file): "expected DATA OUT",
        ("strength", toy_file, tmp_path / "a"): "Missing key 'model'",
        ("strength", toy_file, tmp_path / "a", f"model={base_dir}", "members=3"): "members=3 with folds=2",
        ("strength", toy_file, tmp_path / "a", f"model={base_dir}", "trainer.learning_rat=1"): "Unknown key 'trainer.learning_rat'",
        ("strength", tmp_path / "none.jsonl", tmp_path / "a", f"model={base_dir}"): "which is no file or folder",
        ("train", "secrets_soft_margin", tmp_path / "a", f"model={base_dir}", f"data={toy_file}"): "rewardproof strength DATA OUT.jsonl",
    }
    for command, message in mistakes.items():
        result = invoke(*command)
        assert result.exit_code == 2, (command, result.output)
        assert result.stdout == ""
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
