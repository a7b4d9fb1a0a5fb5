"""`rewardproof align r2m` and the same recipe in `stress`: what they leave, that they go on where they were stopped, what they refuse."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import load_recipe, parse
from rewardproof.data.encoding import encode_group
from rewardproof.errors import CheckpointError, ConfigError
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.feedback import PolicyFeedback
from rewardproof.policy.rewards import Moment
from rewardproof.scoring import PolicyFeedbackReward
from rewardproof.stages.align import Align, run
from rewardproof.stages.stress import Stress
from rewardproof.stages.stress import run as run_stress
from tests.stages.alike import assert_alike

OPTIMISE: dict[str, Any] = {
    "steps": 4, "prompts_per_step": 4, "answers": 4, "max_new_tokens": 6, "learning_rate": 3e-3, "layers": "top:2",
}  # fmt: skip
FEEDBACK: dict[str, Any] = {"attention": {"width": 16}, "learning": {"learning_rate": 1e-2, "groups": 2}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    rows = [{"prompt": f"w{number} w{number + 1} w{number * 2}"} for number in range(45)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def gold_dir(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    """Another reward model than the one that is optimised."""
    return RewardModel(tiny.classifier("llama", seed=5), tiny.word_tokenizer()).save(tmp_path_factory.mktemp("gold") / "model")


def settings(base: Path, reward: Path, gold: Path | str, prompts: Path, /, **changes: Any) -> Align:
    recipe = load_recipe("r2m", verb="align")
    feedback = changes.pop("feedback", {})
    learning = {**recipe["feedback"]["learning"], **FEEDBACK["learning"], **feedback.pop("learning", {})}
    return parse(
        Align,
        {
            **recipe,
            "policy": str(base),
            "reward": [str(reward)],
            "gold": str(gold),
            "prompts": [str(prompts)],
            "split": 0.3,
            "optimise": {**recipe["optimise"], **OPTIMISE, **changes.pop("optimise", {})},
            "feedback": {**recipe["feedback"], "attention": FEEDBACK["attention"], "learning": learning, **feedback},
            "evaluate": {**recipe["evaluate"], "every": 2, "prompts": 5, "answers": 3},
            "compute": {"precision": "fp32", "save_every": 1},
            **changes,
        },
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records if record["phase"] == "optimising"]


def test_defaults_and_recipe_are_the_published_values() -> None:
    recipe = load_recipe("r2m", verb="align")
    assert parse(PolicyFeedback, recipe["feedback"]) == PolicyFeedback()
    one = PolicyFeedback()
    assert (one.attention.width, one.attention.heads, one.learning.alpha, one.learning.learning_rate) == (2048, 1, 0.3, 1e-6)
    assert one.floor in (0.6, 0.7)
    assert recipe["optimise"]["epochs"] == 2


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_a_run_says_how_its_reward_followed_the_policy(
    estimator: str, base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run(settings(base_dir, reward_dir, gold_dir, prompts, optimise={"estimator": estimator}), out)
    told = report.results["feedback"]
    (name,) = told["parameters"]
    assert told["parameters"][name] == 2 * 16 * (32 + 32)
    assert told["at_last"]["weight"] == 0.6
    assert told["answers_scored_without_a_policy"] == 0
    assert told["groups_without_a_pair"] == sum(record["feedback/groups_without_a_pair"] for record in logged(out))
    assert [record["feedback/weight"] for record in logged(out)] == pytest.approx([1, 0.853553, 0.6, 0.6])
    assert [one["step"] for one in told["hidden_states"]] == [0, 2, 4]
    first, last = ([json.loads(line) for line in (out / f"evaluations/{step:06d}.jsonl").read_text().splitlines()] for step in (0, 4))
    vanilla = RewardModel.load(reward_dir)
    for rows, equal in ((first, True), (last, False)):
        assert len(rows[0]["states"]) == 3
        assert len(rows[0]["states"][0]) == 32
        # The proxy is the reward model as it was given; what the policy learns from is that at first, and no more at last.
        own = [value for row in rows for value in vanilla.score(_groups(row))[0]]
        assert [value for row in rows for value in row[f"proxy/{name}"]] == pytest.approx(own, abs=1e-4)
        assert ([value for row in rows for value in row[f"followed/{name}"]] == pytest.approx(own, abs=1e-4)) == equal
    page = (out / "report.html").read_text()
    assert "Hidden states" in page
    assert "Similarity of hidden states over the updates." in page
    assert (out / "figures/hidden_states.svg").is_file()


def _groups(row: dict[str, Any]) -> Any:
    from rewardproof.data.group import Group, Message

    answers = tuple((Message("assistant", text),) for text in row["answers"])
    return [Group(prompt=(Message("user", row["text"]),), answers=answers)]


def test_the_reward_that_has_learned_is_left_and_reads_the_policy_again(
    base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    """What the last evaluation shows as `followed` is found again from the files alone: the policy's states by the stock library."""
    out = tmp_path / "out"
    run(settings(base_dir, reward_dir, gold_dir, prompts, compute={"precision": "fp32", "save_dtype": "fp32"}), out)
    rows = [json.loads(line) for line in (out / "evaluations/000004.jsonl").read_text().splitlines()]
    reward, policy = PolicyFeedbackReward.load(out / "reward"), AutoModelForCausalLM.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    (followed,) = (name for name in rows[0] if name.startswith("followed/"))
    groups, states, expected = [], [], []
    for row in rows:
        (group,) = _groups(row)
        encoded = encode_group(group, tokenizer)
        # An answer that was cut off has no end, and one with a special token within does not read as it was written.
        written = [tokens[: len(tokens) - (not end)] for tokens, end in zip(encoded.conversations, row["finished"], strict=True)]
        sizes = [len(tokens) - start for tokens, start in zip(written, encoded.answer_starts, strict=True)]
        kept = [place for place in range(3) if sizes[place] == row["tokens"][place]]
        if kept:
            groups.append(replace(group, answers=tuple(group.answers[place] for place in kept)))
            expected.append([row[followed][place] for place in kept])
        for place in kept:
            with torch.no_grad():
                states.append(policy(input_ids=torch.tensor([written[place]]), output_hidden_states=True).hidden_states[-1][0])
    assert len(states) >= 8
    found = reward.score(groups, Moment(step=4, steps=4, policy_states=lambda: states))
    for row, wanted in zip(found, expected, strict=True):
        assert list(row) == pytest.approx(wanted, abs=1e-4)
    own = RewardModel.load(out / "reward").score(groups)
    assert reward.score(groups) == own
    assert list(own[0]) != pytest.approx(expected[0], abs=1e-2), "without the policy it is another reward"
    (out / "reward/policy_feedback.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"policy_feedback.safetensors cannot be read .*expected the attention by which"):
        PolicyFeedbackReward.load(out / "reward")


def test_without_gold_nobody_is_called_hacked(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    report = run(settings(base_dir, reward_dir, "", prompts, optimise={"steps": 1}), tmp_path / "out")
    assert report.results["feedback"]["hidden_states"] == []
    assert "so none can be called hacked" in (tmp_path / "out/report.html").read_text()


@pytest.fixture(scope="module")
def published(
    base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[..., Align]]:
    """Three updates as the recipe has them, and a maker of the same run with changes."""
    changed = functools.partial(settings, base_dir, reward_dir, gold_dir, prompts, optimise={"steps": 3})
    folder = tmp_path_factory.mktemp("published") / "out"
    run(changed(), folder)
    return folder, changed


@pytest.mark.parametrize(
    ("feedback", "differs"),
    [
        ({"learning": {"trains": "none"}}, True),
        ({"learning": {"trains": "head"}, "floor": 1.0}, True),
        ({"source": "noise"}, True),
        ({}, False),
    ],
    ids=["not trained", "head alone", "noise", "the same again"],
)
def test_every_ablation_is_a_run_of_its_own(
    feedback: dict[str, Any], differs: bool, published: tuple[Path, Callable[..., Align]], tmp_path: Path
) -> None:
    folder, changed = published
    run(changed(feedback=feedback), tmp_path / "other")
    one, other = logged(folder), logged(tmp_path / "other")
    assert one[0]["reward"] == other[0]["reward"], "the first step's reward is the vanilla one in all of them"
    assert (one[-1] != other[-1]) == differs


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    config = settings(base_dir, reward_dir, gold_dir, prompts)
    whole = run(config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", after=3)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed.headline == whole.headline
    assert resumed.results["evaluations"] == whole.results["evaluations"]
    assert resumed.results["feedback"] == whole.results["feedback"]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    kept = [
        torch.load(next((tmp_path / name / "checkpoints").glob("checkpoint-4")) / "loop.pt", weights_only=True)["source"]
        for name in ("whole", "parts")
    ]
    (one,), (other,) = (list(state.values()) for state in kept)
    assert all(torch.equal(one["parts"][name], other["parts"][name]) for name in one["parts"])


@pytest.mark.slow
def test_two_processes_take_the_updates_of_one(
    base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path: Path, by_processes: Callable[..., None]
) -> None:
    config = settings(base_dir, reward_dir, gold_dir, prompts, optimise={"minibatches": 2, "prompts_per_step": 8})
    by_processes(config, tmp_path)
    assert_alike(*(logged(tmp_path / name) for name in ("1", "2")), rel=5e-3, abs=1e-3)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("1", "2"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-3, rtol=2e-2)


def test_the_command_runs_the_recipe(base_dir: Path, reward_dir: Path, prompts: Path, tmp_path: Path) -> None:
    words = [
        "align", "r2m", str(tmp_path / "out"), f"policy={base_dir}", f"reward={reward_dir}", f"prompts={prompts}", "split=0.3",
        "optimise.steps=1", "optimise.prompts_per_step=2", "optimise.answers=3", "optimise.max_new_tokens=3", "evaluate.prompts=3",
        "feedback.attention.width=8", "feedback.learning.groups=0", "feedback.floor=0.7",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'}: after 1 updates, " in result.output
    refused = CliRunner().invoke(app, [*words[:2], str(tmp_path / "two"), *words[3:], "optimise.answers=2"])
    assert refused.exit_code == 2
    assert "the entropy is a constant and has no gradient" in " ".join(refused.output.split())


def test_stress_runs_it_beside_the_others(base_dir: Path, reward_dir: Path, gold_dir: Path, prompts: Path, tmp_path: Path) -> None:
    config = {
        "models": [str(reward_dir)], "gold": str(gold_dir), "policy": str(base_dir), "policy_prompts": [str(prompts)],
        "methods": ["rloo", "r2m"], "precision": "fp32", "optimise": {**OPTIMISE, "steps": 2}, "evaluate": {"prompts": 5, "answers": 3},
    }  # fmt: skip
    found = run_stress(parse(Stress, config), tmp_path / "stress").results["policies"]
    assert set(found) == {"rloo", "r2m"}
    assert list(found["r2m"]) == list(found["rloo"])
    page = (tmp_path / "stress/report.html").read_text()
    assert "r2m" in page


def test_a_reward_that_has_no_state_is_refused(base_dir: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"embedded:checkable \(CheckableGold\) as reward with `feedback`, expected a single reward model"
    ):
        run(settings(base_dir, Path("embedded:checkable"), "", prompts), tmp_path / "out")
