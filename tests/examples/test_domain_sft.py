"""`examples/domain_sft.py` learns a domain's answers alone and leaves what `merge … method=domain` takes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardproof.data import read_groups
from rewardproof.errors import CheckpointError
from rewardproof.models.checkpoints import load_causal
from rewardproof.stages.merge import MergeModels
from rewardproof.stages.merge import run as merge

EXAMPLES = Path(__file__).parents[2] / "examples"
Write = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.fixture(scope="module")
def domain_sft() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("domain_sft", EXAMPLES / "domain_sft.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["domain_sft"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["domain_sft"]


@pytest.fixture
def rows(write_jsonl: Write, tmp_path: Path) -> Path:
    """Best answers of `math` are all w1 w2 w3; `chat` has others; one row has no best answer."""
    math = [{"prompt": f"w{n} w50", "answers": ["w9 w9", "w1 w2 w3"], "scores": [0, 1], "category": "math"} for n in range(12, 44)]
    chat = [{"prompt": f"w{n} w51", "answers": ["w7", "w8"], "scores": [1, 0], "category": "chat"} for n in range(12, 22)]
    tied = [{"prompt": "w60", "answers": ["w1", "w2"], "scores": [1, 1], "category": "math"}]
    return write_jsonl(tmp_path / "rows.jsonl", [*math, *chat, *tied])


def test_the_loss_is_on_the_best_answers_of_the_domain_alone(domain_sft: ModuleType, base_dir: Path, rows: Path) -> None:
    tokenizer = load_causal(str(base_dir))[1]
    data, counts = domain_sft.solutions([str(rows)], "math", tokenizer, 100)
    assert len(data) == 32
    assert {name: count for name, count in counts.items() if count} == {"of another category": 10, "no best answer": 1}
    longer = domain_sft.solutions([str(rows)], "", tokenizer, 100)[0]
    batch = domain_sft.collate([data[0], longer[33]], int(tokenizer.pad_token_id))
    learned = [tokenizer.decode([token for token in labels if token != domain_sft.IGNORED]).strip() for labels in batch["labels"].tolist()]
    assert learned == ["w1 w2 w3 <eos>", "w7 <eos>"]
    assert torch.equal(batch["attention_mask"].sum(dim=1), (batch["input_ids"] != tokenizer.pad_token_id).sum(dim=1))


def test_it_learns_with_the_top_layers_alone_and_merges(
    domain_sft: ModuleType, base_dir: Path, reward_dir: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lm"
    given = [
        str(base_dir),
        str(out),
        str(rows),
        "--category",
        "math",
        "--layers",
        "top:1",
        "--epochs",
        "6",
        "--rate",
        "1e-2",
        "--batch",
        "8",
    ]
    domain_sft.main(given)
    assert answer_loss(domain_sft, out, rows) < 0.7 * answer_loss(domain_sft, base_dir, rows), "answers are likelier than before"
    before, after = load_file(base_dir / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".layers.2." in name} | {"model.norm.weight"}
    assert "32 answers to learn; left out: {'of another category': 10, 'no best answer': 1}" in capsys.readouterr().out
    report = merge(MergeModels(models=(str(reward_dir), str(out)), method="domain", weight=0.3), tmp_path / "merged")
    assert report.results["domain"]["likeness"]["cosine"] > 0.5
    with pytest.raises(CheckpointError, match="lm is not empty"):
        domain_sft.main(given)


def answer_loss(domain_sft: ModuleType, folder: Path, rows: Path) -> float:
    """Mean loss of a token of the domain's answers."""
    model, tokenizer = load_causal(str(folder))
    data, _ = domain_sft.solutions([str(rows)], "math", tokenizer, 100)
    with torch.no_grad():
        return float(model(**domain_sft.collate(data.groups, int(tokenizer.pad_token_id))).loss)


def test_worked_problems_are_learned_whole(domain_sft: ModuleType, base_dir: Path, write_jsonl: Write, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": f"w{n}", "answer": "w1 w2 #### w3"} for n in range(5)])
    data, counts = domain_sft.solutions([str(file)], "", load_causal(str(base_dir))[1], 100)
    assert (len(data), +counts) == (5, {})
    assert [group.reference for group in read_groups(str(file), purpose="score").groups] == ["w3"] * 5


def test_nothing_to_learn_stops_with_the_categories_there_are(domain_sft: ModuleType, base_dir: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"No row is left to learn from .*; the categories there are: chat, math"):
        domain_sft.main([str(base_dir), str(tmp_path / "lm"), str(rows), "--category", "maths"])
    assert not (tmp_path / "lm").exists()
