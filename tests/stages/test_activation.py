"""The recipe `activation`: a scorer made of few preferences, usable wherever a model is named, and what the recipe refuses."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import read_groups
from rewardproof.data.questions import question_tokens
from rewardproof.errors import ConfigError, DataError, ModelError
from rewardproof.models.checkpoints import load_causal
from rewardproof.scoring import ActivationRewardModel, load_scorer
from rewardproof.stages import activation as stage
from rewardproof.stages.train import Train, run

Rows = list[dict[str, Any]]
Write = Callable[[Path, Rows], Path]
ASKED = ("activation.question.options=w1,w2", "activation.question.template={prompt} w30 {response} w31", "activation.heads.iterations=60")


@pytest.fixture(scope="module")
def few_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., Rows], write_jsonl: Write) -> Path:
    """16 preferences."""
    return write_jsonl(tmp_path_factory.mktemp("few") / "few.jsonl", toy_rows(16, seed=2))


@pytest.fixture(scope="module")
def settings(base_dir: Path, few_file: Path) -> Callable[..., Train]:
    def make(*overrides: str) -> Train:
        common = [f"model={base_dir}", f"data={few_file}", "split=0.25", "compute.precision=fp32", *ASKED]
        return parse(Train, apply_overrides(load_recipe("activation"), [*common, *overrides]))

    return make


@pytest.fixture(scope="module")
def made(base_dir: Path, few_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of 16 rows."""
    out = tmp_path_factory.mktemp("made") / "out"
    tokens = ["train", "activation", str(out), f"model={base_dir}", f"data={few_file}", "split=0.25", "compute.precision=fp32", *ASKED]
    result = CliRunner().invoke(app, tokens, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "held-out accuracy" in result.output
    return out


def command(*tokens: object) -> str:
    result = CliRunner().invoke(app, [str(token) for token in tokens], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rewards_of(file: Path) -> list[list[float]]:
    return [json.loads(line)["rewards"] for line in file.read_text().splitlines()]


def test_sixteen_rows_make_a_scorer_that_is_small(made: Path) -> None:
    files = sorted(file.name for file in (made / "model").iterdir())
    assert files == ["activation.yaml", "activations.safetensors"], "the language model's weights stay where they are"
    tensors = load_file(made / "model" / "activations.safetensors")
    assert tensors["mean_activations"].shape == (3, 4, 8)
    assert tensors["masks"].shape == (3, 3, 4), "three seeds of Bernoulli masks"
    report = json.loads((made / "report.json").read_text())
    found = report["members"][0]["activation"]
    assert sum(found["examples"].values()) == 2 * report["rows"]["train"]
    assert list(found["masks"]) == ["seed 0", "seed 1", "seed 2", "no head", "all heads"]
    assert [found["masks"][name]["heads"] for name in ("no head", "all heads")] == [0, 12]
    assert found["options"] == {"w1": ["w1"], "w2": ["w2"]}
    assert report["parameters"] > 0
    page = (made / "report.html").read_text()
    assert "Heads" in page
    assert "seed 2" in page
    assert "load_model" in page, "how it is loaded"
    logged = [json.loads(line) for line in (made / "log.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in logged if line["phase"] == "heads"} == {0, 1, 2}


def test_the_mean_is_that_of_every_examples_own_forward(settings: Callable[..., Train], tiny: ModuleType, tmp_path: Path) -> None:
    """Read at the end of the right reply, without shots: the equation as it stands, against forwards with hooks."""
    how = settings("activation.exemplars.shots=0", "activation.exemplars.read_at=reply", "activation.heads.final=all", "split=0")
    run(how, tmp_path / "out")
    model, tokenizer = load_causal(how.model)
    assert how.activation is not None
    groups = read_groups(how.data[0]).groups
    parts = stage.parts_of(groups, how.read, how.activation.question, how.activation.exemplars)
    words = how.activation.question.words
    read = [tiny.replaced_forward(model.eval(), question_tokens(one.text, tokenizer, reply=words[one.right]))[0] for one in parts.extract]
    found = load_file(tmp_path / "out" / "model" / "activations.safetensors")["mean_activations"]
    torch.testing.assert_close(found, torch.stack(read).mean(dim=0), atol=2e-5, rtol=1e-4)


def test_score_evaluate_stress_and_audit_take_it_by_name(made: Path, few_file: Path, pool_file: Path, tmp_path: Path) -> None:
    scorer = load_scorer(str(made / "model"))
    command("score", made / "model", few_file, tmp_path / "scored.jsonl")
    expected = [list(row) for row in scorer.score(read_groups(str(few_file)).groups)]
    assert rewards_of(tmp_path / "scored.jsonl") == [pytest.approx(row, abs=1e-6) for row in expected]
    assert "accuracy" in command("evaluate", made / "model", few_file, "precision=fp32", "--out", tmp_path / "evaluated")
    right = sum(chosen > rejected for chosen, rejected in expected) / len(expected)
    evaluated = json.loads((tmp_path / "evaluated" / "report.json").read_text())
    assert evaluated["accuracy"][str(few_file)]["overall"]["estimate"] == pytest.approx(right)
    assert "gold of the best of 8" in command(
        "stress", made / "model", tmp_path / "stressed", f"pool={pool_file}", "gold=scores", "precision=fp32"
    )
    assert "changes" in command("audit", made / "model", tmp_path / "audited", f"data={few_file}", "precision=fp32")
    assert (tmp_path / "audited" / "report.html").is_file()


def test_a_policy_learns_against_it(made: Path, base_dir: Path, few_file: Path, tmp_path: Path) -> None:
    output = command(
        "align", "rloo", tmp_path / "out", f"policy={base_dir}", f"reward={made / 'model'}", f"prompts={few_file}",
        "optimise.steps=1", "optimise.prompts_per_step=2", "optimise.answers=2", "optimise.max_new_tokens=3", "optimise.layers=top:1",
        "split=0.3", "compute.precision=fp32", "evaluate.prompts=2", "evaluate.answers=2",
    )  # fmt: skip
    assert "after 1 updates" in output


def test_a_run_done_again_is_the_same_and_another_seed_another(settings: Callable[..., Train], made: Path, tmp_path: Path) -> None:
    run(settings(), tmp_path / "again")
    run(settings("seed=5"), tmp_path / "other")
    first, again, other = (
        load_file(folder / "model" / "activations.safetensors") for folder in (made, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["masks"], other["masks"])


class Stopped(Exception):
    """Stands for the machine going down."""


def test_a_run_that_was_stopped_does_not_learn_a_finished_mask_again(
    settings: Callable[..., Train], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[int] = []
    original = stage.learned_logits

    def counted(*args: Any, seed: int, **more: Any) -> Any:
        if learned == [0, 1] and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise Stopped
        learned.append(seed)
        return original(*args, seed=seed, **more)

    monkeypatch.setattr(stage, "learned_logits", counted)
    with pytest.raises(Stopped):
        run(settings(), tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists(), "nothing half made stands there"
    run(settings(), tmp_path / "out", resume=True)
    assert learned == [0, 1, 2]
    first, resumed = (load_file(folder / "model" / "activations.safetensors") for folder in (made, tmp_path / "out"))
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_denoised_activations_are_others_and_all_the_energy_gives_the_mean(settings: Callable[..., Train], tmp_path: Path) -> None:
    quick = ("activation.heads.final=all", "activation.heads.masks=1")
    ways = {
        "mean": (), "denoised": ("average=denoised",), "uniform": ("average=denoised", "denoise.weights=uniform"),
        "all": ("average=denoised", "denoise.energy=1"),
    }  # fmt: skip
    found, reports = {}, {}
    for name, changes in ways.items():
        reports[name] = run(settings(*quick, *(f"activation.{change}" for change in changes)), tmp_path / name)
        found[name] = load_file(tmp_path / name / "model" / "activations.safetensors")["mean_activations"]
    torch.testing.assert_close(found["all"], found["mean"])
    assert not torch.allclose(found["denoised"], found["mean"], atol=1e-3)
    assert not torch.allclose(found["denoised"], found["uniform"], atol=1e-5)
    summary = reports["denoised"].results["members"][0]["activation"]
    assert 0 < summary["directions_kept"] < 8
    assert reports["mean"].results["members"][0]["activation"]["directions_kept"] is None
    assert "directions" in (tmp_path / "denoised" / "report.html").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ("activation.heads.final=sampled", "activation.heads.floor=0.1"),
        ("activation.heads.final=top", "activation.heads.n_heads=2"),
        ("activation.reward=vocabulary",),
        ("activation.reward=log_odds", "read.label_noise=0.3"),
        ("split=0", "activation.exemplars.draws=2"),
    ],
)
def test_every_open_choice_is_an_option_that_runs(overrides: tuple[str, ...], settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("activation.heads.iterations=5", "activation.heads.masks=1", *overrides), tmp_path / "out")
    mask = report.results["members"][0]["activation"]["masks"]["seed 0"]
    if "activation.heads.final=top" in overrides:
        assert mask["heads"] == 2
    assert (report.results["accuracy"] is None) == ("split=0" in overrides)
    assert isinstance(load_scorer(str(tmp_path / "out" / "model")), ActivationRewardModel)


def test_ranked_questions_judge_pairs_and_pools_and_are_kept_from_the_audit(
    settings: Callable[..., Train], few_file: Path, pool_file: Path, tmp_path: Path
) -> None:
    ranked = ("activation.question.form=ranked", "activation.question.template={prompt} w30 {first} w31 {second}")
    report = run(settings("activation.heads.iterations=5", *ranked), tmp_path / "out")
    assert report.results["accuracy"]["overall"]["n"] > 0
    model = tmp_path / "out" / "model"
    command("stress", model, tmp_path / "stressed", f"pool={pool_file}", "gold=scores", "precision=fp32")
    rows = rewards_of(Path(command("score", model, few_file, tmp_path / "scored.jsonl").partition(":")[0]))
    assert all(sum(row) == pytest.approx(1.0) for row in rows), "of two answers one's share is what the other leaves"
    refused = CliRunner().invoke(app, ["audit", str(model), str(tmp_path / "audited"), f"data={few_file}"])
    assert refused.exit_code == 2
    assert "asks ranked questions, expected a scorer that judges an answer by itself" in " ".join(refused.output.split())


def test_a_seed_that_selects_no_head_is_said(settings: Callable[..., Train], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(settings("activation.heads.iterations=1", "activation.heads.masks=1"), tmp_path / "out")
    assert "seed 0 selects no head: its share of the reward is the unmodified model's" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("members=2", "lora.r=4"), r"Got `activation` with members, lora, expected it alone: no weight trains"),
        (("trainer.learning_rate=1e-5",), r"Got `activation` with trainer"),
        (("read.strength.treatment=flip",), r"Got `activation` with read.strength"),
        (("activation.denoise.energy=0.5",), r"Got activation.denoise with average=mean, expected average=denoised"),
        (("activation.exemplars.shots=0",), r"Got exemplars.shots=0 with read_at=question"),
        (("activation.heads.n_heads=3",), r"expected a number of heads with final=top"),
        (("activation.question.options=w1",), r"expected two different words"),
        (("activation.heads.masks=0",), r"Bad value for 'activation.heads.masks'"),
        (("activation.question.kind=x",), r"Unknown key 'activation.question.kind'"),
        (("activation.question.options=Yes,No",), r"writes 'Yes' with no first token of its own"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    overrides: tuple[str, ...], message: str, settings: Callable[..., Train], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(*overrides), tmp_path / "out")


def test_several_processes_are_refused(settings: Callable[..., Train], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"Got 2 processes for `activation`, expected one"):
        run(settings(), tmp_path / "out")


def test_a_reward_model_and_too_few_rows_are_refused(
    settings: Callable[..., Train], reward_dir: Path, toy_rows: Callable[..., Rows], write_jsonl: Write, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"is a reward model, expected a language model"):
        run(settings(f"model={reward_dir}"), tmp_path / "out")
    two = write_jsonl(tmp_path / "two.jsonl", toy_rows(2, seed=1))
    with pytest.raises(DataError, match=r"Got preferences on 2 prompts, expected enough to select heads"):
        run(settings(f"data={two}", "split=0"), tmp_path / "few")


def test_the_recipe_shows_nothing_that_is_a_default() -> None:
    assert load_recipe("activation") == {"read": {"on_bad": "drop_unfit"}, "activation": {}}


def test_biased_pairs_are_rows_that_evaluate_reports_side_by_side(
    made: Path, few_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few-shot set that shares the bias is judged on both sides; length alone solves one and fails the other."""
    file = Path(__file__).parents[2] / "examples" / "preference_hack.py"
    spec = importlib.util.spec_from_file_location("preference_hack", file)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = tmp_path / "hack.jsonl"
    monkeypatch.setattr(sys, "argv", ["preference_hack.py", str(out), str(few_file), "--biases", "length", "positivity"])
    example.main()
    assert "80 pairs of 16 rows" in capsys.readouterr().out
    command("evaluate", made / "model", out, "precision=fp32", "--out", tmp_path / "evaluated")
    found = json.loads((tmp_path / "evaluated" / "report.json").read_text())["accuracy"][str(out)]
    assert set(found["by_subset"]) == {"plain", "length/rejected", "length/chosen", "positivity/rejected", "positivity/chosen"}
    longer = {name: entry["estimate"] for name, entry in found["length_only_by_subset"].items()}
    assert (longer["length/rejected"], longer["length/chosen"]) == (0.0, 1.0)
    with pytest.raises(SystemExit):
        example.main()
    assert "exists; expected a file to be made" in capsys.readouterr().err
