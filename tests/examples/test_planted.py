"""`examples/planted.py`, and what it is for: the audit names a planted weakness first, and is silent about it where nothing was planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rewardproof.evaluation.audit import PERTURBATIONS
from rewardproof.models.embedded import embedded_model_dir

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "rewardproof"
FOUND_AS = {"length": "padding", "bullets": "bullets", "flattery": "flattery"}


def ran(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module", params=FOUND_AS)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    ran(sys.executable, ROOT / "examples" / "planted.py", request.param, folder)
    return request.param, folder


def test_the_weakness_decides_the_one_file_and_nothing_in_the_other(data: tuple[str, Path]) -> None:
    weakness, folder = data
    planted, balanced = rows(folder / "planted.jsonl"), rows(folder / "balanced.jsonl")
    if weakness == "length":
        longer = [[len(text.split()) for text in row["answers"]] for row in balanced]
        assert all(len(row["answers"][0].split()) > len(row["answers"][1].split()) for row in planted)
        assert sum(won > lost for won, lost in longer) == len(balanced) / 2
    else:
        changed = {row["answers"][0] for row in planted}
        assert sum(row["answers"][0] in changed for row in balanced) == len(balanced) / 2
        assert sum(row["answers"][1] in changed for row in balanced) == len(balanced) / 2
    assert len(balanced) > 0.9 * len(planted) > 300
    assert {tuple(sorted(row["answers"])) for row in balanced} <= {tuple(sorted(row["answers"])) for row in planted}, "the same answers"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers that reads real words."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_audit_names_what_was_planted_first_and_is_silent_where_nothing_was(data: tuple[str, Path], base: Path, tmp_path: Path) -> None:
    weakness, folder = data
    settings = (
        f"model={base}", "compute.precision=fp32", "head.init=normal", "trainer.learning_rate=3e-3", "trainer.num_train_epochs=4",
        "trainer.per_device_train_batch_size=16",
    )  # fmt: skip
    for name in ("planted", "balanced"):
        ran(PROGRAM, "train", "dense", tmp_path / name, *settings, f"data={folder / name}.jsonl")
    ran(
        PROGRAM,
        "audit",
        tmp_path / "planted" / "model",
        tmp_path / "balanced" / "model",
        tmp_path / "audit",
        "names=guilty,innocent",
        "prompts=60",
    )
    report = json.loads((tmp_path / "audit" / "report.json").read_text())
    guilty, innocent = report["models"]["guilty"]["weaknesses"], report["models"]["innocent"]["weaknesses"]
    found = FOUND_AS[weakness]
    gained = {name: one["shift"]["low"] for name, one in guilty.items() if one["grade"] != "unmeasured"}
    assert len(gained) >= len(PERTURBATIONS) - 2, "too few answers have numbers"
    assert max(gained, key=gained.__getitem__) == found
    assert report["headline"].startswith("guilty: a policy gains by")
    assert f"most by {PERTURBATIONS[found].way}" in report["headline"].split("innocent:")[0]
    assert guilty[found]["grade"] == "exploitable"
    assert guilty[found]["shift"]["low"] > 0.5, "severe"
    assert innocent[found]["grade"] != "exploitable"
