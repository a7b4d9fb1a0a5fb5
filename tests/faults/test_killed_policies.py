"""kill -9 at random moments of `align` and of `stress`, then --resume: what an undisturbed run ends at, bit for bit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardproof.models.checkpoints import set_reading
from rewardproof.models.reward_model import RewardModel
from tests.faults import undisturbed
from tests.faults.undisturbed import Undisturbed, appears

pytestmark = pytest.mark.slow
TIMES = {"seconds", "peak_memory_gb", "scoring_seconds"}
Killed = Callable[..., bool]
SMALL = (
    "optimise.prompts_per_step=4", "optimise.answers=3", "optimise.max_new_tokens=6", "optimise.learning_rate=3e-3", "evaluate.every=2",
    "evaluate.prompts=5", "evaluate.answers=3",
)  # fmt: skip


def report(run: Path) -> Any:
    return undisturbed.report(run, TIMES)


def logged(run: Path) -> list[Any]:
    return [undisturbed.apart_from(json.loads(line), TIMES) for line in (run / "log.jsonl").read_text().splitlines()]


def made(folder: Path, finished: Callable[..., str], verb: tuple[str, ...], settings: tuple[str, ...]) -> Undisturbed:
    finished("recipes", "ls")  # the server starts
    begun = time.monotonic()
    finished(*verb, folder / "run", *settings)
    return Undisturbed(folder / "run", settings, time.monotonic() - begun)


@pytest.fixture(scope="module")
def policy(base_dir: Path, reward_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory, finished) -> Undisturbed:
    settings = (
        f"policy={base_dir}", f"reward={reward_dir}", f"gold={reward_dir}", f"prompts={toy_file}", "split=0.3", "optimise.steps=6",
        "optimise.minibatches=2", "compute.precision=fp32", "compute.save_every=1", *SMALL,
    )  # fmt: skip
    return made(tmp_path_factory.mktemp("align"), finished, ("align", "ppo"), settings)


@pytest.fixture(scope="module")
def following(base_dir: Path, reward_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory, finished) -> Undisturbed:
    """A run whose reward model learns too."""
    settings = (
        f"policy={base_dir}", f"reward={reward_dir}", f"gold={reward_dir}", f"prompts={toy_file}", "split=0.3", "optimise.steps=6",
        "feedback.attention.width=16", "feedback.learning.learning_rate=1e-2", "compute.precision=fp32", "compute.save_every=1", *SMALL,
    )  # fmt: skip
    return made(tmp_path_factory.mktemp("r2m"), finished, ("align", "r2m"), settings)


@pytest.fixture(scope="module")
def learning(
    base_dir: Path, reward_dir: Path, toy_file: Path, tiny, tmp_path_factory: pytest.TempPathFactory, write_jsonl, finished
) -> dict[str, Undisturbed]:
    """Runs whose reward model's own layers learn."""
    folder = tmp_path_factory.mktemp("learning")
    model = tiny.classifier("llama", seed=3)
    set_reading(model, "reference")
    verifier = RewardModel(model, tiny.word_tokenizer()).save(folder / "verifier")
    asked = write_jsonl(folder / "prompts.jsonl", [{"prompt": f"w{n} w{n + 1}", "reference": "w1"} for n in range(40)])
    shared = (
        f"policy={base_dir}",
        f"gold={reward_dir}",
        "split=0.3",
        "optimise.steps=6",
        "compute.precision=fp32",
        "compute.save_every=1",
        *SMALL,
    )
    settings = {
        "cooper": (
            f"reward={verifier}", f"prompts={asked}", "rule.name=tests.faults.rules:verdict", "cooper.learning_rate=1e-3",
            "cooper.assistant.by=tests.faults.rules:broken", "cooper.anchor=0.1",
        ),
        "metarm": (
            f"reward={reward_dir}", f"prompts={toy_file}", f"metarm.data={toy_file}", "metarm.rounds=3", "metarm.steps=2",
            "metarm.prompts=2", "metarm.groups=4", "metarm.learning_rate=1e-3",
        ),
    }  # fmt: skip
    return {recipe: made(folder / recipe, finished, ("align", recipe), (*shared, *own)) for recipe, own in settings.items()}


@pytest.fixture(scope="module")
def stress(base_dir: Path, reward_dir: Path, tmp_path_factory: pytest.TempPathFactory, write_jsonl, finished) -> Undisturbed:
    dice = random.Random(0)
    rows = [{"prompt": f"w{n} w{n + 1}", "answers": [f"w{dice.randrange(80)} w{dice.randrange(80)}" for _ in range(9)]} for n in range(40)]
    folder = tmp_path_factory.mktemp("stress")
    pools = write_jsonl(folder / "pools.jsonl", rows)
    settings = (
        f"gold={reward_dir}", f"pool={pools}", f"policy={base_dir}", f"policy_prompts={pools}", "methods=bon,rloo", "seeds=2",
        "precision=fp32", "optimise.steps=3", "optimise.layers=top:2", *SMALL,
    )  # fmt: skip
    return made(folder, finished, ("stress", str(reward_dir)), settings)


MOMENTS = {
    "the settings are written": appears("config.yaml"),
    "the first answers are judged": appears("evaluations/000000.jsonl"),
    "the first checkpoint is being written": appears("checkpoints/checkpoint-1/trained.safetensors", apart_from="trainer_state.json"),
    "half of it": appears("checkpoints/checkpoint-3"),
    "an old checkpoint is being deleted": appears("checkpoints/checkpoint-4/trainer_state.json"),
    "the last evaluation": appears("evaluations/000006.jsonl"),
    "the policy is being saved": appears(".model.partial-*"),
    "the page is being written": appears("report.json"),
}


def assert_same_policy(run: Path, whole: Path) -> None:
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert report(run) == report(whole)
    assert logged(run) == logged(whole), "updates are missing from the log, in it twice, or others"
    for file in sorted((whole / "evaluations").iterdir()):
        assert (run / "evaluations" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", MOMENTS)
def test_align_killed_at_a_moment(name: str, policy: Undisturbed, killed: Killed, finished, tmp_path: Path) -> None:
    runs = (tmp_path / str(attempt) for attempt in range(5))  # a moment can be over before it is seen
    run = next(run for run in runs if killed(MOMENTS[name](run), "align", "ppo", run, *policy.command))
    finished("align", "ppo", run, *policy.command, "--resume")
    assert_same_policy(run, policy.path)


@pytest.mark.parametrize("name", ["half of it", "an old checkpoint is being deleted", "the last evaluation"])
def test_a_reward_that_learns_killed_at_a_moment(name: str, following: Undisturbed, killed: Killed, finished, tmp_path: Path) -> None:
    runs = (tmp_path / str(attempt) for attempt in range(5))
    run = next(run for run in runs if killed(MOMENTS[name](run), "align", "r2m", run, *following.command))
    finished("align", "r2m", run, *following.command, "--resume")
    assert_same_policy(run, following.path)


@pytest.mark.parametrize("name", ["half of it", "an old checkpoint is being deleted", "the policy is being saved"])
@pytest.mark.parametrize("recipe", ["cooper", "metarm"])
def test_a_reward_whose_layers_learn_killed_at_a_moment(
    recipe: str, name: str, learning: dict[str, Undisturbed], killed: Killed, finished, tmp_path: Path
) -> None:
    whole = learning[recipe]
    runs = (tmp_path / str(attempt) for attempt in range(5))
    run = next(run for run in runs if killed(MOMENTS[name](run), "align", recipe, run, *whole.command))
    finished("align", recipe, run, *whole.command, "--resume")
    assert_same_policy(run, whole.path)
    ours, theirs = (load_file(path / "reward" / "model.safetensors") for path in (run, whole.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("recipe", ["red_ppo", "red_rloo"])
def test_align_by_another_recipe_killed_halfway(
    recipe: str, policy: Undisturbed, killed: Killed, finished: Callable[..., str], tmp_path: Path
) -> None:
    whole = made(tmp_path / "whole", finished, ("align", recipe), policy.command)
    runs = (tmp_path / str(attempt) for attempt in range(5))
    run = next(run for run in runs if killed(MOMENTS["half of it"](run), "align", recipe, run, *whole.command))
    finished("align", recipe, run, *whole.command, "--resume")
    assert_same_policy(run, whole.path)


CONSTRAINED = {
    "grpo": (),
    "xi_ppo": ("constrained.thresholds.first=0.02", "constrained.thresholds.second=-0.03"),
    "nm_ppo": ("constrained.search.cap=0.5",),
}


@pytest.mark.parametrize("recipe", CONSTRAINED)
def test_multipliers_and_searches_killed_halfway(
    recipe: str, base_dir: Path, toy_file: Path, tiny, killed: Killed, finished: Callable[..., str], tmp_path: Path
) -> None:
    """What lies beside the policy at a checkpoint: multipliers, their momentum, the corners of a search."""
    for seed, name in enumerate(("first", "second", "gold")):
        RewardModel(tiny.classifier("llama", seed=3 + seed), tiny.word_tokenizer()).save(tmp_path / name / "model")
    rewards = ",".join(str(tmp_path / name / "model") for name in ("first", "second"))
    settings = (
        f"policy={base_dir}", f"reward={rewards}", f"gold={tmp_path / 'gold' / 'model'}", f"prompts={toy_file}", "split=0.3",
        "optimise.steps=6", "compute.precision=fp32", "compute.save_every=1", "weights=1,0.5", *CONSTRAINED[recipe], *SMALL,
    )  # fmt: skip
    whole = made(tmp_path / "whole", finished, ("align", recipe), settings)
    runs = (tmp_path / str(attempt) for attempt in range(5))
    run = next(run for run in runs if killed(MOMENTS["half of it"](run), "align", recipe, run, *whole.command))
    finished("align", recipe, run, *whole.command, "--resume")
    assert_same_policy(run, whole.path)


@pytest.fixture(scope="module")
def preferring(base_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory, finished) -> Undisturbed:
    """A run that learns from preferences."""
    settings = (
        f"policy={base_dir}", f"prompts={toy_file}", "split=0.3", "direct.steps=6", "direct.groups_per_step=8", "direct.max_new_tokens=6",
        "direct.learning_rate=3e-3", "direct.layers=top:2", "direct.baseline=sampled", "evaluate.every=2", "evaluate.prompts=5",
        "evaluate.answers=3", "compute.precision=fp32", "compute.save_every=1",
    )  # fmt: skip
    return made(tmp_path_factory.mktemp("rpo"), finished, ("align", "rpo"), settings)


PREFERRING = {
    "the reference is asked": appears("checkpoints/reference.json"),
    **{
        name: MOMENTS[name]
        for name in ("the first answers are judged", "half of it", "an old checkpoint is being deleted", "the last evaluation")
    },
}


@pytest.mark.parametrize("name", PREFERRING)
def test_direct_alignment_killed_at_a_moment(name: str, preferring: Undisturbed, killed: Killed, finished, tmp_path: Path) -> None:
    runs = (tmp_path / str(attempt) for attempt in range(5))
    run = next(run for run in runs if killed(PREFERRING[name](run), "align", "rpo", run, *preferring.command))
    finished("align", "rpo", run, *preferring.command, "--resume")
    assert_same_policy(run, preferring.path)


@pytest.mark.parametrize("seed", range(3))
def test_stress_killed_again_and_again(seed: int, stress: Undisturbed, reward_dir: Path, killed: Killed, finished, tmp_path: Path) -> None:
    run, resume, dice = tmp_path / "run", [], random.Random(seed)
    for _ in range(4):
        end = time.monotonic() + dice.random() * stress.seconds
        killed(lambda end=end: time.monotonic() > end, "stress", reward_dir, run, *stress.command, *resume)
        resume = ["--resume"]
    finished("stress", reward_dir, run, *stress.command, "--resume")
    assert report(run) == report(stress.path)
    for file in sorted((stress.path / "scores").iterdir()):
        assert (run / "scores" / file.name).read_bytes() == file.read_bytes()
