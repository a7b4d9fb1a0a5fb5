"""Every policy recipe takes part in `stress`: run against the same reward model, judged by the same gold, in one report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewardproof.config import recipe_names
from rewardproof.models.checkpoints import set_reading
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.stress import Stress, run

CONSTRAINED = ("mu_ppo", "xi_ppo", "all_ppo", "ppo_sat", "nm_ppo")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [
        {"prompt": f"w{number} w{number + 1}", "answers": ["w1 w2", "w71 w2", "w3"], "scores": [1.0, number % 3, 0.5], "reference": "w9"}
        for number in range(90)
    ]
    return write_jsonl(tmp_path_factory.mktemp("judged") / "judged.jsonl", rows)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType, judged: Path) -> dict[str, dict[str, Any]]:
    """What a recipe needs beyond a reward model: data it learns on, further rewards and their thresholds, a rule."""
    tone = RewardModel(tiny.classifier("llama", seed=8), tiny.word_tokenizer()).save(tmp_path_factory.mktemp("tone") / "tone" / "model")
    two: dict[str, Any] = {"reward": f"$MODEL,{tone}", "weights": "1,0.5"}
    thresholds = {"constrained": {"thresholds": {"$MODEL": 0.02, "tone": -0.03}}}
    needs: dict[str, dict[str, Any]] = {name: two | ({} if name == "nm_ppo" else thresholds) for name in CONSTRAINED}
    needs["nm_ppo"] |= {"constrained": {"search": {"prompts": 3, "tolerance": 0.5}, "multipliers": {"steps": 1}}}
    needs["metarm"] = {"metarm": {"data": [str(judged)], "rounds": 2, "steps": 1, "prompts": 2, "groups": 4}}
    needs["cooper"] = {
        "rule": {"name": "tests.faults.rules:verdict"},
        "cooper": {"assistant": {"by": "tests.faults.rules:broken"}, "replay": {"data": [str(judged)], "groups": 3}},
    }
    return needs


@pytest.mark.slow
def test_every_policy_recipe_stands_in_the_report(
    given: dict[str, dict[str, Any]], judged: Path, base_dir: Path, reward_dir: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    recipes = recipe_names("align")
    assert set(given) < set(recipes)
    verifier = tiny.classifier("llama", seed=3)
    set_reading(verifier, "reference")
    RewardModel(verifier, tiny.word_tokenizer()).save(tmp_path / "verifier" / "model")
    told: dict[str, Any] = {}
    for model, methods in ((reward_dir, [name for name in recipes if name != "cooper"]), (tmp_path / "verifier/model", ["cooper"])):
        config = Stress(
            models=(str(model),), pool=(str(judged),), methods=tuple(methods), gold=str(reward_dir), policy=str(base_dir), precision="fp32",
            policy_prompts=(str(judged),),
            optimise={"steps": 4, "prompts_per_step": 3, "answers": 3, "minibatches": 1, "max_new_tokens": 5},
            direct={"steps": 2, "groups_per_step": 4, "max_new_tokens": 5}, evaluate={"every": 2, "prompts": 4, "answers": 3},
            align={name: given[name] for name in methods if name in given},
        )  # fmt: skip
        out = tmp_path / "out" / methods[0]
        told |= run(config, out).results["policies"]
        page = (out / "report.html").read_text()
        assert all(f"Policies by {name}" in page for name in methods)
    assert sorted(told) == sorted(recipes)
    for name, found in told.items():
        (one,) = found.values()
        assert len(one["gold"]) == len(one["distance"]) > 1, name
        assert one["n_prompts"] == 4, name
        assert one["end_gold"]["n"] == 4, name
