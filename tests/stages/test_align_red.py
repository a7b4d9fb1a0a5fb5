"""`rewardproof align red_ppo` and `red_rloo`, and `stress` with them: end to end, resumed, beside the plain recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import dump_yaml, load_recipe, parse
from rewardproof.errors import ConfigError
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import Combine, ModelEnsemble, Scale
from rewardproof.stages.align import Align, run
from rewardproof.stages.stress import Stress
from rewardproof.stages.stress import run as run_stress

RECIPES = ("red_ppo", "red_rloo")
SMALL = {"steps": 3, "prompts_per_step": 4, "answers": 3, "max_new_tokens": 6, "learning_rate": 3e-3, "layers": "top:2", "minibatches": 1}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number} w{number + 1} w{number * 2}"} for number in range(29)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def settings(base: Path, reward: Path | str, prompts: Path, recipe: str, **changes: Any) -> Align:
    chosen = load_recipe(recipe, verb="align")
    chosen["optimise"] |= {**SMALL, **changes.pop("optimise", {})}
    places = {"policy": str(base), "reward": [str(reward)], "gold": str(reward), "prompts": [str(prompts)], "split": 0.3}
    judged = {"evaluate": {"every": 3, "prompts": 5, "answers": 3}, "compute": {"precision": "fp32", "save_every": 1}}
    return parse(Align, {**chosen, **places, **judged, **changes})


def updates(run_directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "optimising"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_spreads_rewards_counts_what_it_could_not_and_shows_where_they_lie(
    recipe: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    report = run(settings(base_dir, reward_dir, prompts, recipe), tmp_path / "out")
    found = updates(tmp_path / "out")
    assert report.results["redistribution"] == {
        name: sum(one[f"redistribution/{name}"] for one in found) for name in ("tokens", "unmapped", "unlocated")
    }
    assert report.results["redistribution"]["tokens"] == sum(round(one["answer_tokens"] * 12) for one in found)
    assert report.results["redistribution"]["unlocated"] == 0
    assert all(one["redistribution/largest"] > 0.05 for one in found)
    assert report.results["evaluations"][-1]["kl"]["estimate"] > 1e-3
    page = (tmp_path / "out/report.html").read_text()
    name = re.findall(r"<h2>Where (.*) sees it</h2>", page)
    assert len(name) == 1
    assert page.count('<div class="heat">') == 8
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)


def test_plain_runs_show_the_same_maps_but_spread_nothing(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    report = run(settings(base_dir, reward_dir, prompts, "rloo", optimise={"steps": 1}), tmp_path / "out")
    assert "redistribution" not in report.results
    assert "redistribution/tokens" not in updates(tmp_path / "out")[0]
    assert (tmp_path / "out/report.html").read_text().count('<div class="heat">') == 8


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    recipe: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    config = settings(base_dir, reward_dir, prompts, recipe)
    whole = run(config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", after=2)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed.results["evaluations"] == whole.results["evaluations"]
    assert resumed.results["redistribution"] == whole.results["redistribution"]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_share_of_0_is_the_plain_recipe(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    """Acceptance 2, end to end: the recipes differ in nothing else, and the numbers are the same to the last bit."""
    plain = run(settings(base_dir, reward_dir, prompts, "ppo"), tmp_path / "plain")
    none = run(settings(base_dir, reward_dir, prompts, "red_ppo", optimise={"redistribute": {"share": 0.0}}), tmp_path / "none")
    assert none.results["evaluations"] == plain.results["evaluations"]


def test_tokens_that_weigh_nothing_are_plain_rloo(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    """Acceptance 5, end to end: token_weight=0 takes plain RLOO's steps, with one ratio a token as there."""
    plain = settings(base_dir, reward_dir, prompts, "rloo", optimise={"whole_answers": False, "steps": 2})
    none = settings(base_dir, reward_dir, prompts, "red_rloo", optimise={"token_weight": 0.0, "steps": 2})
    one, other = (run(config, tmp_path / name).results["evaluations"][-1] for config, name in ((plain, "plain"), (none, "none")))
    for name in ("kl", "proxy"):
        assert other[name]["estimate"] == pytest.approx(one[name]["estimate"], rel=0.05, abs=1e-3)


def test_an_ensemble_spreads_its_rewards(base_dir: Path, prompts: Path, tmp_path: Path, tiny: ModuleType) -> None:
    members = {name: RewardModel(tiny.classifier("llama", seed=place), tiny.word_tokenizer()) for place, name in enumerate("ab")}
    for name, member in members.items():
        member.save(tmp_path / name)
    ensemble = ModelEnsemble(members, dict.fromkeys(members, Scale(0.0, 1.0)), Combine(combination="worst_case"))
    ensemble.save(tmp_path / "both", {name: f"../{name}" for name in members})
    report = run(settings(base_dir, tmp_path / "both", prompts, "red_ppo", optimise={"steps": 1}), tmp_path / "out")
    (update,) = updates(tmp_path / "out")
    assert update["ensemble/disagreement"] > 0
    assert report.results["redistribution"]["tokens"] > 0


def test_a_program_that_judges_cannot_be_spread(base_dir: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(base_dir, "embedded:checkable", prompts, "red_ppo")
    with pytest.raises(ConfigError, match=r"share=1 with the reward embedded:checkable, expected reward models or ensembles"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_runs_and_refuses_the_unsafe_form(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    words = [
        "align", "red_rloo", str(tmp_path / "out"), f"policy={base_dir}", f"reward={reward_dir}", f"prompts={prompts}", "split=0.3",
        "optimise.steps=1", "optimise.prompts_per_step=4", "optimise.answers=3", "optimise.max_new_tokens=5", "evaluate.prompts=3",
        "optimise.redistribute.smooth=word", "optimise.redistribute.initial=drop", "optimise.redistribute.share=0.5",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "after 1 updates" in done.output
    words[2] = str(tmp_path / "other")
    refused = CliRunner().invoke(app, [*words, "optimise.redistribute.advantage=token_minus_baseline"])
    assert refused.exit_code == 2
    assert "expected centred" in refused.output
    unknown = CliRunner().invoke(app, [*words, "optimise.redistribute.shares=1"])
    assert "did you mean 'share'?" in unknown.output


def test_stress_judges_them_beside_the_plain_recipes(base_dir: Path, reward_dir: Path, pool_file: Path, tmp_path: Path) -> None:
    config = Stress(
        models=(str(reward_dir),), pool=(str(pool_file),), gold=str(reward_dir), precision="fp32", methods=("rloo", *RECIPES),
        policy=str(base_dir), policy_prompts=(str(pool_file),), optimise={**SMALL, "steps": 2, "prompts_per_step": 3},
        evaluate={"every": 1, "prompts": 4, "answers": 3},
    )  # fmt: skip
    report = run_stress(config, tmp_path / "out")
    assert list(report.results["policies"]) == ["rloo", *RECIPES]
    page = (tmp_path / "out/report.html").read_text()
    assert all(f"Policies by {method}" in page for method in RECIPES)
    for method in RECIPES:
        assert "redistribution" in json.loads((tmp_path / f"out/policies/{method}/0-0/report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_take_the_updates_of_one(
    recipe: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path, launch: Callable[..., CompletedProcess[str]]
) -> None:
    config = settings(base_dir, reward_dir, prompts, recipe, optimise={"minibatches": 2})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    logs = []
    for processes in (1, 2):
        done = launch(["-m", "rewardproof", "align", str(tmp_path / "recipe.yaml"), str(tmp_path / str(processes))], processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
        logs.append(updates(tmp_path / str(processes)))
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds", "phase"}:
            assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-4), name
