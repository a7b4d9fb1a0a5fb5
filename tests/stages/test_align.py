"""`rewardproof align`: what a run leaves, that it goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import dump_yaml, load_recipe, parse
from rewardproof.errors import CheckpointError, ConfigError, DataError, EvaluationError, ModelError
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.align import Align, run


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    """30 prompts, one of them twice, one too long."""
    rows = [{"prompt": f"w{number} w{number + 1} w{number * 2}", "category": "c"} for number in range(29)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [*rows, rows[3], {"prompt": " ".join(["w1"] * 60)}])


def settings(base: Path, reward: Path, prompts: Path, /, **changes: Any) -> Align:
    recipe = changes.pop("recipe", "rloo")
    chosen = load_recipe(recipe, verb="align")
    chosen["optimise"] |= {
        "steps": 4,
        "prompts_per_step": 4,
        "answers": 3,
        "max_new_tokens": 6,
        "learning_rate": 3e-3,
        "layers": "top:2",
        "minibatches": 1,
        **changes.pop("optimise", {}),
    }
    return parse(
        Align,
        {
            **chosen,
            "policy": str(base),
            "reward": [str(reward)],
            "gold": str(reward),
            "prompts": [str(prompts)],
            "split": 0.3,
            "max_prompt_tokens": 20,
            "evaluate": {"every": 2, "prompts": 5, "answers": 3, "exact": True},
            "compute": {"precision": "fp32", "save_every": 1},
            **changes,
        },
    )


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_a_run_leaves_a_policy_and_what_became_of_it(recipe: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    report = run(settings(base_dir, reward_dir, prompts, recipe=recipe), tmp_path / "out")
    assert report.headline.startswith("after 4 updates, ")
    assert report.results["rows"]["train_sources"] == {"read": 31, "used": 30, "dropped": {}}
    assert report.results["rows"]["overlong"] == 1
    assert report.results["rows"]["training_prompts"] + report.results["rows"]["evaluation_prompts"] <= 29
    assert [record["step"] for record in report.results["evaluations"]] == [0, 2, 4]
    start = report.results["evaluations"][0]
    assert (start["kl"]["estimate"], start["proxy"]["estimate"]) == (0, pytest.approx(0, abs=1e-9))
    assert report.results["evaluations"][-1]["kl"]["estimate"] > 1e-3
    rows = [json.loads(line) for line in (tmp_path / "out/evaluations/000004.jsonl").read_text().splitlines()]
    assert len(rows) == report.results["rows"]["evaluation_prompts"]
    for row in rows:
        assert row["gold"] == pytest.approx(row["proxy/model"] if "proxy/model" in row else row[next(k for k in row if "proxy/" in k)])
        assert all(value >= -1e-6 for value in row["kl_exact"])
    trained, start_model = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out/model", base_dir))
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, start_model.state_dict()[name])}
    assert moved
    assert all("layers.1" in name or "layers.2" in name or name == "model.norm.weight" for name in moved)
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").chat_template
    page = (tmp_path / "out/report.html").read_text()
    assert all(text in page for text in ("beyond gold", "Against distance", "The course"))
    logged = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if line["phase"] == "optimising"] == [1, 2, 3, 4]


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    config = settings(base_dir, reward_dir, prompts, recipe="ppo", optimise={"kl": {"coefficient": 0.1, "target": 0.5}})
    whole = run(config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", after=3)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed.headline == whole.headline
    assert resumed.results["evaluations"] == whole.results["evaluations"]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = run(config, tmp_path / "parts", resume=True)
    assert again.results == resumed.results


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ppo", "grpo"])
def test_two_processes_take_the_updates_of_one(
    recipe: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path, launch: Callable[..., CompletedProcess[str]]
) -> None:
    config = settings(
        base_dir, reward_dir, prompts, recipe=recipe, optimise={"minibatches": 2}, compute={"precision": "fp32", "tokens_per_batch": 40}
    )
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    logs = []
    for processes in (1, 2):
        done = launch(["-m", "rewardproof", "align", str(tmp_path / "recipe.yaml"), str(tmp_path / str(processes))], processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("after 4 updates") == 1
        logs.append([json.loads(line) for line in (tmp_path / str(processes) / "log.jsonl").read_text().splitlines()])
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds", "phase", "train_sources"}:
            assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-4), name
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("1", "2"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-4, rtol=1e-2)


def test_adapters_are_folded_into_the_policy(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(base_dir, reward_dir, prompts, optimise={"lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}, "steps": 2})
    run(config, tmp_path / "out")
    trained, start = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "out/model", base_dir))
    assert trained.keys() == start.keys()
    moved = {name for name in start if not torch.equal(trained[name], start[name])}
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)


def test_several_rewards_are_streams_in_units_of_their_own(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(base_dir, reward_dir, prompts, reward=[str(reward_dir), str(reward_dir)], weights=[1.0, 0.5], gold="", recipe="ppo")
    report = run(config, tmp_path / "out")
    logged = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    names = sorted(name for name in logged[-1] if name.startswith("reward/"))
    assert len(names) == 2
    assert logged[-1][names[0]] == pytest.approx(logged[-1][names[1]])
    assert report.results["evaluations"][0]["gold"] is None
    assert "gold" not in report.headline


def test_the_command_says_what_came_of_it(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    words = [
        "align", "rloo", str(tmp_path / "out"), f"policy={base_dir}", f"reward={reward_dir}", f"prompts={prompts}", "split=0.3",
        "optimise.steps=1", "optimise.prompts_per_step=2", "optimise.max_new_tokens=3", "evaluate.prompts=3", "max_prompt_tokens=20",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'}: after 1 updates, " in result.output
    other = CliRunner().invoke(app, ["train", "rloo", str(tmp_path / "other"), "model=x", "data=y"])
    assert "Recipe 'rloo' optimises a policy, expected one that trains a reward model; run `rewardproof align rloo OUT`." in other.output
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "is not empty" in refused.output


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward": []}, ConfigError, "Got no reward, expected"),
        ({"weights": [1.0, 2.0]}, ConfigError, "weights has 2 entries for 1 rewards"),
        ({"gold": "scores"}, ConfigError, "Got 'scores' as a scorer"),
        ({"optimise": {"answers": 1}}, ConfigError, "answers=1 with estimator=rloo: expected 2 or more"),
        ({"optimise": {"layers": "top:0"}}, ConfigError, "expected layers that train"),
        ({"max_prompt_tokens": 2}, DataError, "Got 0 prompts to judge the policy on"),
        ({"optimise": {"prompts_per_step": 64}}, ConfigError, "expected at least prompts_per_step=64"),
        ({"policy": "nowhere/at/all"}, CheckpointError, "No model at 'nowhere/at/all'"),
    ],
)
def test_what_cannot_be_run_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(settings(base_dir, reward_dir, prompts, **changes), tmp_path / "out")


def test_positions_that_a_policy_does_not_have_are_refused(reward_dir: Path, prompts: Path, tmp_path: Path, tiny: ModuleType) -> None:
    for family, what in (("gpt2", "512 positions"), ("mistral", "7 tokens in its sliding window")):
        tiny.causal(family).save_pretrained(tmp_path / family)
        tiny.word_tokenizer().save_pretrained(tmp_path / family)
        with pytest.raises(ConfigError, match=f"has {what}"):
            run(settings(tmp_path / family, reward_dir, prompts, max_prompt_tokens=510), tmp_path / "out")


def test_a_reward_model_is_no_policy(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a reward model, expected a language model"):
        run(settings(base_dir, reward_dir, prompts, policy=str(reward_dir)), tmp_path / "out")


def test_a_reward_without_differences_has_no_unit(base_dir: Path, prompts: Path, tmp_path: Path, tiny: ModuleType) -> None:
    model = tiny.classifier("llama")
    torch.nn.init.zeros_(model.score.weight)
    RewardModel(model, tiny.word_tokenizer()).save(tmp_path / "constant")
    with pytest.raises(EvaluationError, match="constant has a mean of 0"):
        run(settings(base_dir, tmp_path / "constant", prompts), tmp_path / "out")


def test_gold_that_knows_other_prompts_says_so(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not from embedded:checkable"):
        run(settings(base_dir, reward_dir, prompts, gold="embedded:checkable"), tmp_path / "out")


def test_a_policy_with_position_biases_is_refused(reward_dir: Path, prompts: Path, tmp_path: Path, tiny: ModuleType) -> None:
    config = BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0, eos_token_id=1, bos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    tiny.word_tokenizer().save_pretrained(tmp_path / "bloom")
    with pytest.raises(ModelError, match=r"adds position biases inside its attention \(ALiBi\)"):
        run(settings(tmp_path / "bloom", reward_dir, prompts), tmp_path / "out")
