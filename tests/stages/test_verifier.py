"""`rewardproof train verifier`: what a verifier reads, what it learns, and that this goes with it to whoever loads it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_recipe, parse
from rewardproof.data import Group, Message, read_groups
from rewardproof.data.encoding import REFERENCE, encode_group
from rewardproof.errors import ConfigError, DataError
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import load_scorer
from rewardproof.stages.train import Train, run


def same_as_reference(conversation: Sequence[Mapping[str, str]], reference: str, answer: str) -> bool | None:
    """Right where the first word is the reference's, not told where it is w80 or more, else wrong."""
    first = answer.split()[0]
    return True if reference.startswith(f"{first} ") else None if first in ("w80", "w81") else False


RULE = "tests.stages.test_verifier:same_as_reference"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    """Questions whose right answer their reference alone tells; some answers no rule can judge, and one row has no reference."""
    dice = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(120):
        right, wrong = dice.sample(range(2), 2)
        answers = [f"w{right} w5", f"w{wrong} w5", "w80 w5"]
        made.append({"prompt": f"w{10 + number % 40} w{50 + number % 29}", "answers": answers, "reference": f"w{right} w6"})
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*made, {"prompt": "w9", "answers": ["w1"]}])


def settings(base: Path, rows: Path, /, **changes: Any) -> Train:
    recipe = load_recipe("verifier")
    trainer = {"learning_rate": 1e-2, "num_train_epochs": 6, "per_device_train_batch_size": 8, "save_strategy": "no", "logging_steps": 1}
    return parse(
        Train,
        {
            **recipe, "model": str(base), "data": [str(rows)], "rule": {"name": RULE}, "head": {"init": "normal", "learning_rate": 1e-2},
            "trainer": trainer, "compute": {"precision": "fp32"}, **changes,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(base_dir: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verifier") / "out"
    run(settings(base_dir, rows), out)
    return out


def test_it_learns_what_the_reference_alone_tells(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["verdicts"]["overall"]["estimate"] > 0.9
    assert set(report["verdicts"]) == {"overall", "right", "wrong"}
    assert report["headline"].startswith("verdicts ")
    assert report["accuracy"]["overall"]["estimate"] > 0.9
    told = report["rows"]["train_sources"]["rule"]
    assert (told["without_reference"], told["answers_not_told"], told["answers_right"], told["answers_wrong"]) == (1, 120, 120, 120)
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [record["verdict/loss"] for record in records if "verdict/loss" in record]
    assert losses[-1] < losses[0]
    assert [record["loss"] for record in records if "verdict/loss" in record] == pytest.approx(losses, rel=1e-4), "nothing beside it"
    assert "Verdicts" in (trained / "report.html").read_text()


def test_question_reference_and_answer_are_read_as_one_text_wherever_it_is_loaded(trained: Path) -> None:
    model = RewardModel.load(trained / "model")
    assert model.reads == "reference"
    answers = ((Message("assistant", "w1 w5"),),)
    (one,) = model.score([Group((Message("user", "w12"),), answers, reference="w1 w6")])
    (joined,) = encode_group(Group((Message("user", f"w12{REFERENCE}w1 w6"),), answers), model.tokenizer).conversations
    assert one[0] == pytest.approx(model.model(input_ids=torch.tensor([joined])).logits[0, 0].item(), abs=1e-4)
    (other,) = model.score([Group((Message("user", "w12"),), answers, reference="w0 w6")])
    assert one[0] > 0 > other[0]
    (tokens,) = model.score_tokens([Group((Message("user", "w12"),), answers, reference="w1 w6")])
    assert tokens[0].score == pytest.approx(one[0], abs=1e-4)
    with pytest.raises(DataError, match="got no reference, expected one"):
        model.score([Group((Message("user", "w12"),), answers)])


def test_a_dense_model_trained_from_a_verifier_reads_conversations_again(trained: Path, toy_file: Path, tmp_path: Path) -> None:
    config = parse(Train, {"model": str(trained / "model"), "data": [str(toy_file)], "trainer": {"max_steps": 1}})
    run(config, tmp_path / "dense")
    assert RewardModel.load(tmp_path / "dense/model").reads == "conversation"


def test_it_goes_on_where_it_was_stopped(base_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardproof.training.trainer import RewardTrainer

    trainer = {"max_steps": 6, "per_device_train_batch_size": 8, "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    config = settings(base_dir, rows, trainer=trainer)
    whole = run(config, tmp_path / "whole")
    step = RewardTrainer.training_step

    def stopping(self: RewardTrainer, *given: Any, **more: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *given, **more)

    monkeypatch.setattr(RewardTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    monkeypatch.setattr(RewardTrainer, "training_step", step)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed.headline == whole.headline
    assert resumed.results["verdicts"] == whole.results["verdicts"]


def test_gsm8k_rows_train_one_by_the_command(base_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    """Questions of GSM8K with a policy's answers beside them; what has no number cannot be told."""
    made = [
        {"prompt": f"w{number} w3", "answers": [f"w1 #### {number}", f"w1 #### {number + 1}", "w"], "reference": f"{number}"}
        for number in range(20)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", made)
    words = ["train", "verifier", str(tmp_path / "out"), f"model={base_dir}", f"data={data}", "rule.name=numbers", "trainer.max_steps=2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out/report.json").read_text())["rows"]["train_sources"]["rule"]
    assert (told["answers_right"], told["answers_wrong"], told["answers_not_told"]) == (20, 20, 20)


def test_a_rule_as_scorer_gives_certificates(rows: Path) -> None:
    groups = read_groups([str(rows)], purpose="score").groups[:3]
    assert sum(load_scorer(f"rule:{RULE}").score(groups)[0]) == 1
    with pytest.raises(ConfigError, match=r"Unknown rule.name='nothing'"):
        load_scorer("rule:nothing")


def test_labels_all_alike_leave_no_pairs_and_are_no_error(base_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    """GSM8K's own rows: one solution each, right by the data."""
    made = [{"question": f"w{number}", "answer": f"w1 w2 #### {number}"} for number in range(12)]
    report = run(settings(base_dir, write_jsonl(tmp_path / "rows.jsonl", made), rule={"name": "numbers"}), tmp_path / "out")
    assert report.results["accuracy"] is None
    assert set(report.results["verdicts"]) == {"overall", "right"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"head": {"init": "probe"}}, "head.init=probe"),
        ({"read": {"label_noise": 0.1}}, "read.label_noise"),
        ({"loss": {"bsr": 0.1}}, "loss.bsr"),
        ({"loss": {"pair": "hinge"}}, "loss.pair"),
        ({"loss": {"label_smoothing": 0.1}}, "loss.label_smoothing"),
        ({"loss": {"temperature": 2.0}}, "loss.temperature"),
        ({"upcycle": {}}, "upcycle"),
        ({"policy_loss": {}}, "policy_loss"),
    ],
)
def test_what_needs_an_order_is_refused(changes: dict[str, Any], key: str, base_dir: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"Got `rule` with {key}, expected one of them: verdicts are learned from single answers"):
        run(settings(base_dir, rows, **changes), tmp_path / "out")


def test_data_of_which_nothing_is_certified_is_refused(base_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "w1", "answers": ["w80"], "reference": "w1"}])
    with pytest.raises(DataError, match=r"the rule tests.stages.* certifies none of the answers to 1 prompts"):
        run(settings(base_dir, data), tmp_path / "out")
