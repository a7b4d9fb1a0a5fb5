"""`train bnrm` and `train grm_bnrm` on a tiny model: what they report, deliver and refuse, and what reads the model afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewardproof.artifacts import Report
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import read_groups
from rewardproof.errors import ConfigError
from rewardproof.evaluation import BestOfNRuns
from rewardproof.models.factor_head import FACTORS_FILE, FactorHead, Factors, factor_head_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import ModelEnsemble, load_model
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.evaluate import run as evaluate
from rewardproof.stages.score import Score
from rewardproof.stages.score import run as score
from rewardproof.stages.stress import Stress
from rewardproof.stages.stress import run as stress
from rewardproof.stages.train import Train, run

PROGRAM = Path(sys.executable).parent / "rewardproof"


@pytest.fixture(scope="module")
def overrides(base_dir: Path, toy_file: Path) -> list[str]:
    return [
        f"model={base_dir}", f"data={toy_file}", "split=0.25", "compute.precision=fp32", "trainer.learning_rate=5e-3",
        "head.learning_rate=1e-2", "trainer.num_train_epochs=3", "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
        "factors.n_factors=24",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def settings(overrides: list[str]) -> Callable[..., Train]:
    def make(recipe: str, *more: str) -> Train:
        return parse(Train, apply_overrides(load_recipe(recipe), [*overrides, *more]))

    return make


@pytest.fixture(scope="module")
def trained(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """`rewardproof train bnrm OUT …` by the installed program."""
    out = tmp_path_factory.mktemp("runs") / "bnrm"
    done = subprocess.run([PROGRAM, "train", "bnrm", str(out), *overrides], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Report(out, done.stdout.splitlines()[-1], json.loads((out / "report.json").read_text()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / FACTORS_FILE)


def test_it_learns_and_its_rewards_are_never_negative(trained: Report, toy_file: Path) -> None:
    assert trained.results["accuracy"]["overall"]["estimate"] > 0.9
    rewards = torch.tensor(RewardModel.load(trained.path / "model").score(read_groups(str(toy_file)).groups))
    assert (rewards >= 0).all()
    assert rewards.std() > 0.1


def test_the_report_tells_of_the_factors(trained: Report) -> None:
    found = trained.results["members"][0]["factors"]
    assert (found["of"], found["n_factors"]) == ("held-out answers", 24)
    assert found["answers"] == 2 * trained.results["rows"]["held_out_set"]
    assert 0 <= max(found["dead_dictionary"], found["dead_activation"]) <= found["dead"] < 0.9
    assert 1 <= found["in_effect"] <= 24
    assert found["phi_travelled"] > 1e-3
    model = RewardModel.load(trained.path / "model")
    phi_K = factor_head_of(model.model).dictionary().detach()
    for entry in found["strongest"]:
        assert entry["phi"] == pytest.approx(float(phi_K[entry["number"]]), rel=1e-5)
        assert entry["highest"][0]["activation"] >= entry["lowest"][0]["activation"]
        assert entry["highest"][0]["text"].startswith("w")
    best = found["strongest"][0]
    assert best["reward_correlation"] > 0.5, "what spreads the rewards most goes with them"
    page = (trained.path / "report.html").read_text()
    assert f"factor {best['number']}" in page
    assert best["highest"][0]["text"] in page
    assert "No stock class computes the delivered model" in page
    assert (trained.path / "figures" / "factors.svg").is_file()


def test_the_log_has_divergences_and_the_way_of_phi(trained: Report) -> None:
    rows = [json.loads(line) for line in (trained.path / "log.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    names = ("factors/kl_theta", "factors/kl_phi", "factors/dead", "factors/in_effect", "factors/phi_travelled")
    assert all(name in row for row in logged for name in names)
    last = next(row for row in reversed(rows) if "eval_factors/phi_travelled" in row)
    assert last["eval_factors/phi_travelled"] == pytest.approx(trained.results["members"][0]["factors"]["phi_travelled"], rel=1e-4)


def test_the_mean_and_spread_of_rewards_are_saved_for_centring(trained: Report) -> None:
    config = json.loads((trained.path / "model" / "config.json").read_text())
    accuracy = trained.results["accuracy"]
    assert config["mean"] == pytest.approx(accuracy["reward_mean"], rel=1e-6)
    assert config["mean"] > config["std"] * 0.1, "rewards that are never negative are far from centred"
    assert config["std"] == pytest.approx(accuracy["reward_std"], rel=1e-6)
    assert config["rewardproof_factors"]["n_factors"] == 24


def test_score_evaluate_and_stress_read_the_model(trained: Report, toy_file: Path, pool_file: Path, tmp_path: Path) -> None:
    assert "held-out accuracy" in trained.headline
    model = str(trained.path / "model")
    judged, _ = evaluate(Evaluate(model=model, data=(str(toy_file),), split=0.25))
    assert judged.results["accuracy"][str(toy_file)]["overall"] == trained.results["accuracy"]["overall"]
    score(Score(model=model, data=str(toy_file)), tmp_path / "scored.jsonl")
    rows = [json.loads(line)["rewards"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    expected = RewardModel.load(model).score(read_groups(str(toy_file)).groups)
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    stressed = stress(Stress(models=(model,), pool=(str(pool_file),), gold="scores", precision="fp32"), tmp_path / "stress")
    pools = sorted(read_groups(str(pool_file), purpose="score").groups, key=lambda group: group.prompt_key)
    runs = BestOfNRuns(
        [RewardModel.load(model).score(pools)], [group.scores or () for group in pools], (1, 2, 4, 8), [group.prompt_key for group in pools]
    )
    (found,) = stressed.results["methods"].values()
    for entry, one in zip(found["gold"], runs.summary().as_dict()["gold"], strict=True):
        assert entry["estimate"] == pytest.approx(one["estimate"], abs=1e-9)


def test_grm_bnrm_adds_the_likelihood_of_preferred_answers(settings: Callable[..., Train], trained: Report, tmp_path: Path) -> None:
    report = run(settings("grm_bnrm", "loss.language=0.5"), tmp_path / "grm")
    without = run(settings("grm_bnrm", "loss.language=1e-9", "trainer.num_train_epochs=1"), tmp_path / "without")
    found, plain = (entry.results["members"][0]["dense"]["last"]["language/log_prob_per_token"] for entry in (report, without))
    assert found > plain + 0.1, "its states still predict what a preferred answer says"
    assert report.results["accuracy"]["overall"]["estimate"] > 0.9
    assert weights(report.path / "model").keys() == weights(trained.path / "model").keys(), "nothing of the term is delivered"


def test_a_linear_head_can_have_the_likelihood_alone(settings: Callable[..., Train], tmp_path: Path, overrides: list[str]) -> None:
    config = parse(
        Train,
        apply_overrides(load_recipe("dense"), [*overrides[:-1], "loss.language=0.01", "trainer.max_steps=2", "trainer.logging_steps=1"]),
    )
    report = run(config, tmp_path / "grm_sft")
    assert report.results["members"][0]["dense"]["last"]["language/loss"] > 0
    assert (report.path / "model" / "model.safetensors").is_file()


class Stopped(Exception):
    """Stands for the machine going down."""


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("grm_bnrm", ("factors.kl_over=valid", "layers=top:1")),
        pytest.param("bnrm", (), marks=pytest.mark.slow),
        pytest.param("bnrm", ("lora={r: 2, target_modules: [q_proj, v_proj]}",), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_at_the_same_numbers(
    recipe: str, more: tuple[str, ...], settings: Callable[..., Train], tmp_path: Path
) -> None:
    config = settings(recipe, "trainer.max_steps=8", "trainer.save_strategy=steps", "trainer.save_steps=3", *more)

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 7):
            raise Stopped

    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "broken", progress=progress)
    assert [path.name for path in (tmp_path / "broken").rglob("checkpoint-*")] == ["checkpoint-6"]
    resumed = run(config, tmp_path / "broken", resume=True)
    for name, tensor in weights(whole.path / "model").items():
        torch.testing.assert_close(weights(resumed.path / "model")[name], tensor, atol=1e-6, rtol=1e-6, msg=name)
    assert resumed.results["accuracy"] == whole.results["accuracy"]
    assert resumed.results["members"][0]["factors"] == whole.results["members"][0]["factors"]


def test_members_of_an_ensemble_have_heads_of_their_own_and_those_that_are_averaged_one(
    settings: Callable[..., Train], toy_file: Path, tmp_path: Path
) -> None:
    still = ("members=2", "head.learning_rate=0", "trainer.learning_rate=0", "trainer.max_steps=1")
    for name, more, alike in (("warm", (), True), ("ensemble", ("ensemble.combination=mean",), False)):
        report = run(settings("bnrm", *still, *more), tmp_path / name)
        first, second = (weights(tmp_path / name / "members" / number / "model") for number in "01")
        assert torch.equal(first["score.dictionary.weight"], second["score.dictionary.weight"]) == alike
        assert [member["factors"]["n_factors"] for member in report.results["members"]] == [24, 24]
        assert {file.name for file in (report.path / "figures").glob("factors*.svg")} == {
            "factors-of-member-0.svg",
            "factors-of-member-1.svg",
        }
    ensemble = load_model(str(tmp_path / "ensemble" / "model"))
    assert isinstance(ensemble, ModelEnsemble)
    assert all(isinstance(model.model.score, FactorHead) for model in ensemble.models.values())
    groups = read_groups(str(toy_file)).groups[:5]
    score(Score(model=str(tmp_path / "ensemble" / "model"), data=str(toy_file)), tmp_path / "scored.jsonl")
    rows = [json.loads(line)["rewards"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    torch.testing.assert_close(torch.tensor(rows[:5]), torch.tensor(ensemble.score(groups)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", [("depth=2",), ("lora={r: 2, target_modules: [q_proj, v_proj]}",), ("layers=top:0",)])
def test_it_works_with(more: tuple[str, ...], settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("bnrm", "trainer.max_steps=6", *more), tmp_path / "out")
    model = RewardModel.load(report.path / "model").model
    assert isinstance(model.score, FactorHead)
    assert model.config.num_hidden_layers == (2 if more[0].startswith("depth") else 3)
    assert report.results["members"][0]["factors"]["phi_travelled"] > 0


def test_bf16_in_training_and_on_disk(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("bnrm", "compute.precision=bf16", "compute.save_dtype=bf16", "trainer.max_steps=6"), tmp_path / "out")
    kept = weights(report.path / "model")
    assert {name.startswith("score."): tensor.dtype for name, tensor in kept.items()} == {True: torch.float32, False: torch.bfloat16}
    assert report.results["precision"] == "bf16"


def test_nothing_held_out_reads_factors_on_training_answers(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("bnrm", "split=0", "trainer.max_steps=2"), tmp_path / "out")
    assert report.results["members"][0]["factors"]["of"] == "training answers"


def test_published_settings_can_be_said(settings: Callable[..., Train]) -> None:
    said = ("factors.kl_over=all", "factors.kl_theta=1e-5", "factors.dictionary_init=release", "head.learning_rate=5e-5")
    config = settings("bnrm", *said, "factors.theta_prior=[2.0,0.5]")
    assert config.factors == Factors(n_factors=24, kl_over="all", kl_theta=1e-5, dictionary_init="release", theta_prior=(2.0, 0.5))
    assert config.head.learning_rate == 5e-5
    assert load_recipe("bnrm")["head"]["learning_rate"] == 1e-4
    assert load_recipe("grm_bnrm")["head"]["learning_rate"] == 5e-5


REFUSED: list[tuple[str, str]] = [
    ("upcycle={n_experts: 4, n_active: 3}", "Got `factors` with `upcycle`, expected one of them: .*Drop one"),
    ("head.init=probe", "Got head.init=probe with `factors`, expected it unset: .*set factors.dictionary_init"),
    ("head.init=normal", "Got head.init=normal with `factors`"),
    ("factors.n_factors=0", "Bad value for 'factors.n_factors': got 0"),
    ("factors.theta_prior=[0.0,1.0]", "Bad value for 'factors.theta_prior.0': got 0"),
    ("factors.n_factor=4", r"Unknown key 'factors.n_factor' \(did you mean 'n_factors'"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_settings_that_cannot_work(override: str, message: str, settings: Callable[..., Train], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings("bnrm", override), tmp_path / "out")
    assert not (tmp_path / "out").exists()
