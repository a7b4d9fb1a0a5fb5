"""`align cooper` and `align metarm`: what they leave, that they go on where they were stopped, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_recipe, load_yaml, parse
from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError
from rewardproof.models.checkpoints import set_reading
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages.align import Align, check_settings, run
from rewardproof.stages.study import Study
from rewardproof.stages.study_plan import unfold
from tests.stages.alike import assert_alike

OPTIMISE: dict[str, Any] = {
    "steps": 4, "prompts_per_step": 4, "answers": 3, "max_new_tokens": 6, "learning_rate": 3e-3, "layers": "top:2",
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number} w{number + 1} w{number * 2}", "reference": f"w{number}"} for number in range(45)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [*rows, {"prompt": "w1 w1"}])


@pytest.fixture(scope="module")
def verifier_dir(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    model = tiny.classifier("llama", seed=3)
    set_reading(model, "reference")
    return RewardModel(model, tiny.word_tokenizer()).save(tmp_path_factory.mktemp("verifier") / "model")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number}", "answers": ["w1 w2", "w71 w2"], "reference": "w9"} for number in range(9)]
    return write_jsonl(tmp_path_factory.mktemp("labelled") / "labelled.jsonl", rows)


@pytest.fixture(scope="module")
def made(base_dir: Path, reward_dir: Path, verifier_dir: Path, labelled: Path, prompts: Path, toy_file: Path) -> Callable[..., Align]:
    """`made("cooper", …)`: the shipped recipe on tiny models, with changes."""
    learning = {
        "cooper": {
            "learning_rate": 1e-3,
            "assistant": {"by": "tests.faults.rules:broken"},
            "replay": {"data": [str(labelled)], "groups": 3},
        },
        "metarm": {"learning_rate": 1e-3, "rounds": 2, "steps": 2, "prompts": 2, "groups": 4, "data": [str(toy_file)]},
    }

    def make(recipe: str, **changes: Any) -> Align:
        chosen = load_recipe(recipe, verb="align")
        own = {recipe: {**chosen[recipe], **learning[recipe], **changes.pop(recipe, {})}}
        rule = {"rule": {"name": "tests.faults.rules:verdict"}} if recipe == "cooper" else {}
        return parse(
            Align,
            {
                **chosen, "policy": str(base_dir), "reward": [str(verifier_dir if recipe == "cooper" else reward_dir)],
                "gold": str(reward_dir), "prompts": [str(prompts)], "split": 0.3, **rule, **own,
                "optimise": {**chosen["optimise"], **OPTIMISE, **changes.pop("optimise", {})},
                "evaluate": {"every": 2, "prompts": 5, "answers": 3}, "compute": {"precision": "fp32", "save_every": 1}, **changes,
            },
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def whole(made: Callable[..., Align], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed run of each."""
    folder = tmp_path_factory.mktemp("whole")
    for recipe in ("cooper", "metarm"):
        run(made(recipe), folder / recipe)
    return {recipe: folder / recipe for recipe in ("cooper", "metarm")}


def logged(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records if record["phase"] == "optimising"]


def rows_of(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"evaluations/{step:06d}.jsonl").read_text().splitlines()]


def judged_by(folder: Path, rows: Sequence[Mapping[str, Any]], references: Mapping[str, str]) -> list[float]:
    model = RewardModel.load(folder)
    groups = [
        Group(
            (Message("user", row["text"]),),
            tuple((Message("assistant", text),) for text in row["answers"]),
            reference=references[row["text"]],
        )
        for row in rows
    ]
    return [value for row in model.score(groups) for value in row]


@pytest.fixture(scope="module")
def references(prompts: Path) -> dict[str, str]:
    return {row["prompt"]: row.get("reference", "") for row in map(json.loads, prompts.read_text().splitlines())}


@pytest.mark.parametrize("recipe", ["cooper", "metarm"])
def test_the_reward_model_that_has_learned_lies_beside_the_policy(
    recipe: str, whole: dict[str, Path], verifier_dir: Path, reward_dir: Path, references: dict[str, str]
) -> None:
    out = whole[recipe]
    given = verifier_dir if recipe == "cooper" else reward_dir
    first, last = rows_of(out, 0), rows_of(out, 4)
    proxy, followed = (next(name for name in last[0] if name.startswith(part)) for part in ("proxy/", "followed/"))

    def scores(rows: Sequence[Mapping[str, Any]], column: str) -> torch.Tensor:
        found = torch.tensor([value for row in rows for value in row[column]], dtype=torch.float64)
        return torch.logit(found) if recipe == "cooper" else found  # the verifier's score is a probability

    def same(left: torch.Tensor, right: list[float]) -> bool:
        return torch.allclose(left, torch.tensor(right, dtype=torch.float64), atol=1e-3)

    assert same(scores(last, followed), judged_by(out / "reward", last, references))
    assert same(scores(last, proxy), judged_by(given, last, references)), "one yardstick for the whole run"
    assert not same(scores(last, followed), judged_by(given, last, references)), "it has learned"
    assert same(scores(first, followed), judged_by(given, first, references))
    assert RewardModel.load(out / "reward").reads == ("reference" if recipe == "cooper" else "conversation")


def test_cooper_tells_what_it_learned_from(whole: dict[str, Path]) -> None:
    out, records = whole["cooper"], logged(whole["cooper"])
    report = json.loads((out / "report.json").read_text())
    told = report["cooper"]
    for name in ("pairs", "retries", "refusals", "without_positive", "given_up"):
        assert told[name] == sum(record[f"cooper/{name}"] for record in records)
    assert told["pairs"] > 0
    assert told["retries"] == told["pairs"] == told["refusals"], "the assistant fails at each first try"
    assert {"loss", "accuracy", "replay_loss", "break_place", "broken_length", "gradient_norm"} <= told["at_last"].keys()
    assert report["rows"]["train_sources"]["dropped"] == {"without_reference": 1}
    page = (out / "report.html").read_text()
    assert "What the reward model learned" in page
    assert all(text in page for text in ("refusals", "without positive", "break place"))


def test_metarm_tells_of_its_rounds(whole: dict[str, Path]) -> None:
    told = json.loads((whole["metarm"] / "report.json").read_text())["metarm"]
    assert told["refreshes"] == 2
    assert told["at_last"]["round"] == 2
    assert [record["metarm/refreshes"] for record in logged(whole["metarm"])] == [1, 0, 1, 0]
    assert "spread after" in (whole["metarm"] / "report.html").read_text()


@pytest.mark.parametrize("recipe", ["cooper", "metarm"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    recipe: str, made: Callable[..., Align], whole: dict[str, Path], tmp_path: Path, stopped: Callable[..., None]
) -> None:
    stopped(made(recipe), tmp_path / "parts", after=3)
    resumed = run(made(recipe), tmp_path / "parts", resume=True)
    assert resumed.results[recipe] == json.loads((whole[recipe] / "report.json").read_text())[recipe]
    assert logged(tmp_path / "parts") == logged(whole[recipe])
    for part in ("model", "reward"):
        assert (tmp_path / "parts" / part / "model.safetensors").read_bytes() == (whole[recipe] / part / "model.safetensors").read_bytes()


def test_a_frozen_verifier_is_a_switch(made: Callable[..., Align], whole: dict[str, Path], tmp_path: Path) -> None:
    report = run(made("cooper", cooper={"trains": False}), tmp_path / "frozen")
    assert "cooper" not in report.results
    assert not (tmp_path / "frozen/reward").exists()
    assert not any(name.startswith("followed/") for name in rows_of(tmp_path / "frozen", 4)[0])
    one, other = logged(tmp_path / "frozen"), logged(whole["cooper"])
    assert one[0]["reward"] == pytest.approx(other[0]["reward"], rel=1e-5), "both are judged by the verifier as it was given at first"
    assert one[-1]["reward"] != other[-1]["reward"]


def test_the_world_needs_nothing_but_the_commands(
    base_dir: Path, verifier_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    """A tiny model never gets a constraint right: every prompt is without a positive, and the verifier is what it was."""
    words = [
        "align", "cooper", str(tmp_path / "out"), f"policy={base_dir}", f"reward={verifier_dir}", "gold=embedded:checkable",
        "prompts=embedded:checkable/heldout", "split=0.2", "rule.reference=answer", "optimise.steps=1", "optimise.prompts_per_step=2",
        "optimise.answers=2", "optimise.max_new_tokens=3", "evaluate.prompts=3", "evaluate.answers=2",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert told["rows"]["train_sources"]["dropped"]["without_reference"] > 100
    assert told["cooper"]["without_positive"] == 2
    assert (tmp_path / "out/reward/model.safetensors").read_bytes() == (verifier_dir / "model.safetensors").read_bytes()


def test_metarm_runs_by_the_command_and_says_what_is_missing(
    base_dir: Path, reward_dir: Path, prompts: Path, toy_file: Path, tmp_path: Path
) -> None:
    words = [
        "align", "metarm", str(tmp_path / "out"), f"policy={base_dir}", f"reward={reward_dir}", f"prompts={prompts}", "split=0.3",
        "optimise.steps=2", "optimise.prompts_per_step=2", "optimise.answers=2", "optimise.max_new_tokens=3", "evaluate.prompts=3",
        "metarm.rounds=2", "metarm.steps=1", "metarm.prompts=2", "metarm.groups=2",
    ]  # fmt: skip
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "Got metarm without data" in " ".join(refused.output.split())
    result = CliRunner().invoke(app, [*words, f"metarm.data={toy_file}"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cooper", "metarm"])
def test_two_processes_take_the_updates_of_one(
    recipe: str, made: Callable[..., Align], tmp_path: Path, by_processes: Callable[..., None]
) -> None:
    config = made(recipe, optimise={"minibatches": 2, "prompts_per_step": 8, "steps": 2})
    by_processes(config, tmp_path)
    assert_alike(*(logged(tmp_path / name) for name in ("1", "2")), rel=2e-2, abs=2e-3)


# What is refused.


def test_two_ways_to_learn_are_refused(made: Callable[..., Align]) -> None:
    config = made("metarm", cooper={"learning_rate": 1e-3}, rule={"name": "numbers"})
    with pytest.raises(ConfigError, match="Got cooper and metarm, expected one of them"):
        check_settings(config)


def test_cooper_without_a_rule_is_refused(made: Callable[..., Align]) -> None:
    with pytest.raises(ConfigError, match="Got cooper without rule, expected one"):
        check_settings(made("cooper", rule=None))


def test_a_rule_of_ones_own_needs_an_assistant(made: Callable[..., Align]) -> None:
    with pytest.raises(ConfigError, match=r"cooper.assistant.by=program, expected an assistant that can break what this rule certifies"):
        check_settings(made("cooper", cooper={"assistant": {}}))
    check_settings(made("cooper", cooper={"assistant": {}, "trains": False}))


def test_a_reward_that_reads_no_reference_is_refused(made: Callable[..., Align], reward_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"as reward with `cooper`, expected a verifier, which reads the reference"):
        run(made("cooper", reward=[str(reward_dir)]), tmp_path / "out")


@pytest.mark.parametrize("recipe", ["cooper", "metarm"])
def test_a_program_cannot_learn(recipe: str, made: Callable[..., Align], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"embedded:checkable \(CheckableGold\) as reward with `{recipe}`, expected a single reward model"
    ):
        run(made(recipe, reward=["embedded:checkable"], gold=""), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "methods", "prompts"),
    [
        (
            "learning_rewards",
            {"rloo", "r2m", "r2m_untrained", "metarm", "metarm_plain", "rloo_tokens", "red_rloo", "red_ppo", "cooper", "rule"},
            24,
        ),
        ("gamed", {"rloo", "r2m", "r2m_slow", "metarm", "dpo", "rpo", "sft"}, 24),
        ("direct_alignment", {"rloo", "dpo_001", "ipo_001", "slic_001", "dpo_length_001", "rpo_001"}, 32),
        ("constrained", {"look_both", "ppo_sum", "mu", "xi", "all", "sat", "nm"}, 24),
    ],
)
def test_the_studies_of_policies_unfold_to_runs_that_are_judged_on_the_same_held_out_prompts(
    name: str, methods: set[str], prompts: int
) -> None:
    cells = unfold(parse(Study, load_yaml(Path(f"studies/{name}.yaml").read_text(), origin="study")))
    assert {cell.seed for cell in cells} == {0, 1}
    assert methods <= {cell.method for cell in cells}
    for cell in cells:
        if cell.align is not None and not cell.method.startswith("look"):
            check_settings(cell.align)
            assert cell.align.eval_prompts == ("embedded:checkable/heldout",), cell.method
            assert (cell.align.evaluate.prompts, cell.align.evaluate.answers) == (prompts, 4), cell.method
