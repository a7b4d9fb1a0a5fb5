"""kill -9 in the middle of every training-time method's run, then --resume: what an undisturbed run ends at, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults import undisturbed
from tests.faults.undisturbed import Moment, appears

pytestmark = pytest.mark.slow
TIMES = {"seconds", "peak_memory_gb", "tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
TRAINING = appears("checkpoints/dense/checkpoint-3/trainer_state.json")
METHODS: dict[str, tuple[Moment, tuple[str, ...]]] = {
    "bsr": (TRAINING, ("compute.tokens_per_batch=64",)),
    "secrets_flip": (TRAINING, ()),
    "secrets_margin": (TRAINING, ()),
    "secrets_flip_margin": (TRAINING, ()),
    "secrets_soft_margin": (TRAINING, ()),
    "simcse": (TRAINING, ()),
    "swav": (TRAINING, ()),
    "haf": (TRAINING, ()),
    "bnrm": (TRAINING, ("factors.n_factors=8",)),
    "grm_bnrm": (TRAINING, ("factors.n_factors=8",)),
    "dogerm": (TRAINING, ("domain.held_out=0.3",)),
    "dmoerm": (
        appears("checkpoints/categories-1-base/checkpoint-3"),
        ("labels.capabilities=points", "capabilities.lora.r=4", "capabilities.min_pairs=10"),
    ),
}


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., Any], write_jsonl: Callable[..., Path]) -> Path:
    """Preferences with all that a method may ask for beside them: strength, category, points."""
    draw = random.Random(0)
    rows = [
        {
            **row,
            "strength": draw.gauss(1, 1),
            "category": ("blue", "red")[number % 2],
            "points": {"care": [1.0, 0.0], "humour": [0.0, 1.0][:: draw.choice((1, -1))]},
        }
        for number, row in enumerate(toy_rows(160))
    ]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def language_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain's language model: the base, moved a little."""
    folder = tmp_path_factory.mktemp("lm")
    model = tiny.causal("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.02
    model.save_pretrained(folder)
    tiny.word_tokenizer().save_pretrained(folder)
    return folder


def delivered(run: Path) -> dict[str, Any]:
    """Every tensor of the delivered model, adapters and all."""
    files = sorted((run / "model").rglob("*.safetensors"))
    return {f"{file.relative_to(run)}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def records(run: Path) -> list[str]:
    """Phase, step and kind of every record of the log that says something of a step."""
    kinds = ("loss", "eval_loss", "states")
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return sorted(f"{line['phase']} {line['step']} {kind} {line.get('states')}" for line in lines for kind in kinds if kind in line)


@pytest.mark.parametrize("method", METHODS)
def test_train_killed_and_resumed(
    method: str,
    base_dir: Path,
    rows_file: Path,
    language_model: Path,
    killed: Callable[..., bool],
    finished: Callable[..., str],
    tmp_path: Path,
) -> None:
    moment, settings = METHODS[method]
    command = (
        f"model={base_dir}", f"data={rows_file}", "split=0.25", "compute.precision=fp32", "trainer.learning_rate=5e-3",
        "trainer.max_steps=6", "trainer.per_device_train_batch_size=8", "trainer.save_steps=1", "trainer.save_strategy=steps",
        "trainer.logging_steps=2", "layers=top:2", *settings, *((f"domain.model={language_model}",) if method == "dogerm" else ()),
    )  # fmt: skip
    finished("train", method, tmp_path / "whole", *command)
    runs = (tmp_path / str(attempt) for attempt in range(5))  # a moment can be over before it is seen
    run = next(run for run in runs if killed(moment(run), "train", method, run, *command))
    finished("train", method, run, *command, "--resume")
    ours, theirs = delivered(run), delivered(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert undisturbed.report(run, TIMES) == undisturbed.report(tmp_path / "whole", TIMES)
    assert records(run) == records(tmp_path / "whole"), "steps are missing from the log, or in it twice"
