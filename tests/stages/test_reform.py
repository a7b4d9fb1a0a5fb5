"""`train reform` on a tiny model: it is two trainings by `train dense` with a search between, and it says what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardproof.artifacts import Report
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import Group, read_groups, split_by_prompt
from rewardproof.errors import ConfigError, ModelError
from rewardproof.evaluation.robustness import SIDES, SUITES
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.reform import check_reform
from rewardproof.stages.train import Train, run

COMMON = (
    "compute.precision=fp32", "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
)  # fmt: skip
SEARCH = (
    "reform.form=released",
    "reform.variants=4",
    "reform.top_k=20",
    "reform.share=0.5",
    "reform.max_new_tokens=8",
    "reform.perturbed=12",
)
Settings = Callable[..., Train]


@pytest.fixture(scope="module")
def settings(base_dir: Path, toy_file: Path) -> Settings:
    def make(*overrides: str, recipe: str = "reform") -> Train:
        search = SEARCH if recipe == "reform" else ()
        given = [f"model={base_dir}", f"data={toy_file}", *COMMON, *search, *overrides]
        return parse(Train, apply_overrides(load_recipe(recipe), given))

    return make


@pytest.fixture(scope="module")
def corrected(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run(settings(), tmp_path_factory.mktemp("reform") / "run")


@pytest.fixture(scope="module")
def parts(toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training and held-out rows as files of their own."""
    folder = tmp_path_factory.mktemp("parts")
    lines = dict(zip([group.origin for group in read_groups(str(toy_file)).groups], toy_file.read_text().splitlines(), strict=True))
    for name, groups in zip(("train", "held_out"), split_by_prompt(read_groups(str(toy_file)).groups, fraction=0.2), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(lines[group.origin] + "\n" for group in groups))
    return folder / "train.jsonl", folder / "held_out.jsonl"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def summary_of(report: Report) -> dict[str, Any]:
    return report.results["members"][0]["reform"]


def test_it_is_dense_training_then_dense_training_on_data_and_failures(
    corrected: Report, settings: Settings, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = (corrected.path / "failures.jsonl").read_text().splitlines()
    assert f"{len(rows)} failures learned from" in corrected.headline
    assert len(rows) == summary_of(corrected)["preferences"] == summary_of(corrected)["failures"] > 0
    first = run(settings(f"data={parts[0]}", f"eval_data={parts[1]}", recipe="dense"), tmp_path / "first")
    assert same(first.path / "model", corrected.path / "members" / "0" / "model")
    data = f"data={parts[0]},{corrected.path / 'failures.jsonl'}"
    second = run(settings(data, f"eval_data={parts[1]}", "seed=1", recipe="dense"), tmp_path / "second")
    assert same(second.path / "model", corrected.path / "members" / "1" / "model")
    assert same(second.path / "model", corrected.path / "model"), "the corrected model is what is delivered"


def test_only_failures_of_the_first_model_are_added(corrected: Report) -> None:
    groups = read_groups(str(corrected.path / "failures.jsonl")).groups
    rewards = RewardModel.load(corrected.path / "members" / "0" / "model").score(groups)
    assert all(first < second for first, second in rewards)
    now = RewardModel.load(corrected.path / "model").score(groups)
    told = summary_of(corrected)["corrected"]
    assert told["failures"] == len(groups)
    assert told["still"] == sum(first < second for first, second in now)


def test_the_surest_pairs_of_the_training_data_are_searched(corrected: Report, parts: tuple[Path, Path]) -> None:
    groups = read_groups(str(parts[0])).groups
    prompts = {group.prompt_text for group in groups}
    assert summary_of(corrected)["pairs"] == len(groups)
    assert summary_of(corrected)["searched_pairs"] == -(-len(groups) // 2)
    rows = [json.loads(line) for line in (corrected.path / "failures.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} <= prompts, "no held-out prompt is searched"


def test_robustness_before_and_after_is_reported(corrected: Report, parts: tuple[Path, Path]) -> None:
    """The two models scored again, repeated answers made by hand."""
    found = summary_of(corrected)["robustness"]
    suites = set(SUITES) - {"misspelling"}  # the toy words are too short to be misspelt
    assert {"unchanged", *(f"{suite}/{side}" for suite in suites for side in SIDES)} == set(found)
    groups = sorted(read_groups(str(parts[1])).groups, key=lambda group: group.prompt_key)[:12]
    for when, member in (("before", "0"), ("after", "1")):
        model = RewardModel.load(corrected.path / "members" / member / "model")
        plain = [first > second for first, second in model.score(groups)]
        assert found["unchanged"][when]["estimate"] == pytest.approx(sum(plain) / 12)
        doubled = [
            Group(group.prompt, (group.answers[0], (group.answers[1][0]._replace(content=f"{text}\n\n{text}"),)))
            for group in groups
            for text in group.answer_texts[1:]
        ]
        repeated = [first > second for first, second in model.score(doubled)]
        assert found["repetition/other"][when]["estimate"] == pytest.approx(sum(repeated) / 12)
    page = (corrected.path / "report.html").read_text()
    assert "verbosity/other" in page
    assert "were added to the training data" in page


def test_fine_tuning_goes_on_with_the_first_model(settings: Settings, parts: tuple[Path, Path], tmp_path: Path) -> None:
    tuned = run(settings("reform.retrain=fine_tune"), tmp_path / "tuned")
    first = tuned.path / "members" / "0" / "model"
    data = f"data={parts[0]},{tuned.path / 'failures.jsonl'}"
    more = [data, f"eval_data={parts[1]}", "seed=1", f"model={first}", "head.init=keep"]
    assert same(run(settings(*more, recipe="dense"), tmp_path / "more").path / "model", tuned.path / "model")


def test_an_interrupted_run_ends_alike(corrected: Report, settings: Settings, tmp_path: Path) -> None:
    """Stopped while the corrected model was trained."""
    copy = tmp_path / "run"
    shutil.copytree(corrected.path, copy)
    for name in ("members/1", "model"):
        shutil.rmtree(copy / name)
    for name in ("report.json", "report.html", "failures.jsonl"):
        (copy / name).unlink()
    resumed = run(settings(), copy, resume=True)
    assert same(resumed.path / "model", corrected.path / "model")
    assert summary_of(resumed) == summary_of(corrected)


def test_what_is_searched_under_lora_is_the_adapted_model(settings: Settings, tmp_path: Path) -> None:
    """The released code throws the merged weights away."""
    pytest.importorskip("peft")
    report = run(settings("lora={r: 4, target_modules: [q_proj, v_proj]}", "reform.share=0.2"), tmp_path / "run")
    groups = read_groups(str(report.path / "failures.jsonl")).groups
    assert groups
    rewards = RewardModel.load(report.path / "members" / "0" / "model").score(groups)
    for group, row in zip(groups, rewards, strict=True):
        preferred = group.meta["failure"] == "preferred"
        assert row[not preferred] == pytest.approx(group.meta["rewards"][2], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["members=2"], r"Got `reform` with members, expected a recipe that trains one dense model"),
        (["rule.name=checkable", "members=3"], r"Got `reform` with rule, members, expected"),
        (["upcycle.n_experts=4"], r"Got `reform` with upcycle and no merge, expected"),
        (["factors={}", "reform.retrain=fine_tune"], r"fine_tune with `upcycle` or `factors`, expected a dense model with a linear head"),
        (["reform.form=argmin"], r"reform\.variants=4 with reform\.form=argmin, expected 1"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(settings: Settings, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_reform(settings(*overrides))


def test_a_policy_that_is_a_reward_model_is_refused_before_training(settings: Settings, reward_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a reward model, expected a language model, which writes answers"):
        run(settings(f"reform.flipped={reward_dir}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mixtures_are_corrected_once_merged(settings: Settings, tmp_path: Path) -> None:
    mixture = ["upcycle.n_experts=3", "upcycle.n_active=2", "merge.method=uniform", "trainer.max_steps=2", "reform.max_new_tokens=3"]
    report = run(settings(*mixture), tmp_path / "run")
    assert {"mixture", "merge", "reform"} <= set(report.results["members"][0])
    assert (report.path / "members" / "0" / "moe").is_dir()
