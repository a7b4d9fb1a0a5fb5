"""The command as a user runs it: the installed program for the main path, in process for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_yaml, recipe_names, recipe_text
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.merging import average
from rewardproof.models.checkpoints import load_reward_model
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import is_upcycled

PROGRAM = Path(sys.executable).parent / "rewardproof"
STOCK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, rows = sys.argv[1], [json.loads(line) for line in open(sys.argv[2])]
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
found = []
for row in rows:
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}],
                                           tokenize=False) for key in ("chosen", "rejected")]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        found.append(model(**batch).logits[:, 0].tolist())
assert not any(name.split(".")[0] == "rewardproof" for name in sys.modules)
print(json.dumps(found))
"""


def in_process(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = in_process(*arguments)
    assert result.exit_code == 0, result.output
    return result


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def umm(base_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`rewardproof train umm OUT …` by the installed program, and what it printed."""
    out = tmp_path_factory.mktemp("cli") / "umm"
    return out, program(
        "train", "umm", out, f"model={base_dir}", f"data={toy_file}", "compute.precision=fp32", "upcycle.n_experts=4", "upcycle.n_active=3",
        "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=2", "trainer.per_device_train_batch_size=8",
        "merge.steps=10", "merge.held_out=0.2", "trainer.save_strategy=no",
    )  # fmt: skip


@pytest.fixture(scope="module")
def model_dir(umm: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return umm[0] / "model"


@pytest.fixture(scope="module")
def moe_dir(umm: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return umm[0] / "moe"


def test_train_umm_leaves_the_whole_report(umm: tuple[Path, subprocess.CompletedProcess[str]], toy_file: Path) -> None:
    out, ran = umm
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in out.iterdir()} == {
        "model", "moe", "config.yaml", "report.json", "provenance.json", "log.jsonl", "figures", "report.html", "held_out.json",
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert ran.stdout.splitlines()[-1] == f"{out}: {report['headline']}"
    assert "held-out accuracy" in report["headline"]
    assert "[" in report["headline"], "a number comes with its interval"
    assert report["accuracy"]["overall"]["estimate"] > 0.8
    assert "Traceback" not in ran.stderr
    config = load_yaml((out / "config.yaml").read_text(), origin="config.yaml")
    assert config["data"] == [str(toy_file)]
    assert config["trainer"]["save_strategy"] == "no"
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["command"].startswith(f"rewardproof train umm {out} model=")
    assert {path.stem for path in (out / "figures").glob("*.svg")} >= {"calibration", "training", "routing", "coefficients"}


def test_the_delivered_model_needs_none_of_our_code(model_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    done("score", model_dir, toy_file, tmp_path / "scored.jsonl")
    ours = torch.tensor([json.loads(line)["rewards"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()])
    ran = subprocess.run([sys.executable, "-c", STOCK, model_dir, toy_file], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    torch.testing.assert_close(torch.tensor(json.loads(ran.stdout)), ours, atol=1e-4, rtol=0)
    assert float(ours.std()) > 0.1


def test_evaluate_prints_the_table_and_the_headline(model_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    ran = done("evaluate", model_dir, toy_file, "precision=fp32")
    assert "longer answer wins" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith(f"{model_dir}: accuracy ")
    assert "on 160 pairs (longer answer wins: " in ran.stdout.splitlines()[-1]
    model = RewardModel.load(model_dir)
    rewards = model.score(read_groups(str(toy_file)).groups)
    accuracy = sum(chosen > rejected for chosen, rejected in rewards) / 160
    written = json.loads(done("evaluate", model_dir, toy_file, "precision=fp32", "--json").stdout)
    assert written["accuracy"][str(toy_file)]["overall"]["estimate"] == pytest.approx(accuracy)
    assert not list(tmp_path.iterdir())


def test_evaluate_with_out_writes_a_page_and_agrees_with_train(
    umm: tuple[Path, subprocess.CompletedProcess[str]], toy_file: Path, tmp_path: Path
) -> None:
    result = done("evaluate", umm[0] / "model", toy_file, toy_file.parent, "split=0.2", "precision=fp32", "--out", tmp_path / "e")
    left = {path.name for path in (tmp_path / "e").iterdir()}
    assert left == {"config.yaml", "report.json", "provenance.json", "figures", "report.html", "judged"}
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert list(report["accuracy"]) == [str(toy_file), str(toy_file.parent)]
    trained = json.loads((umm[0] / "report.json").read_text())["accuracy"]["overall"]
    assert report["accuracy"][str(toy_file)]["overall"]["estimate"] == pytest.approx(trained["estimate"])
    assert report["rows"][str(toy_file)]["used"] == len(split_by_prompt(read_groups(str(toy_file)).groups, fraction=0.2)[1])
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'e'}: {report['headline']}"


def test_score_keeps_rows_order_and_columns(
    model_dir: Path, tmp_path: Path, toy_rows: Callable[..., list[dict[str, Any]]], write_jsonl: Callable[..., Path]
) -> None:
    rows = [{**row, "id": f"row {number}", "note": {"é": number}} for number, row in enumerate(toy_rows(37, seed=8))]
    rows[5]["rejected"] = rows[5]["chosen"]
    source, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out" / "scored.jsonl"
    result = done("score", model_dir, source, out, "chunk=10")
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{key: value for key, value in row.items() if key != "rewards"} for row in written] == rows
    expected = RewardModel.load(model_dir).score(read_groups(str(source), purpose="score").groups)
    torch.testing.assert_close(torch.tensor([row["rewards"] for row in written]), torch.tensor(expected), atol=1e-5, rtol=0)
    assert written[5]["rewards"][0] == written[5]["rewards"][1]
    report = json.loads((tmp_path / "out" / "scored.jsonl.report" / "report.json").read_text())
    assert report["rows"] == {"read": 37, "written": 37, "dropped": {}, "prompt_truncated": 0}
    assert report["rewards"]["mean"] == pytest.approx(float(torch.tensor(expected).mean()), abs=1e-5)
    assert report["rewards"]["std"] == pytest.approx(float(torch.tensor(expected).std(correction=0)), abs=1e-5)
    assert result.stdout.splitlines()[-1].startswith(f"{out}: 37 rows, 74 answers, mean reward")


@pytest.mark.parametrize("cut", [-7, -1, "all but two lines", "everything"])
def test_score_resumes_after_a_truncated_line(model_dir: Path, toy_file: Path, tmp_path: Path, cut: int | str) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    done("score", model_dir, toy_file, whole, "chunk=8")
    complete = whole.read_bytes()
    if cut == "all but two lines":
        kept = b"\n".join(complete.split(b"\n")[:2]) + b"\n" + complete.split(b"\n")[2][:20]
    else:
        kept = b"" if cut == "everything" else complete[:cut]
    done("score", model_dir, toy_file, broken, "chunk=8")
    broken.write_bytes(kept)
    done("score", model_dir, toy_file, broken, "chunk=8", "--resume")
    _assert_same_scores(whole, broken)
    reports = [json.loads((tmp_path / f"{name}.jsonl.report" / "report.json").read_text()) for name in ("whole", "broken")]
    assert reports[0]["rows"] == reports[1]["rows"]
    assert reports[0]["rewards"] == pytest.approx(reports[1]["rewards"], abs=1e-6)


def _assert_same_scores(whole: Path, resumed: Path) -> None:
    expected, found = ([json.loads(line) for line in file.read_text().splitlines()] for file in (whole, resumed))
    assert [row["prompt"] for row in found] == [row["prompt"] for row in expected]
    torch.testing.assert_close(
        torch.tensor([row["rewards"] for row in found]), torch.tensor([row["rewards"] for row in expected]), atol=1e-6, rtol=0
    )


def test_score_drops_and_counts_bad_rows_and_resumes_over_them(model_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    lines = toy_file.read_text().splitlines()[:20]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([*lines[:4], "{broken", *lines[4:]]) + "\n")
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    for out in (whole, broken):
        done("score", model_dir, source, out, "on_bad=drop", "chunk=4")
    broken.write_bytes(b"\n".join(broken.read_bytes().split(b"\n")[:6]) + b"\n")
    done("score", model_dir, source, broken, "on_bad=drop", "chunk=4", "--resume")
    _assert_same_scores(whole, broken)
    report = json.loads((tmp_path / "broken.jsonl.report" / "report.json").read_text())
    assert report["rows"] == {"read": 21, "written": 20, "dropped": {"broken JSON": 1}, "prompt_truncated": 0}


def test_json_prints_json_alone(model_dir: Path, moe_dir: Path, base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    commands = {
        "train": ("train", "umm", tmp_path / "t", f"model={base_dir}", f"data={toy_file}", "trainer.max_steps=1", "merge.steps=1",
                  "compute.precision=fp32", "upcycle.n_experts=3", "upcycle.n_active=2"),
        "score": ("score", model_dir, toy_file, tmp_path / "s.jsonl"),
        "upcycle": ("upcycle", model_dir, tmp_path / "u", "n_experts=4", "n_active=2"),
        "merge": ("merge", moe_dir, tmp_path / "m", "method=uniform", f"data={toy_file}", "compute.precision=fp32"),
    }  # fmt: skip
    for name, command in commands.items():
        printed = json.loads(done(*command, "--json").stdout)
        folder = tmp_path / "s.jsonl.report" if name == "score" else Path(str(command[2]))
        assert printed == json.loads((folder / "report.json").read_text()), name


def test_upcycle_computes_the_same_rewards(model_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    result = done("upcycle", model_dir, tmp_path / "up", "n_experts=4", "n_active=2", "mixing=fixed", "shared_weight=0.3", "layers=top:2")
    report = json.loads((tmp_path / "up" / "report.json").read_text())
    assert report["layers"] == [1, 2]
    assert report["parameters_after"] - report["parameters_before"] == 2 * (3 * 3 * 32 * 48 + 3 * 32)
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'up'}: {report['headline']}"
    groups = read_groups(str(toy_file)).groups[:20]
    dense, mixture = RewardModel.load(model_dir), RewardModel.load(tmp_path / "up" / "model")
    assert is_upcycled(mixture.model)
    torch.testing.assert_close(torch.tensor(mixture.score(groups)), torch.tensor(dense.score(groups)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["uniform", "routing_mass", "learned"])
def test_merge_folds_a_mixture(method: str, moe_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    result = done("merge", moe_dir, out, f"method={method}", f"data={toy_file}", "shared_weight=0.25", "steps=10", "compute.precision=fp32")
    assert {path.name for path in out.iterdir()} >= {"model", "config.yaml", "report.json", "provenance.json"}
    assert not (out / "checkpoints").exists()
    report = json.loads((out / "report.json").read_text())
    assert report["headline"].startswith(f"experts merged ({method}), rewards correlate ")
    assert result.stdout.splitlines()[-1] == f"{out}: {report['headline']}"
    coefficients = report["merge"]["coefficients"]
    for layer, values in coefficients.items():
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert values[0] == pytest.approx(0.25, abs=1e-6)
        mass = report["merge"]["routing"][layer]["weights"][1:]
        by_mass = [0.75 * weight / sum(mass) for weight in mass]
        assert (values[1:] == pytest.approx([0.25] * 3, abs=1e-6)) == (method == "uniform")
        if method == "routing_mass":
            assert values[1:] == pytest.approx(by_mass, abs=1e-5)
    merged, mixture = load_reward_model(str(out / "model"))[0], load_reward_model(str(moe_dir))[0]
    assert not is_upcycled(merged)
    stack, weights = mixture.model.layers[1].mlp.experts.down.double(), torch.tensor(coefficients["1"], dtype=torch.float64)
    torch.testing.assert_close(
        merged.model.layers[1].mlp.down_proj.weight.double(), torch.einsum("e,eij->ij", weights, stack), atol=1e-6, rtol=1e-5
    )


def test_merge_averages_models(model_dir: Path, reward_dir: Path, tmp_path: Path) -> None:
    done("merge", model_dir, reward_dir, tmp_path / "m", "method=average")
    found = load_file(tmp_path / "m" / "model" / "model.safetensors")
    for name, tensor in average([load_file(folder / "model.safetensors") for folder in (model_dir, reward_dir)]).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8)


def test_recipes_ls_cat_cp(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    listed = done("recipes", "ls").stdout.splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    assert all(len(line.split()) > 3 for line in listed)
    assert done("recipes", "cat", "umm").stdout == recipe_text("umm")
    target = tmp_path / "new" / "mine.yaml"
    done("recipes", "cp", "dense", target)
    assert target.read_text() == recipe_text("dense")
    done("train", target, tmp_path / "out", f"model={base_dir}", f"data={toy_file}", "trainer.max_steps=1")
    assert (tmp_path / "out" / "model").is_dir()


def test_paths_with_an_equals_sign(model_dir: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("score", model_dir, toy_file, "./a=b.jsonl")
    assert (tmp_path / "a=b.jsonl").is_file()


def test_train_says_when_nothing_was_held_out(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    result = done("train", "dense", tmp_path / "o", f"model={base_dir}", f"data={toy_file}", "split=0", "trainer.max_steps=1")
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'o'}: nothing was held out"


def test_help_is_fast_and_leaves_torch_out() -> None:
    code = """
import sys
from rewardproof.cli.main import app
try:
    app(["--help"])
except SystemExit:
    pass
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for verb in ("train", "upcycle", "merge", "score", "evaluate", "demo", "recipes"):
        assert verb in ran.stdout


def test_the_module_runs_as_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rewardproof", "recipes", "cat", "ummm"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ))
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: Unknown recipe 'ummm' (did you mean 'umm'?)")
