"""Good and bad things to hand to the command line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import Upcycle, upcycle


def _not_finite(tiny: ModuleType) -> Any:
    model = tiny.classifier("llama")
    model.score.weight.data[0, 0] = float("nan")
    return model


def _config(changes: dict[str, Any]) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        return (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))

    return change


DAMAGED: dict[str, Callable[[Path], object]] = {
    "torn": lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000]),
    "weightless": lambda folder: (folder / "model.safetensors").unlink(),
    "unconfigured": lambda folder: (folder / "config.json").write_text('{"model_type": "llama",'),
    "wider": _config({"hidden_size": 64}),
    "unknown": _config({"model_type": "nomodel"}),
    "two_labels": _config({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}),
    "speechless": lambda folder: [file.unlink() for file in folder.glob("tok*")],
    "garbled": lambda folder: (folder / "tokenizer.json").write_text("{"),
}
"""What can be wrong with the directory of a reward model."""


def _damaged(model: Path, target: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(model, target)
    change(target)
    return target


@pytest.fixture(scope="module")
def places(base_dir: Path, reward_dir: Path, toy_file: Path, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and bad things by name, for the commands below."""
    folder = tmp_path_factory.mktemp("places")
    mixture = tiny.classifier("llama")
    upcycle(mixture, Upcycle(n_experts=4, n_active=3))
    lines = toy_file.read_text().splitlines()
    files = {
        "broken.jsonl": "\n".join([*lines[:2], lines[2][:-9], *lines[3:]]) + "\n",
        "recipes.jsonl": json.dumps({"title": "soup", "minutes": 20}) + "\n",
        "columns.csv": "question,good,bad\na,b,c\n",
        "empty.jsonl": "",
        "notes.txt": "hello",
        "bad.yaml": "loss: {reward_l2: 1\n",
        "existing.jsonl": "mine\n",
        "utf16.jsonl": "\ufeff{}",
        "scores.jsonl": json.dumps({"prompt": "a", "answers": ["b", "c"], "scores": [1, float("nan")]}) + "\n",
        "ties.jsonl": json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n",
        "long.jsonl": json.dumps({"prompt": "w1 " * 3000, "chosen": "w1", "rejected": "w2"}) + "\n",
        "cut.json": json.dumps([json.loads(line) for line in lines[:5]])[:-20],
        "ragged.csv": "prompt,chosen,rejected\na,b\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-16" if name.startswith("utf16") else None)
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(toy_file.read_bytes())[:-30])
    (folder / "junk.parquet").write_bytes(b"PAR1 and then nothing")
    models = {f"{name}_model": _damaged(reward_dir, folder / name, change) for name, change in DAMAGED.items()}
    models["nan_model"] = save_reward_model(_not_finite(tiny), tiny.word_tokenizer(), folder / "nan")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    (folder / "hollow").mkdir()
    moe = save_reward_model(mixture, tiny.word_tokenizer(), folder / "moe")
    return {
        "base": base_dir, "reward": reward_dir, "run": reward_dir.parent, "moe": moe, "toy": toy_file, "mine": folder / "mine",
        "hollow": folder / "hollow", "nowhere": folder / "nowhere", "cut_gz": folder / "cut.jsonl.gz", "junk": folder / "junk.parquet",
        **models, **{name.replace(".", "_"): folder / name for name in files},
    }  # fmt: skip
