"""The constrained recipes of `align`, the verb `proxy_points` and both in a study: what they leave, resume, and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_recipe, parse
from rewardproof.data import Group, Message, read_groups
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import run_evaluations
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.stages import align_course
from rewardproof.stages.align import Align, run
from rewardproof.stages.study_plan import Study, unfold
from tests.stages.alike import assert_alike

OPTIMISE: dict[str, Any] = {
    "steps": 4, "prompts_per_step": 4, "answers": 3, "max_new_tokens": 6, "learning_rate": 3e-3, "layers": "top:2", "minibatches": 1,
}  # fmt: skip
FIT = {"degree": 1, "density": 0.0, "share": 0.05}
Made = Callable[..., Align]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number} w{number + 1} w{number * 2}"} for number in range(45)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def other_prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number} w{number} w{number + 3} w1"} for number in range(8)]
    return write_jsonl(tmp_path_factory.mktemp("others") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> dict[str, Path]:
    """Reward models that differ, by the names of their streams; one has the name of what an evaluation counts."""
    folder = tmp_path_factory.mktemp("rewards")
    return {
        name: RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()).save(folder / name / "model")
        for name, seed in (("taste", 3), ("tone", 4), ("tokens", 4), ("gold", 5))
    }


@pytest.fixture(scope="module")
def made(base_dir: Path, rewards: dict[str, Path], prompts: Path) -> Made:
    """Makes the settings of a run."""

    def make(recipe: str, **changes: Any) -> Align:
        chosen = load_recipe(recipe, verb="align")
        constrained = {**chosen.get("constrained", {}), **changes.pop("constrained", {})}
        if not constrained.get("search") and "proxy_points" not in changes and recipe != "ppo":
            constrained.setdefault("thresholds", {"taste": 0.02, "tone": -0.03})
        names = changes.pop("names", ("taste", "tone"))
        return parse(
            Align,
            {
                **chosen,
                "policy": str(base_dir),
                "reward": [str(rewards[name]) for name in names],
                "gold": str(rewards["gold"]),
                "prompts": [str(prompts)],
                "split": 0.3,
                "optimise": {**chosen["optimise"], **OPTIMISE, **changes.pop("optimise", {})},
                "constrained": constrained or None,
                "evaluate": {"every": 2, "prompts": 5, "answers": 3},
                "compute": {"precision": "fp32", "save_every": 1},
                **changes,
            },
        )

    return make


def logged(folder: Path, phase: str = "optimising") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records if record["phase"] == phase]


@pytest.mark.parametrize("recipe", ["mu_ppo", "xi_ppo", "all_ppo", "ppo_sat"])
def test_a_run_says_what_became_of_its_values(recipe: str, made: Made, tmp_path: Path) -> None:
    report = run(made(recipe), tmp_path / "out")
    records = logged(tmp_path / "out")
    told = report.results["constrained"]
    assert told["at_last"]["taste/threshold"] == 0.02
    assert told["at_last"]["tone/threshold"] == -0.03
    assert told["at_last"]["taste/value"] == records[-1]["constraint/taste/value"]
    assert told["mean_of_second_half"]["tone/value"] == pytest.approx(sum(one["constraint/tone/value"] for one in records[2:]) / 2)
    assert ("taste/multiplier" in told["at_last"]) == (recipe != "ppo_sat")
    if recipe != "ppo_sat":
        weights = [records[0][f"constraint/{name}/weight"] for name in ("taste", "tone")]
        assert weights == {"mu_ppo": [0.5, 0.5], "xi_ppo": [0.0, 0.0], "all_ppo": [0.5, 0.5]}[recipe]
        assert records[0]["constraint/objective_weight"] == {"mu_ppo": 1.0, "xi_ppo": 2.0, "all_ppo": 1.0}[recipe]
        for name in ("taste", "tone"):
            first = records[0]
            short = first[f"constraint/{name}/value"] < first[f"constraint/{name}/threshold"]
            assert (records[1][f"constraint/{name}/multiplier"] > 0) == (short == (recipe != "all_ppo"))
    page = (tmp_path / "out/report.html").read_text()
    assert "Under constraints" in page
    assert "Each reward&#39;s value and its threshold over the updates" in page
    assert (tmp_path / "out/figures/constraints.svg").is_file()


def test_values_in_the_scorers_own_units_are_the_same_values(made: Made, tmp_path: Path) -> None:
    for units in ("own", "spread"):
        run(made("xi_ppo", constrained={"units": units}, optimise={"steps": 1}), tmp_path / units)
    own, spread = (logged(tmp_path / units)[0] for units in ("own", "spread"))
    for name in ("taste", "tone"):
        assert own[f"constraint/{name}/value"] == pytest.approx(spread[f"constraint/{name}/value"], rel=1e-4, abs=1e-6)
        assert own[f"constraint/{name}/threshold"] == spread[f"constraint/{name}/threshold"]
    assert own["reward/taste"] == pytest.approx(own["constraint/taste/value"], abs=1e-6)


@pytest.mark.parametrize("recipe", ["xi_ppo", "nm_ppo"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(recipe: str, made: Made, tmp_path: Path, stopped: Callable[..., None]) -> None:
    search = {"search": {"validation": 0.4, "prompts": 4, "answers": 2, "cap": 0.4}} if recipe == "nm_ppo" else {}
    config = made(recipe, constrained=search, optimise={"steps": 5})
    whole = run(config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", after=3)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed.results["constrained"] == whole.results["constrained"]
    assert resumed.results["evaluations"] == whole.results["evaluations"]
    for phase in ("optimising", "searching"):
        assert logged(tmp_path / "parts", phase) == logged(tmp_path / "whole", phase)
    one, other = (
        torch.load(tmp_path / name / "checkpoints/checkpoint-5/loop.pt", weights_only=True)["source"] for name in ("whole", "parts")
    )
    assert one["multipliers"] == other["multipliers"]
    assert one["search"] == other["search"]
    assert list(one["multipliers"]) == ["taste", "tone"]


def as_groups(row: dict[str, Any]) -> list[Group]:
    return [Group((Message("user", row["text"]),), tuple((Message("assistant", text),) for text in row["answers"]))]


def test_thresholds_are_sought_on_prompts_kept_apart(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path, rewards: dict[str, Path]
) -> None:
    """Defect 4: the release scores thresholds on the test split."""
    seen: list[tuple[set[str], list[dict[str, Any]]]] = []
    evaluate = align_course.evaluate_policy

    def watching(*arguments: Any, **options: Any) -> Any:
        rows = evaluate(*arguments, **options)
        seen.append(({prompt.group.prompt_key for prompt in arguments[4]}, rows))
        return rows

    learnt: set[str] = set()
    sampled = OnPolicyLoop._sampled

    def noting(self: OnPolicyLoop) -> Any:
        found = sampled(self)
        learnt.update(group.prompt_key for group in found.groups)
        return found

    monkeypatch.setattr(align_course, "evaluate_policy", watching)
    monkeypatch.setattr(OnPolicyLoop, "_sampled", noting)
    search = {"validation": 0.4, "prompts": 6, "answers": 2, "cap": 0.25}
    config = made("nm_ppo", names=("taste", "tokens"), constrained={"search": search}, optimise={"steps": 8})
    report = run(config, tmp_path / "out")
    judged = seen[0][0]
    sought = [keys for keys, _ in seen if keys != judged]
    first, *later = [rows for keys, rows in seen if keys != judged]
    assert len(sought) == 1 + len(report.results["constrained"]["trials"])
    assert all(keys == sought[0] for keys in sought)
    assert not sought[0] & judged
    assert not sought[0] & learnt
    assert not judged & learnt
    assert len({group.prompt_key for group in read_groups([str(prompts)], purpose="answer").groups} & sought[0]) == 6
    trials = report.results["constrained"]["trials"]
    assert [trial["step"] for trial in trials] == sorted(trial["step"] for trial in trials)
    assert all(trial["updates"] <= 2 for trial in trials)
    gold = RewardModel.load(rewards["gold"])
    for trial, rows in zip(trials, later, strict=True):
        assert trial["score"] == pytest.approx(np.mean([gold.score(as_groups(row))[0] for row in rows]), abs=1e-5), "gold scores them"
    for name in ("taste", "tokens"):
        own = RewardModel.load(rewards[name])
        start = np.mean([own.score(as_groups(row))[0] for row in first])
        assert trials[0]["thresholds"][name] == pytest.approx(start, abs=1e-5), "it begins at what the initial policy scores"
    assert report.results["constrained"]["best"]["score"] == max(trial["score"] for trial in trials)
    assert report.results["rows"]["validation_prompts"] == 6
    page = (tmp_path / "out/report.html").read_text()
    assert "Thresholds sought" in page


@pytest.fixture(scope="module")
def looked(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Unconstrained runs: both rewards, and each alone."""
    folder = tmp_path_factory.mktemp("looked")
    for number, weights in enumerate(([1.0, 1.0], [1.0, 0.0], [0.0, 1.0])):
        run(made("ppo", weights=weights, optimise={"kl": {"coefficient": 0.0}}), folder / str(number))
    return [folder / str(number) for number in range(3)]


def test_proxy_points_are_found_and_become_thresholds(
    looked: list[Path], made: Made, other_prompts: Path, rewards: dict[str, Path], tmp_path: Path
) -> None:
    words = ["proxy_points", *map(str, looked), str(tmp_path / "points"), "degree=1", "density=0", "share=0.05"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'points'}: proxy points taste " in result.output
    points = json.loads((tmp_path / "points/proxy_points.json").read_text())
    report = json.loads((tmp_path / "points/report.json").read_text())
    assert report["proxy_points"] == points
    assert report["evaluations"] == sum(len(run_evaluations(folder)) for folder in looked) == 9
    assert "Gold over the rewards where evaluations lie" in (tmp_path / "points/report.html").read_text()
    held = {"proxy_points": {"runs": [str(folder) for folder in looked], **FIT}, "eval_prompts": [str(other_prompts)]}
    config = made("xi_ppo", optimise={"steps": 1}, **held)
    found = run(config, tmp_path / "out").results["constrained"]
    assert {name: found["at_last"][f"{name}/threshold"] for name in ("taste", "tone")} == points
    assert found["proxy_points"]["proxy_points"] == points
    assert "Proxy points" in (tmp_path / "out/report.html").read_text()
    with pytest.raises(ConfigError, match="proxy_points has 'tone', expected the names of the rewards: taste"):
        run(made("xi_ppo", names=("taste",), **held), tmp_path / "other")


def test_thresholds_found_on_the_prompts_of_the_evaluation_are_refused(looked: list[Path], made: Made, tmp_path: Path) -> None:
    config = made("xi_ppo", proxy_points={"runs": [str(folder) for folder in looked], **FIT})
    with pytest.raises(
        ConfigError, match=r"proxy_points.runs were judged on 5 of the 5 prompts that this run is judged on, expected others"
    ):
        run(config, tmp_path / "out")


def test_a_directory_that_is_no_run_has_no_proxy_points(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = CliRunner().invoke(app, ["proxy_points", str(tmp_path / "empty"), str(tmp_path / "points")])
    assert refused.exit_code == 2
    assert "has no policy run with evaluations, expected the directory that" in " ".join(refused.output.split())


def test_families_of_the_embedded_world_are_rewards(base_dir: Path, tmp_path: Path) -> None:
    families = "embedded:checkable/length,embedded:checkable/case_and_punctuation"
    words = [
        "align", "xi_ppo", str(tmp_path / "out"), f"policy={base_dir}", f"reward={families}", "gold=embedded:checkable", "split=0.05",
        "optimise.steps=2", "optimise.prompts_per_step=4", "optimise.max_new_tokens=6", "evaluate.prompts=6", "optimise.layers=top:1",
        "constrained.thresholds={length: 0.8, case_and_punctuation: 0.9}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (last,) = logged(tmp_path / "out")[1:]
    assert 0 <= last["constraint/length/value"] <= 1
    assert last["constraint/case_and_punctuation/threshold"] == 0.9
    wrong = CliRunner().invoke(app, [*words[:2], str(tmp_path / "two"), words[3], "reward=embedded:checkable/size", *words[5:]])
    assert wrong.exit_code == 2
    assert "expected the names of the rewards: size" in " ".join(wrong.output.split())


@pytest.mark.parametrize(
    ("recipe", "changes", "error", "message"),
    [
        ("xi_ppo", {"constrained": {"thresholds": {}}}, ConfigError, "Got none of constrained.thresholds, proxy_points.runs"),
        (
            "nm_ppo",
            {"constrained": {"thresholds": {"taste": 0.0, "tone": 0.0}}},
            ConfigError,
            "Got constrained.thresholds and constrained.se",
        ),
        ("xi_ppo", {"constrained": {"thresholds": {"taste": 0.0}}}, ConfigError, "constrained.thresholds has none for tone"),
        ("xi_ppo", {"names": ("taste", "taste")}, ConfigError, "of which several have one name, expected different ones"),
        ("nm_ppo", {"gold": ""}, ConfigError, "constrained.search without gold, expected who judges"),
        ("xi_ppo", {"feedback": {}}, ConfigError, "Got feedback with constrained, expected one of them"),
        ("ppo", {"proxy_points": {"runs": ["x"]}}, ConfigError, "proxy_points without constrained, expected both"),
        ("nm_ppo", {"constrained": {"search": {"validation": 0.001}}}, DataError, "Got 0 prompts to seek thresholds on"),
        ("xi_ppo", {"proxy_points": {"runs": ["nowhere"]}}, ConfigError, "nowhere has no policy run with evaluations"),
    ],
)
def test_what_cannot_be_run_is_refused(
    recipe: str, changes: dict[str, Any], error: type[Exception], message: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(made(recipe, **changes), tmp_path / "out")


@pytest.mark.slow
def test_two_processes_take_the_updates_of_one(made: Made, tmp_path: Path, by_processes: Callable[..., None]) -> None:
    config = made("xi_ppo", optimise={"minibatches": 2, "prompts_per_step": 8})
    by_processes(config, tmp_path)
    assert_alike(*(logged(tmp_path / name) for name in ("1", "2")), rel=5e-3, abs=1e-3)


STUDY: dict[str, Any] = {
    "name": "held",
    "common": {"model": "m", "data": ["d.jsonl"], "eval_data": ["e.jsonl"]},
    "settings": {"embedded": {}},
    "align": {"recipe": "ppo", "policy": "p", "gold": "embedded:checkable", "reward": ["$MODEL", "embedded:checkable/length"]},
    "methods": {
        "dense": {"recipe": "dense"},
        "xi": {"of": "dense", "points": ["look"], "align": {"recipe": "xi_ppo"}},
        "look": {"of": "dense", "align": {}, "runs": 2},
    },
    "seeds": [0, 1],
}


def test_a_study_finds_thresholds_in_policies_of_its_own() -> None:
    cells = unfold(parse(Study, STUDY))
    assert [cell.method for cell in cells[:3]] == ["dense", "look", "xi"]
    xi = cells[5]
    assert xi.align is not None
    assert xi.align.proxy_points is not None
    assert xi.align.proxy_points.runs == ("$OUT/runs/embedded/look/1/0", "$OUT/runs/embedded/look/1/1")
    assert xi.align.reward == ("$OUT/runs/embedded/dense/1/model", "embedded:checkable/length")
    assert xi.parents == ("dense", "look")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"of": "dense", "align": {"reward": ["embedded:checkable/length"]}}, r"expected \$MODEL among them"),
        ({"of": "dense", "points": ["dense"], "align": {"recipe": "xi_ppo"}}, "points has dense, expected methods with align"),
        ({"of": "dense", "points": ["lok"], "align": {"recipe": "xi_ppo"}}, r"needs 'lok' \(did you mean 'look'\?\)"),
        ({"of": "dense", "points": ["look"], "take": "moe"}, r"Got points=\['look'\] with take, expected it with align alone"),
    ],
)
def test_a_study_refuses_thresholds_from_elsewhere(method: dict[str, Any], message: str) -> None:
    changed = {**STUDY, "methods": {**STUDY["methods"], "xi": method}}
    with pytest.raises(ConfigError, match=message):
        unfold(parse(Study, changed))
