"""BSR and its rivals as a user runs them: each is one word of the recipe, and each leaves what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_recipe
from rewardproof.data import read_groups
from rewardproof.models.reward_model import RewardModel

DOCUMENT = (Path(__file__).parents[2] / "docs" / "methods" / "bsr.md").read_text()
ARMS = {
    name: words.split()
    for name, words in re.findall(r"^rewardproof train bsr runs/(\w+) \S+ data=prefs.jsonl ?(.*)$", DOCUMENT, re.MULTILINE)
}


@pytest.fixture(scope="module")
def trained(base_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(arm: str) -> Path:
        if arm not in made:
            made[arm] = tmp_path_factory.mktemp("runs") / arm
            settings = [
                f"model={base_dir}", f"data={toy_file}", "split=0.25", "compute.precision=fp32", "compute.tokens_per_batch=60",
                "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=3", "trainer.logging_steps=1",
                "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
            ]  # fmt: skip
            result = CliRunner().invoke(app, ["train", "bsr", str(made[arm]), *settings, *ARMS[arm]])
            assert result.exit_code == 0, result.output
        return made[arm]

    return make


def steps(out: Path) -> list[dict[str, Any]]:
    return [record for line in (out / "log.jsonl").read_text().splitlines() if "loss" in (record := json.loads(line))]


def test_the_document_names_all_arms() -> None:
    assert set(ARMS) == {"bsr", "bt", "hinge", "normalised", "decoupled", "l2", "centering"}
    assert all(len(words) == (arm != "bsr") + (arm not in ("bsr", "bt")) for arm, words in ARMS.items())


@pytest.mark.parametrize("arm", ["bsr", "bt", "hinge", "normalised", "decoupled", "l2", "centering"])
def test_every_arm_learns_and_logs_a_penalty_only_where_it_has_one(arm: str, trained: Callable[[str], Path]) -> None:
    report = json.loads((trained(arm) / "report.json").read_text())
    assert report["accuracy"]["overall"]["estimate"] > 0.9, "a separable task"
    for record in steps(trained(arm)):
        assert ("loss/bsr" in record) == (arm == "bsr")
        if arm == "bsr":
            assert record["bsr/pairs"] <= 8
            assert record["loss/bsr"] == pytest.approx(1e-3 * record["bsr/pairs"] * record["reward/mean"] ** 2, rel=1e-3, abs=1e-8)
    states = report["members"][0]["dense"]["states"]
    assert states["before"]["n_answers"] == states["after"]["n_answers"]
    assert {"norm_mean", "norm_variance", "cosine_mean", "reward_mean", "effective_rank"} <= states["after"].keys()


def test_the_arms_are_different_objectives(trained: Callable[[str], Path]) -> None:
    ends = {arm: steps(trained(arm))[-1]["reward/mean"] for arm in ARMS}
    assert len(set(ends.values())) == len(ARMS)


def test_defect_g_the_recipe_is_the_published_setting_and_switches_the_method_on() -> None:
    recipe = load_recipe("bsr")
    assert recipe["loss"] == {"reward_l2": 0.0, "bsr": 1e-3}
    assert recipe["head"]["init"] == "normal"


def test_acceptance_6_and_defect_d_rewards_are_those_of_batch_size_one_padded_and_packed_under_the_saved_tokenizer(
    trained: Callable[[str], Path], toy_rows: Callable[..., list[dict[str, Any]]], base_dir: Path, tmp_path: Path, write_jsonl: Any
) -> None:
    folder = trained("bsr") / "model"
    groups = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", toy_rows(12, seed=9)))).groups
    model, tokenizer = RewardModel.load(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base_dir).chat_template
    packed = torch.tensor(model.score(groups)).flatten()
    alone = torch.tensor([model.score([group])[0] for group in groups]).flatten()
    turns = [[message._asdict() for message in (*group.prompt, *answer)] for group in groups for answer in group.answers]
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in turns]
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        padded = stock(**_ids(tokenizer, texts)).logits[:, 0]
        single = torch.cat([stock(**_ids(tokenizer, [text])).logits[:, 0] for text in texts])
    assert float(packed.std()) > 0.1
    for other in (alone, padded, single):
        torch.testing.assert_close(other, packed, atol=1e-5, rtol=1e-5)


def _ids(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
