"""`rewardproof align dpo` and its kin: judged as policies that learn from rewards are, resumed, and told what they must not be given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import dump_yaml, load_recipe, parse
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import PolicyRuns
from rewardproof.stages.align import Align, check_settings, run, run_evaluations

RECIPES = ("dpo", "ipo", "slic", "dpo_length", "rpo")


def settings(base: Path, data: Path, /, **changes: Any) -> Align:
    chosen = load_recipe(changes.pop("recipe", "dpo"), verb="align")
    small = {"steps": 6, "groups_per_step": 8, "max_new_tokens": 6, "learning_rate": 3e-3, "layers": "top:2", "optimizer": "adamw"}
    chosen["direct"] |= {**small, "warmup_share": 0.0, **changes.pop("direct", {})}
    return parse(
        Align,
        {
            **chosen,
            "policy": str(base),
            "prompts": [str(data)],
            "split": 0.3,
            "evaluate": {"every": 2, "prompts": 5, "answers": 3},
            "compute": {"precision": "fp32", "save_every": 1, **changes.pop("compute", {})},
            **changes,
        },
    )


def updates(out: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records if record["phase"] == "optimising"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(out / "model").state_dict()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_leaves_a_policy_judged_on_the_way(recipe: str, base_dir: Path, toy_file: Path, reward_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(settings(base_dir, toy_file, recipe=recipe, reward=[str(reward_dir)], gold=str(reward_dir)), out)
    assert report.headline.startswith("after 6 updates, ")
    found = report.results["evaluations"]
    assert [record["step"] for record in found] == [0, 2, 4, 6]
    assert (found[0]["kl"]["estimate"], found[0]["proxy"]["estimate"]) == (0, pytest.approx(0, abs=1e-9))
    assert found[-1]["kl"]["estimate"] > 1e-4
    told = updates(out)
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6]
    assert told[0]["implicit/gap"] == 0, "policy and reference are one: no gap at all"
    assert told[-1]["implicit/gap"] > 0.01
    start = AutoModelForCausalLM.from_pretrained(base_dir).state_dict()
    moved = {name for name, value in weights(out).items() if not torch.equal(value, start[name])}
    assert moved
    assert all("layers.1" in name or "layers.2" in name or name == "model.norm.weight" for name in moved)
    page = (out / "report.html").read_text()
    assert all(text in page for text in (f"{recipe} on preferences", "What the preferences taught", "Against distance", "beyond gold"))
    assert "nothing was watched on the way" in page
    assert not report.results["signs_without_gold"]


def test_it_is_judged_on_the_prompts_that_a_policy_by_rewards_is_judged_on(
    base_dir: Path, toy_file: Path, reward_dir: Path, tmp_path: Path
) -> None:
    run(settings(base_dir, toy_file, reward=[str(reward_dir)], direct={"steps": 1}), tmp_path / "dpo")
    recipe = load_recipe("rloo", verb="align")
    optimise = {"steps": 1, "prompts_per_step": 4, "max_new_tokens": 6, "layers": "top:2"}
    shared = settings(base_dir, toy_file, reward=[str(reward_dir)]).model_dump(exclude={"direct", "optimise"})
    run(parse(Align, {**shared, "optimise": {**recipe["optimise"], **optimise}}), tmp_path / "rloo")
    first = [(tmp_path / name / "evaluations" / "000000.jsonl").read_text() for name in ("dpo", "rloo")]
    assert first[0] == first[1]
    config = settings(base_dir, toy_file)
    trained, judged = split_by_prompt(read_groups(str(toy_file)).groups, fraction=0.3)
    keys = {row["prompt"] for row in map(json.loads, first[0].splitlines())}
    assert keys <= {group.prompt_key for group in judged}
    report = json.loads((tmp_path / "dpo" / "report.json").read_text())
    assert report["rows"]["preferences"]["train"] == len(trained)
    assert config.way.section == "direct"


def test_without_a_reward_the_implicit_one_is_the_proxy(base_dir: Path, toy_file: Path, reward_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(settings(base_dir, toy_file, gold=str(reward_dir), direct={"beta": 0.2}), out)
    assert "implicit reward +" in report.headline
    assert "β nats" in report.headline
    rows = [json.loads(line) for line in (out / "evaluations/000006.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["proxy/implicit"] == pytest.approx([0.2 * value for value in row["kl"]])
    runs = PolicyRuns([run_evaluations(out)])
    assert runs.summary().gap is None
    assert runs.proxy_SEP[0, 0].tolist() == [0.0] * 5
    assert "implicit reward, β nats above the start" in (out / "report.html").read_text()


@pytest.mark.parametrize("changes", [{}, {"eta": 0.5, "baseline": "sampled"}], ids=["dpo", "rpo with a sampled baseline"])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    changes: dict[str, Any], base_dir: Path, toy_file: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    config = settings(base_dir, toy_file, direct=changes)
    whole = run(config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", after=3)
    kept = tmp_path / "parts" / "checkpoints" / "reference.json"
    before = kept.stat().st_mtime_ns
    resumed = run(config, tmp_path / "parts", resume=True)
    assert kept.stat().st_mtime_ns == before, "the reference was asked once"
    assert resumed.headline == whole.headline
    assert resumed.results["evaluations"] == whole.results["evaluations"]
    assert updates(tmp_path / "parts") == updates(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_stored_layers_and_layers_run_every_step_learn_alike(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    for name, limit in (("stored", 20.0), ("run", 0.0)):
        run(settings(base_dir, toy_file, compute={"trunk_cache_gb": limit}), tmp_path / name)
    stored, passed = weights(tmp_path / "stored"), weights(tmp_path / "run")
    for name, value in stored.items():
        torch.testing.assert_close(value, passed[name], atol=1e-5, rtol=1e-3)


def test_adapters_are_folded_into_the_policy(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    run(settings(base_dir, toy_file, direct={"lora": lora, "layers": "all"}), tmp_path / "out")
    trained, start = weights(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base_dir).state_dict()
    assert trained.keys() == start.keys()
    moved = {name for name in start if not torch.equal(trained[name], start[name])}
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)


def test_noise_and_limits_of_the_preferences_are_those_of_train(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    read = {"label_noise": 1.0, "max_groups": 24, "pairs_per_group": 1}
    report = run(settings(base_dir, toy_file, direct={"read": read, "steps": 0, "epochs": 2}), tmp_path / "out")
    told = report.results["rows"]["preferences"]
    assert (told["train"], told["fell_away"]["flipped_pairs"], told["label_noise"]) == (24, 24, 1.0)
    assert report.results["evaluations"][-1]["step"] == 6
    assert updates(tmp_path / "out")[-1]["implicit/gap"] > 0, "what is learnt is the flipped order"


@pytest.mark.slow
def test_two_processes_take_the_updates_of_one(
    base_dir: Path, toy_file: Path, tmp_path: Path, launch: Callable[..., CompletedProcess[str]]
) -> None:
    config = settings(base_dir, toy_file, recipe="rpo", compute={"tokens_per_batch": 40}, direct={"groups_per_step": 7})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    for processes in (1, 2):
        done = launch(["-m", "rewardproof", "align", str(tmp_path / "recipe.yaml"), str(tmp_path / str(processes))], processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
    for one, two in zip(updates(tmp_path / "1"), updates(tmp_path / "2"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"phase"}:
            assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-4), name
    first, second = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-4, rtol=1e-2)


def test_the_command_needs_no_reward(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    words = [
        "align", "ipo", str(tmp_path / "out"), f"policy={base_dir}", f"prompts={toy_file}", "split=0.3", "direct.steps=1",
        "direct.groups_per_step=4", "direct.max_new_tokens=3", "evaluate.prompts=3",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'}: after 1 updates, " in result.output
    other = CliRunner().invoke(app, ["train", "ipo", str(tmp_path / "other"), "model=x", "data=y"])
    assert "Recipe 'ipo' optimises a policy, expected one that trains a reward model" in other.output


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"optimise": {"steps": 3}}, ConfigError, "Got optimise with direct, expected one way to optimise"),
    ({"metarm": {}}, ConfigError, "Got metarm with direct, expected one way to optimise"),
    ({"cooper": {}}, ConfigError, "Got cooper with direct, expected one way to optimise"),
    ({"constrained": {}, "proxy_points": {}}, ConfigError, "Got constrained and proxy_points with direct, expected one way"),
    (
        {"direct": {"read": {"strength": {"treatment": "margin"}}}},
        ConfigError,
        "treatment=margin where the loss reads no",
    ),
    ({"feedback": {}}, ConfigError, "Got feedback with direct, expected one way"),
    ({"gold": "scores"}, ConfigError, "Got 'scores' as a scorer"),
    ({"direct": {"eta": 0.1, "sft_weight": 0.1}}, ConfigError, "expected one of them: both keep the likelihood"),
    ({"direct": {"layers": "top:0"}}, ConfigError, r"direct\.layers=top:0: expected layers that train"),
    ({"direct": {"groups_per_step": 500}}, ConfigError, r"expected at least direct\.groups_per_step=500"),
    ({"direct": {"max_length": 4}}, DataError, "expected at most max_length=4"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_what_cannot_be_run_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, base_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(settings(base_dir, toy_file, **changes), tmp_path / "out")


def test_prompts_without_answers_teach_nothing(base_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"w{number} w{number + 1}"} for number in range(30)])
    with pytest.raises(DataError, match="prompt"):
        run(settings(base_dir, prompts), tmp_path / "out")


def test_on_policy_still_needs_a_reward(base_dir: Path) -> None:
    with pytest.raises(ConfigError, match="Got no reward, expected a reward model"):
        check_settings(parse(Align, {"policy": str(base_dir), "optimise": {}}))
