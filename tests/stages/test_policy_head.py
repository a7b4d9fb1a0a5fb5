"""`train haf` through the command: it learns, reports three accuracies, delivers a stock reward model, and survives being interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rewardproof.artifacts import Report
from rewardproof.cli.main import app
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import read_groups, split_by_prompt, split_salt
from rewardproof.data.encoding import encode_group
from rewardproof.data.packing import pack
from rewardproof.errors import ConfigError
from rewardproof.stages.train import Train, run

SMALL = (
    "split=0.25", "compute.precision=fp32", "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
)  # fmt: skip


def command(out: Path, base: Path, data: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["train", "haf", str(out), f"model={base}", f"data={data}", *SMALL, *more])


def settings(base: Path, data: Path, *more: str) -> Train:
    return parse(Train, apply_overrides(load_recipe("haf"), [f"model={base}", f"data={data}", *SMALL, *more]))


@pytest.fixture(scope="module")
def subsets_file(toy_rows: Callable[..., list[dict[str, Any]]], write_jsonl: Callable[..., Path], tmp_path_factory: Any) -> Path:
    rows = [{**row, "subset": ("even", "odd")[number % 2]} for number, row in enumerate(toy_rows(160))]
    return write_jsonl(tmp_path_factory.mktemp("subsets") / "toy.jsonl", rows)


@pytest.fixture(scope="module")
def finished(tied_dir: Path, subsets_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a head that stays as it was, so that the delivered layers and the initial head are the policy that was judged."""
    out = tmp_path_factory.mktemp("haf") / "run"
    done = command(out, tied_dir, subsets_file, "policy_loss.lm_head=frozen")
    assert done.exit_code == 0, done.output
    assert "held-out accuracy" in done.output
    return out


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_it_learns_and_reports_three_accuracies_with_intervals(finished: Path) -> None:
    results = report_of(finished)
    assert results["accuracy"]["overall"]["estimate"] > 0.9, "a separable task"
    policy = results["members"][0]["dense"]["policy"]
    assert tuple(policy["accuracy"]) == ("reward", "implicit", "log_prob")
    for found in policy["accuracy"].values():
        assert 0 <= found["overall"]["low"] <= found["overall"]["estimate"] <= found["overall"]["high"] <= 1
        assert found["overall"]["n"] == results["accuracy"]["n_groups"]
        assert set(found["by_subset"]) == {"even", "odd"}, "of every sample, not of a batch's first"
    assert policy["accuracy"]["reward"]["overall"] == results["accuracy"]["overall"], "of the model that is delivered"
    assert policy["accuracy"]["implicit"]["overall"]["estimate"] > 0.8, "the policy learned the same pairs"
    assert policy["lm_head"] == {"kind": "frozen", "trains": False, "parameters": 96 * 32}
    assert policy["reference_answers"] == 2 * 160


def test_both_policy_accuracies_are_those_of_stock_language_models(finished: Path, tied_dir: Path, subsets_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    initial, trained = (AutoModelForCausalLM.from_pretrained(tied_dir, attn_implementation="eager") for _ in range(2))
    delivered = AutoModelForSequenceClassification.from_pretrained(finished / "model")
    trained.base_model.load_state_dict(delivered.base_model.state_dict())
    trained.lm_head.weight = torch.nn.Parameter(initial.lm_head.weight.detach().clone())

    def said(model: Any, tokens: tuple[int, ...], start: int) -> float:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
        return sum(float(log_probs[place - 1, tokens[place]]) for place in range(start, len(tokens)))

    _, held_out = split_by_prompt(read_groups(str(subsets_file), purpose="train").groups, fraction=0.25, salt=split_salt(0))
    right = {"implicit": 0, "log_prob": 0}
    for group in held_out:
        encoded = encode_group(group, tokenizer)
        pairs = list(zip(encoded.conversations, encoded.answer_starts, strict=True))
        after = [said(trained, *pair) for pair in pairs]
        before = [said(initial, *pair) for pair in pairs]
        right["log_prob"] += after[0] > after[1]
        right["implicit"] += after[0] - before[0] > after[1] - before[1]
    found = report_of(finished)["members"][0]["dense"]["policy"]["accuracy"]
    for name, count in right.items():
        assert found[name]["overall"]["estimate"] == pytest.approx(count / len(held_out)), name


def test_the_log_and_the_page_have_them(finished: Path) -> None:
    records = records_of(finished)
    evaluated = [record for record in records if "eval_loss" in record]
    names = ("loss/policy", "policy/implicit_accuracy", "policy/log_prob_accuracy", "policy/implicit_gap", "pair/accuracy")
    assert evaluated
    assert all(f"eval_{name}" in record for record in evaluated for name in names)
    assert all(name in record for record in records if "loss" in record for name in names)
    page = (finished / "report.html").read_text()
    for text in ("Reward and policy", "log-ratio to the reference", "log-probability", "even", "odd"):
        assert text in page, text


@pytest.mark.parametrize("kind", ["frozen", "own", "auto"])
def test_what_is_delivered_is_the_stock_reward_model_without_the_language_head(
    kind: str, finished: Path, tied_dir: Path, base_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    out = finished if kind == "frozen" else tmp_path / "out"
    base = tied_dir if kind == "frozen" else base_dir
    if kind != "frozen":
        assert command(out, base, toy_file, f"policy_loss.lm_head={kind}", "trainer.max_steps=2").exit_code == 0
    stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).state_dict()
    found = load_file(out / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: tensor.shape for name, tensor in stock.items()}
    assert report_of(out)["parameters"] == sum(tensor.numel() for tensor in stock.values())
    assert json.loads((out / "model" / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    assert not list(out.rglob("reference.json")), "kept as long as it is needed"


def test_answer_tokens_are_the_answers_own_and_the_templates_terminator(tied_dir: Path, toy_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tied_dir)
    groups = read_groups(str(toy_file), purpose="train").groups[:5]
    batch = pack([encode_group(group, tokenizer) for group in groups])
    texts = [text for group in groups for text in group.answer_texts]
    for number, text in enumerate(texts):
        targets = batch.target_L[batch.target_conversation_L == number]
        assert tokenizer.convert_ids_to_tokens(targets.tolist()) == [*text.split(), "<eos>"]


class Stopped(Exception):
    """Stands for the machine going down."""


@pytest.mark.parametrize(
    ("tied", "more"),
    [
        (True, ("layers=top:2",)),
        (False, ("policy_loss.alternate=2", "policy_loss.form=ipo")),
        pytest.param(True, (), marks=pytest.mark.slow),
        pytest.param(False, ("lora={r: 2}", "policy_loss.lm_head=own"), marks=pytest.mark.slow),
    ],
    ids=["top layers", "turns", "all layers", "lora"],
)
def test_an_interrupted_run_ends_at_the_same_numbers(
    tied: bool, more: tuple[str, ...], base_dir: Path, tied_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    saving = ("trainer.max_steps=8", "trainer.save_strategy=steps", "trainer.save_steps=3", "trainer.logging_steps=1")
    config = settings(tied_dir if tied else base_dir, toy_file, *saving, *more)

    def stopping(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 7):
            raise Stopped

    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "broken", progress=stopping)
    known = (tmp_path / "broken" / "checkpoints" / "dense" / "reference.json").read_text()
    asked: list[str] = []
    resumed = run(config, tmp_path / "broken", resume=True, progress=lambda what, *_: asked.append(what))
    assert known
    assert "reference log-probabilities" not in asked, "the initial model's, kept"
    ours, theirs = (load_file(report.path / "model" / "model.safetensors") for report in (resumed, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=0, rtol=0)
    times = {"seconds", "tokens_per_second", "last"}
    first, second = (
        {key: value for key, value in report.results["members"][0]["dense"].items() if key not in times} for report in (whole, resumed)
    )
    assert first == second
    assert resumed.results["accuracy"] == whole.results["accuracy"]
    logs = [
        [(record["step"], record["loss"], record["loss/policy"]) for record in records_of(report.path) if "loss" in record]
        for report in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_members_report_one_by_one_and_are_averaged(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    report: Report = run(settings(base_dir, toy_file, "members=2", "trainer.max_steps=3"), tmp_path / "out")
    accuracies = [member["dense"]["policy"]["accuracy"] for member in report.results["members"]]
    assert len(accuracies) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Reward and policy of member 0" in page
    assert "Reward and policy of member 1" in page


def test_nothing_held_out_leaves_no_accuracy(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    report = run(settings(base_dir, toy_file, "split=0", "trainer.max_steps=1"), tmp_path / "out")
    assert "accuracy" not in report.results["members"][0]["dense"]["policy"]
    assert "Reward and policy" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("upcycle.n_experts=8",), "Got `policy_loss` with `upcycle`, expected one of them.*Use recipe haf"),
        (("layers=top:0",), r"layers=top:0 with `policy_loss`, expected layers that train.*Write layers=top:1"),
        (("policy_loss.form=dop",), "policy_loss.form.*'dpo'"),
        (("policy_loss.tau=0",), "policy_loss.tau.*greater than 0"),
        (("policy_loss.alpha=1",), "Unknown key 'policy_loss.alpha'.*weight"),
        (("policy_loss.lm_head=tied",), "Got lm_head=tied for .*Write lm_head=own"),
    ],
)
def test_settings_that_cannot_work(more: tuple[str, ...], message: str, base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(base_dir, toy_file, *more), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("layers=top:1", "policy_loss.alternate=1")], ids=["all layers", "turns"])
def test_two_processes_have_the_losses_and_weights_of_one(
    more: tuple[str, ...], launch: Callable[..., Any], base_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    for processes in (1, 2):
        own = (f"trainer.per_device_train_batch_size={8 // processes}", "trainer.logging_steps=1", "trainer.max_steps=4", *more)
        arguments = ["train", "haf", str(tmp_path / str(processes)), f"model={base_dir}", f"data={toy_file}", *SMALL, *own]
        done = launch(["-m", "rewardproof", *arguments], processes=processes)
        assert done.returncode == 0, done.stderr[:4000]
    first, second = ([entry for entry in records_of(tmp_path / name) if {"loss", "eval_loss"} & entry.keys()] for name in "12")
    assert len(first) == len(second) > 3
    for one, two in zip(first, second, strict=True):
        for name in ("loss", "loss/policy", "eval_loss", "eval_loss/policy", "policy/implicit_gap"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-3), (name, one["step"])
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "21")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert report_of(tmp_path / "1")["members"][0]["dense"]["policy"] == report_of(tmp_path / "2")["members"][0]["dense"]["policy"]
