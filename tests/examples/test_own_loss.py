"""`examples/own_loss` runs as a user would run it: by the installed command, with nothing of it inside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rewardproof.losses import bradley_terry
from rewardproof.training.objective import pair_loss

ROOT = Path(__file__).parents[2]
OWN_LOSS = ROOT / "examples" / "own_loss"
PROGRAM = Path(sys.executable).parent / "rewardproof"


def test_a_pair_loss_of_ones_own_takes_one_function_and_one_line_of_a_recipe(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    assert sum(len(path.read_text().splitlines()) for path in OWN_LOSS.iterdir() if path.is_file()) < 40
    recipe = (OWN_LOSS / "thurstone.yaml").read_text()
    assert sum("thurstone:thurstone" in line for line in recipe.splitlines()) == 1
    settings = (
        f"model={base_dir}", f"data={toy_file}", "compute.precision=fp32", "trainer.learning_rate=5e-3", "head.learning_rate=1e-2",
        "trainer.num_train_epochs=3", "trainer.per_device_train_batch_size=8",
    )  # fmt: skip
    command = [PROGRAM, "train", OWN_LOSS / "thurstone.yaml", tmp_path / "run", *settings]
    paths = os.pathsep.join((str(OWN_LOSS), str(ROOT)))
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accuracy"]["overall"]["estimate"] > 0.9, "a separable task"


def test_the_probit_is_near_the_logistic_where_gaps_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN_LOSS))
    thurstone = pair_loss("thurstone:thurstone")
    chosen, rejected, margin = torch.tensor([0.3, -0.2, 0.0]), torch.zeros(3), torch.tensor([0.1, 0.0, 0.0])
    expected = -torch.log(0.5 * torch.erfc(-(chosen - rejected - margin) / 2**0.5))
    torch.testing.assert_close(thurstone(chosen, rejected, margin), expected)
    scaled = bradley_terry(1.6 * (chosen - margin), rejected, reduction="none")  # the usual factor between the two
    torch.testing.assert_close(thurstone(chosen, rejected, margin), scaled, rtol=0.02, atol=0)
