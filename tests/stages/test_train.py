"""`train` on a tiny model: every shipped recipe learns, leaves what the contract says, and survives being interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardproof.artifacts import Report
from rewardproof.config import apply_overrides, load_recipe, parse, recipe_names
from rewardproof.data import read_groups, split_by_prompt, split_salt
from rewardproof.errors import CheckpointError, ConfigError, DataError, ModelError
from rewardproof.merging import average
from rewardproof.models.checkpoints import EXPERTS_FILE, load_reward_model
from rewardproof.models.cost import products_per_token
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import is_upcycled
from rewardproof.scoring import ModelEnsemble, load_model
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.evaluate import run as evaluate
from rewardproof.stages.score import Score
from rewardproof.stages.score import run as score
from rewardproof.stages.train import Train, run

SMALL = {
    "umm": ["upcycle.n_experts=4", "upcycle.n_active=3", "merge.steps=10", "merge.held_out=0.2"],
    "umm_delta": ["upcycle.n_experts=4", "upcycle.n_active=3", "merge.steps=10", "merge.held_out=0.2", "upcycle.experts=lora:2"],
    "moe_unmerged": ["upcycle.n_experts=4", "upcycle.n_active=3"],
    "umm_regime": ["merge.steps=10", "merge.held_out=0.2"],
    "warm": ["members=2"],
    "ensemble": ["members=2"],
    "linear_probe": ["trainer.num_train_epochs=0"],
    "bnrm": ["factors.n_factors=24"],
    "grm_bnrm": ["factors.n_factors=24"],
    "dogerm": ["domain.model=BASE", "domain.weights=0,0.25,0.5"],
}
SECRETS = ("secrets_flip", "secrets_flip_margin", "secrets_margin", "secrets_soft_margin")
LEARNS = (
    "bnrm",
    "bsr",
    "dense",
    "dogerm",
    "ensemble",
    "ewa",
    "grm_bnrm",
    "haf",
    "moe_unmerged",
    *SECRETS,
    "simcse",
    "swav",
    "umm",
    "umm_delta",
    "umm_regime",
    "warm",
)
ELSEWHERE = ("activation", "dmoerm", "reform", "verifier")
"""Recipes in which no weight trains, or that ask for more than which answer is better; tests of their own train them."""
SLOW = pytest.mark.slow
Trained = Callable[..., Report]


@pytest.fixture(scope="session")
def strong_file(toy_rows: Callable[..., list[dict[str, Any]]], write_jsonl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy preferences with a strength each, every tenth one wrong and as weak as the others are strong."""
    rows = [{**row, "strength": 1.0 + number / 160} for number, row in enumerate(toy_rows(160))]
    for row in rows[::10]:
        row |= {"chosen": row["rejected"], "rejected": row["chosen"], "strength": -row["strength"]}
    return write_jsonl(tmp_path_factory.mktemp("strong") / "strong.jsonl", rows)


@pytest.fixture(scope="session")
def settings(base_dir: Path, toy_file: Path, strong_file: Path) -> Callable[..., Train]:
    """`settings("umm", "key=value", …)`: a shipped recipe at the size of a test."""

    def make(recipe: str, *overrides: str) -> Train:
        data = strong_file if recipe in SECRETS else toy_file
        common = [
            f"model={base_dir}", f"data={data}", "split=0.25", "compute.precision=fp32", "trainer.learning_rate=5e-3",
            "head.learning_rate=1e-2", "trainer.num_train_epochs=3", "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
        ]  # fmt: skip
        small = [override.replace("BASE", str(base_dir)) for override in SMALL.get(recipe, [])]
        return parse(Train, apply_overrides(load_recipe(recipe), [*common, *small, *overrides]))

    return make


@pytest.fixture(scope="session")
def trained(settings: Callable[..., Train], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The report of a recipe's run, made once a session."""
    made: dict[str, Report] = {}

    def make(recipe: str) -> Report:
        if recipe not in made:
            made[recipe] = run(settings(recipe), tmp_path_factory.mktemp("runs") / recipe)
        return made[recipe]

    return make


def weights(run_directory: Path, part: str = "model") -> dict[str, torch.Tensor]:
    folder = run_directory / part
    file = folder / EXPERTS_FILE if (folder / EXPERTS_FILE).exists() else folder / "model.safetensors"
    return load_file(file)


@pytest.mark.parametrize("recipe", [name for name in recipe_names("train") if name not in ELSEWHERE])
def test_every_shipped_recipe_learns_the_toy_task(recipe: str, trained: Trained) -> None:
    report = trained(recipe)
    overall = report.results["accuracy"]["overall"]
    assert overall["n"] > 25
    if recipe in LEARNS:
        assert overall["estimate"] > (0.8 if recipe in SECRETS else 0.9), "a separable task; secrets with a tenth of its labels wrong"
    else:
        assert overall["low"] > 0.5, "a probe must beat chance"
    found = json.loads((report.path / "report.json").read_text())
    assert found == report.results
    assert "longer answer wins" in report.headline
    for name in (
        "config.yaml",
        "report.json",
        "provenance.json",
        "log.jsonl",
        "report.html",
        "figures/calibration.svg",
        "model/ensemble.yaml" if recipe == "ensemble" else "model/config.json",
    ):
        assert (report.path / name).is_file(), name
    assert not (report.path / "checkpoints").exists()


def test_every_recipe_is_named_here() -> None:
    assert set(LEARNS) | {"linear_probe", *ELSEWHERE} == set(recipe_names("train")), "a new recipe needs a test"


@pytest.mark.parametrize("recipe", ["bsr", "dense", "dogerm", "ewa", "haf", "linear_probe", "umm", "umm_delta", "umm_regime", "warm"])
def test_the_delivered_model_is_the_stock_dense_class(recipe: str, trained: Trained, base_dir: Path) -> None:
    report = trained(recipe)
    model = AutoModelForSequenceClassification.from_pretrained(report.path / "model")
    base = AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in base.state_dict().items()
    }
    assert report.results["parameters"] == sum(parameter.numel() for parameter in base.parameters())
    config = json.loads((report.path / "model" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] != config["eos_token_id"]
    assert "rewardproof_upcycle" not in config
    assert config["mean"] == pytest.approx(report.results["accuracy"]["reward_mean"], rel=1e-9)
    assert config["std"] == pytest.approx(report.results["accuracy"]["reward_std"], rel=1e-9)


@pytest.mark.parametrize("recipe", ["umm", "umm_delta", "moe_unmerged"])
def test_the_unmerged_mixture_is_kept(recipe: str, trained: Trained) -> None:
    report = trained(recipe)
    model, _ = load_reward_model(str(report.path / "moe"))
    assert is_upcycled(model)
    assert not list((report.path / "moe").glob("model*.safetensors")), "a stock loader must not find half a model"
    assert is_upcycled(load_reward_model(str(report.path / "model"))[0]) == (recipe == "moe_unmerged")


def test_umm_reports_its_merge(trained: Trained, toy_file: Path) -> None:
    report = trained("umm")
    merge = report.results["members"][0]["merge"]
    assert merge["coefficients"].keys() == merge["routing"].keys() == {"0", "1", "2"}
    for coefficients in merge["coefficients"].values():
        assert len(coefficients) == 4
        assert sum(coefficients) == pytest.approx(1, abs=1e-5)
        assert coefficients[0] == pytest.approx(0.5, abs=1e-6)
    assert len(merge["divergence"]) == 3
    assert merge["learning"]["loss_after"] <= merge["learning"]["loss_before"]
    held = merge["held_out"]
    mixture, merged = (RewardModel.load(report.path / part) for part in ("moe", "model"))
    prompts = {tuple(words) for words in _held_out_prompts(toy_file)}
    groups = [group for group in read_groups(str(toy_file)).groups if tuple(group.prompt_text.split()) in prompts]
    before = torch.tensor(mixture.score(groups)).flatten()
    after = torch.tensor(merged.score(groups)).flatten()
    assert held["correlation"] == pytest.approx(float(torch.corrcoef(torch.stack((before, after)))[0, 1]), abs=1e-4)
    assert held["merged_reward_std"] == pytest.approx(float(after.std(correction=0)), rel=1e-3)
    page = (report.path / "report.html").read_text()
    assert "smallest cosine" in page
    assert (report.path / "figures" / "coefficients.svg").is_file()
    assert all(f"{value:.3f}" in page for value in merge["coefficients"]["1"])


def _held_out_prompts(file: Path) -> list[list[str]]:
    from rewardproof.data import split_by_prompt

    return [group.prompt_text.split() for group in split_by_prompt(read_groups(str(file)).groups, fraction=0.25)[1]]


def test_warm_is_the_average_of_its_members(trained: Trained) -> None:
    report = trained("warm")
    members = [weights(report.path / "members" / str(number)) for number in range(2)]
    assert any(not torch.equal(members[0][name], members[1][name]) for name in members[0]), "members must differ by their seed"
    found = weights(report.path)
    for name, tensor in average(members).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8)


def test_an_ensemble_keeps_its_members_and_judges_by_both(trained: Trained, toy_file: Path, tmp_path: Path) -> None:
    report = trained("ensemble")
    for number in range(2):
        for name, tensor in weights(trained("warm").path / "members" / str(number)).items():
            torch.testing.assert_close(weights(report.path / "members" / str(number))[name], tensor, rtol=1e-6, atol=1e-7)
    ensemble = load_model(str(report.path / "model"))
    assert isinstance(ensemble, ModelEnsemble)
    assert report.results["parameters"] == ensemble.parameters == 2 * trained("dense").results["parameters"]
    groups = read_groups(str(toy_file)).groups
    both = [scores.mean(axis=0) - 0.5 * scores.var(axis=0) for scores in ensemble.by_member(groups)]
    for found, expected in zip(ensemble.score(groups), both, strict=True):
        assert found == pytest.approx(expected.tolist())
    judged, _ = evaluate(Evaluate(model=str(report.path / "model"), data=(str(toy_file),), split=0.25))
    assert judged.results["accuracy"][str(toy_file)]["overall"]["estimate"] == report.results["accuracy"]["overall"]["estimate"]
    score(Score(model=str(report.path / "model"), data=str(toy_file)), tmp_path / "scored.jsonl")
    first = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    assert first["rewards"] == pytest.approx(ensemble.score(groups[:1])[0], abs=1e-5)


def test_an_ensemble_of_reused_models_names_them_where_they_are(trained: Trained, settings: Callable[..., Train], tmp_path: Path) -> None:
    members = [str(trained("warm").path / "members" / str(number) / "model") for number in range(2)]
    report = run(settings("ensemble", f"reuse={','.join(members)}"), tmp_path / "joined")
    first, again = load_model(str(trained("ensemble").path / "model")), load_model(str(report.path / "model"))
    assert isinstance(first, ModelEnsemble)
    assert isinstance(again, ModelEnsemble)
    assert not (report.path / "members").exists()
    for name, scale in first.scales.items():
        assert again.scales[name] == pytest.approx(scale, abs=1e-5)


@pytest.mark.slow
def test_reused_members_are_not_trained_again(trained: Trained, settings: Callable[..., Train], tmp_path: Path) -> None:
    dense = trained("dense")
    report = run(settings("warm", f"reuse={dense.path / 'model'}"), tmp_path / "warm")
    assert report.results["members"][0] == {"reused": str(dense.path / "model")}
    member = weights(tmp_path / "warm" / "members" / "1")
    for name, tensor in average([weights(dense.path), member]).items():
        torch.testing.assert_close(weights(report.path)[name], tensor, rtol=1e-6, atol=1e-8)


def test_the_first_member_of_warm_is_the_dense_run(trained: Trained) -> None:
    dense, member = weights(trained("dense").path), weights(trained("warm").path / "members" / "0")
    for name, tensor in dense.items():
        torch.testing.assert_close(member[name], tensor, rtol=1e-6, atol=1e-7)


def test_nothing_held_out_is_said(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("dense", "split=0", "trainer.max_steps=2"), tmp_path / "out")
    assert report.headline == "nothing was held out"
    assert report.results["accuracy"] is None
    assert (tmp_path / "out" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["std"] > 0, "taken from training answers"


def test_a_mixture_whose_rewards_are_all_the_same_is_reported(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("umm", "trainer.num_train_epochs=0", "merge.method=uniform"), tmp_path / "out")
    assert report.results["members"][0]["merge"]["held_out"]["correlation"] is None
    assert "are constant on one side" in (tmp_path / "out" / "report.html").read_text()


def test_start_rm_upcycles_a_trained_reward_model(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("umm", "start=rm", "trainer.max_steps=4", "merge.steps=2"), tmp_path / "out")
    summary = report.results["members"][0]
    assert (summary["dense"]["steps"], summary["mixture"]["steps"]) == (4, 4)
    phases = [json.loads(line)["phase"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [phase for number, phase in enumerate(phases) if phase != phases[number - 1]] == ["data", "training", "mixture", "merge"]


def test_the_top_layer_alone_can_be_upcycled_and_trained(settings: Callable[..., Train], base_dir: Path, tmp_path: Path) -> None:
    report = run(settings("umm", "layers=top:1", "trainer.max_steps=4", "merge.steps=2"), tmp_path / "out")
    assert list(report.results["members"][0]["merge"]["coefficients"]) == ["2"]
    base = AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1).state_dict()
    changed = {name for name, tensor in weights(report.path).items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if ".layers.2." in name} | {"model.norm.weight", "score.weight"}


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class Stopped(Exception):
    """Stands for the machine going down."""


def stopping_at(wanted: str, step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == (wanted, step):
            raise Stopped

    return progress


@pytest.mark.parametrize(
    ("recipe", "what", "step", "more"),
    [
        ("dense", "training", 7, ("layers=top:1",)),
        ("umm", "mixture", 6, ()),
        ("bsr", "training", 7, ("compute.tokens_per_batch=40",)),
        pytest.param(
            "dense", "training", 7, ("trainer.gradient_accumulation_steps=2", "trainer.per_device_train_batch_size=4"), marks=SLOW
        ),
        pytest.param("umm", "merging", 5, (), marks=SLOW),
        pytest.param("moe_unmerged", "scoring", 1, (), marks=SLOW),
        pytest.param("umm", "mixture", 5, ("start=rm",), marks=SLOW),
        pytest.param("warm", "training", 7, (), marks=SLOW),
    ],
)
def test_an_interrupted_run_ends_at_the_same_numbers(
    recipe: str, what: str, step: int, more: tuple[str, ...], settings: Callable[..., Train], tmp_path: Path
) -> None:
    config = settings(recipe, "trainer.max_steps=8", "trainer.save_strategy=steps", "trainer.save_steps=3", *more)
    whole = run(config, tmp_path / "whole")
    progress = stopping_at(what, step) if what != "scoring" else stopping_any(what)
    with pytest.raises(Stopped):
        run(config, tmp_path / "broken", progress=progress)
    part = "dense" if what == "training" else "moe"
    kept = [path.name for path in (tmp_path / "broken").rglob(f"{part}/checkpoint-*") if what in {"training", "mixture"}]
    assert kept == ([f"checkpoint-{(step - 1) // 3 * 3}"] if what in {"training", "mixture"} else [])
    seen: list[tuple[str, int]] = []
    resumed = run(config, tmp_path / "broken", resume=True, progress=lambda what, done, total: seen.append((what, done)))
    if kept:
        assert (what, int(kept[0].rpartition("-")[2]) + 1) == next(entry for entry in seen if entry[0] == what and entry[1] > 0)
    for name, tensor in weights(whole.path).items():
        torch.testing.assert_close(weights(resumed.path)[name], tensor, atol=1e-6, rtol=1e-6)
    assert resumed.results["accuracy"] == whole.results["accuracy"]
    states = [[entry for entry in _log(out) if "states" in entry] for out in (resumed.path, whole.path)]
    assert [entry["states"] for entry in states[0]] == [entry["states"] for entry in states[1]]
    if recipe == "moe_unmerged":
        assert resumed.results["members"][0]["mixture"]["routing"] == whole.results["members"][0]["mixture"]["routing"]


def test_branches_train_apart_and_are_joined(settings: Callable[..., Train], tmp_path: Path) -> None:
    joined = ("upcycle.route_by=prompt", "upcycle.router_init=clusters", "upcycle.branch_epochs=3", "upcycle.hard_share=0.5")
    report = run(settings("umm", *joined, "trainer.num_train_epochs=1"), tmp_path / "out")
    assert report.results["accuracy"]["overall"]["estimate"] > 0.9
    phases = {json.loads(line)["phase"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()}
    assert {"branch 1", "branch 2", "branch 3", "mixture", "merge"} <= phases
    member = report.results["members"][0]
    assert [branch["steps"] > 0 for branch in member["branches"]] == [True, True, True]
    experts = member["experts"]
    assert min(min(row) for row in experts["parted"].values()) > 1e-3, "branches are further apart than copies"
    assert len(experts["alone"]["accuracy"]) == 3


def stopping_any(wanted: str) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == wanted:
            raise Stopped

    return progress


REFUSED: list[tuple[str, tuple[str, ...], str]] = [
    ("dense", ("merge.steps=3",), "`merge` without `upcycle`.*Use recipe umm"),
    ("umm", ("upcycle.n_experts=1",), "upcycle.n_experts=1: .*n_experts=2 or more"),
    ("umm", ("upcycle.n_experts=2", "upcycle.n_active=2"), "n_experts=2.*write n_experts=3 or more, or mixing=fixed"),
    ("umm", ("upcycle.n_active=5",), "upcycle.n_active=5: expected 2 to n_experts=4"),
    ("umm", ("upcycle.experts=lora:0",), "upcycle.experts='lora:0': expected `full` or `lora:R`"),
    ("umm", ("upcycle.shared_weight=1.5",), "upcycle.shared_weight=1.5: expected a weight between 0 and 1"),
    ("umm", ("upcycle.branch_epochs=1",), "upcycle.branch_epochs=1.0 with router_init=random.*Write router_init=clusters"),
    ("ewa", ("upcycle.router_init=clusters",), "mixing=random with router_init=clusters.*have no router to start"),
    ("umm", ("upcycle.share_rate=0.1", "upcycle.experts=lora:2"), "share_rate=0.1 with experts=lora:2 and n_experts=4, expected full"),
    ("ewa", ("upcycle.n_experts=2",), "share_rate=0.1 with experts=full and n_experts=2, expected full and 3 or more"),
    ("umm", ("layers=top:0",), "layers=top:0 trains the head alone.*write layers=top:1"),
    ("dense", ("layers=top:99",), r"layers='top:99': expected `all` or `top:K` with K from 0 to 3"),
    ("dense", ("members=0",), "members=0: expected 1 or more"),
    ("ensemble", ("members=1",), "members=1 with `ensemble`: expected 2 or more"),
    ("moe_unmerged", ("members=2",), "members=2 with unmerged experts: only dense models"),
    ("dense", ("split=1",), "split=1.0: expected a fraction"),
    ("dense", ("reuse=a/b,c/d",), "reuse names 2 models but members=1"),
    ("umm", ("lora={r: 2}",), "`lora` with `upcycle`.*Write upcycle.experts=lora:R"),
    ("dense", ("layers=top:0", "lora={r: 2}"), "layers=top:0 trains the head alone"),
    ("dense", ("start=rm",), "start=rm says what to upcycle.*drop it"),
    ("simcse", ("layers=top:0",), "layers=top:0 trains the head alone, expected layers for `contrast` to change"),
    (
        "secrets_margin",
        ("loss.margin=none",),
        "treatment=margin where the loss reads no margins: .* write loss.margin=data, or take",
    ),
    ("dense", ("loss.pair=hinge",), "loss.pair=hinge with head.init=zero, expected rewards that differ.*Write head.init=normal"),
    ("dense", ("loss.pair=normalised",), "loss.pair=normalised with head.init=zero, expected rewards that differ"),
    ("bsr", ("loss.pair=decoupled", "loss.margin=0.5"), "loss.margin=0.5 with loss.pair=decoupled, expected none: .*use loss.pair=hinge"),
    ("bsr", ("loss.temperature=2",), "loss.temperature=2.0 with loss.pair=bradley_terry, expected loss.pair=normalised"),
    ("bsr", ("loss.pair=hing",), "Unknown loss.pair='hing' \\(did you mean 'hinge'"),
    ("bsr", ("scenarios={source: m, unseen: a}", "eval_data=x.jsonl"), "`scenarios` with eval_data, .*scenarios.max_prompts limits"),
    ("bsr", ("scenarios={source: m, unseen: a}", "read.max_groups=3"), "`scenarios` with eval_data, read.share or read.max_groups"),
    ("dense", ("loss.margin=data",), "no training pair has a margin; add a `margin` column"),
    ("dense", ("trainer.gradient_checkpointing=true",), "gradient_checkpointing=True, expected it unset: .*lower compute.tokens_per_batch"),
    ("dense", ("trainer.load_best_model_at_end=true",), "load_best_model_at_end=True, expected it unset"),
    ("dense", ("trainer.save_only_model=true",), "save_only_model=True, expected it unset: .*cannot be gone on from"),
    ("dense", ("trainer.num_train_epoch=2",), "Unknown key 'trainer.num_train_epoch' \\(did you mean 'num_train_epochs'"),
]


@pytest.mark.parametrize(("recipe", "overrides", "message"), REFUSED, ids=[f"{recipe}-{overrides[0]}" for recipe, overrides, _ in REFUSED])
def test_settings_that_cannot_work(
    recipe: str, overrides: tuple[str, ...], message: str, settings: Callable[..., Train], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(recipe, *overrides), tmp_path / "out")


def test_a_reused_model_of_another_shape(settings: Callable[..., Train], tiny: Any, tmp_path: Path) -> None:
    from rewardproof.models.saving import save_reward_model

    other = save_reward_model(tiny.classifier("gpt2"), tiny.word_tokenizer(), tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"Cannot average models that differ: .*share their architecture"):
        run(settings("warm", f"reuse={other}", "trainer.max_steps=1"), tmp_path / "out")


def test_treatments_by_strength_are_counted(trained: Trained) -> None:
    counts = {recipe: trained(recipe).results["rows"]["strength"] for recipe in SECRETS}
    pairs = counts["secrets_flip"]["pairs"]
    assert pairs == trained("secrets_flip").results["rows"]["train"]
    negative = counts["secrets_flip"]["negative"]
    assert {found["negative"] for found in counts.values()} == {negative}
    assert 5 < negative < 17
    assert counts["secrets_flip"]["flipped"] == round(0.1 * pairs)
    assert counts["secrets_soft_margin"]["smoothed"] == counts["secrets_margin"]["margin_clipped_at_0"] == negative
    assert counts["secrets_margin"]["with_margin"] == pairs - negative


def test_rows_without_strength_name_the_verb(settings: Callable[..., Train], toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got a row without 'strength'.*rewardproof strength DATA OUT.jsonl"):
        run(settings("secrets_flip", f"data={toy_file}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["simcse", "swav"])
def test_contrastive_terms_are_logged_and_not_delivered(recipe: str, trained: Trained) -> None:
    report = trained(recipe)
    records = [json.loads(line) for line in (report.path / "log.jsonl").read_text().splitlines()]
    assert all({"contrast/loss", "contrast/pairs"} <= record.keys() for record in records if "loss" in record)
    assert weights(report.path).keys() == weights(trained("dense").path).keys()


def test_the_tokenizer_travels_with_the_model(trained: Trained, base_dir: Path) -> None:
    ours, base = (AutoTokenizer.from_pretrained(folder) for folder in (trained("umm").path / "model", base_dir))
    assert ours.chat_template == base.chat_template
    assert ours.get_vocab() == base.get_vocab()


@pytest.mark.slow
def test_bf16_weights_on_request(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("umm", "compute.save_dtype=bf16", "trainer.max_steps=2"), tmp_path / "out")
    assert {tensor.dtype for tensor in weights(report.path).values()} == {torch.bfloat16}
    assert json.loads((report.path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_operations_of_training_are_six_a_weight_and_token(trained: Trained, toy_file: Path) -> None:
    report = trained("dense").results
    model = RewardModel.load(trained("dense").path / "model")
    groups = read_groups(str(toy_file), purpose="train").groups
    kept, _ = split_by_prompt(groups, fraction=0.25, salt=split_salt(0))
    tokens = sum(group.n_tokens for group in model.encode(kept)[0])
    expected = 6 * products_per_token(model.model) * 3 * tokens / 1e12
    assert report["members"][0]["dense"]["tflops"] == pytest.approx(expected, rel=1e-3)


def test_members_that_are_averaged_share_the_head_they_start_from(settings: Callable[..., Train], tmp_path: Path) -> None:
    still = ["members=2", "head.init=normal", "head.learning_rate=0", "trainer.learning_rate=0"]
    for recipe, alike in (("warm", True), ("ensemble", False)):
        run(settings(recipe, *still), tmp_path / recipe)
        first, second = (weights(tmp_path / recipe / "members" / name)["score.weight"] for name in "01")
        assert torch.equal(first, second) == alike


def test_a_proxy_of_the_first_layers_alone(settings: Callable[..., Train], tmp_path: Path) -> None:
    whole = run(settings("dense", "trainer.num_train_epochs=0"), tmp_path / "whole").results
    found = run(settings("dense", "depth=1"), tmp_path / "out").results
    assert found["parameters"] < whole["parameters"]
    assert RewardModel.load(tmp_path / "out" / "model").model.config.num_hidden_layers == 1
    with pytest.raises(ConfigError, match="Got depth=9 for a model of"):
        run(settings("dense", "depth=9"), tmp_path / "deep")


def test_a_run_never_deletes_its_own_inputs(settings: Callable[..., Train], tmp_path: Path) -> None:
    first = run(settings("dense", "trainer.max_steps=1"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"lies in the output directory .*Name another"):
        run(settings("dense", f"model={first.path / 'model'}"), first.path, overwrite=True)
    assert (first.path / "model" / "model.safetensors").is_file()


def test_held_out_answers_beyond_the_limit_are_counted_and_not_scored(settings: Callable[..., Train], tmp_path: Path) -> None:
    report = run(settings("dense", "trainer.max_steps=1", "max_length=13", "read.overlong=drop"), tmp_path / "out")
    kept = report.results["rows"]["held_out_set"]
    assert report.results["rows"]["fell_away"]["overlong_dropped"] > 0
    assert report.results["accuracy"]["n_groups"] == kept


def test_evaluation_data_without_an_order_stops_before_training(settings: Callable[..., Train], write_jsonl, tmp_path: Path) -> None:
    rows = [{"prompt": f"w{number}", "answers": ["w1 w2", "w3"], "scores": [1.0, 0.0]} for number in range(3)]
    single = write_jsonl(tmp_path / "single.jsonl", [{**row, "answers": row["answers"][:1], "scores": [1.0]} for row in rows])
    with pytest.raises(DataError, match="no two answers that the data orders"):
        run(settings("dense", f"eval_data={single}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_evaluation_keeps_the_model(settings: Callable[..., Train], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(settings("dense", "trainer.max_steps=2"), tmp_path / "out", progress=stopping_any("scoring"))
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    resumed = run(settings("dense", "trainer.max_steps=2"), tmp_path / "out", resume=True)
    assert resumed.results["accuracy"] is not None
    assert not (tmp_path / "out" / "checkpoints").exists()
