"""Reward models, ensembles and programs inside TRL's own trainer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardproof.data import Group, Message, read_groups
from rewardproof.errors import ConfigError, DataError
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.monitor import HackingCallback, Limits
from rewardproof.policy.rewards import DISAGREEMENT
from rewardproof.scoring import CheckableGold, Combine, ModelEnsemble, RemoteScorer, Scale
from rewardproof.serving import trl as adapter
from rewardproof.serving.trl import TrlReward, reward


@pytest.fixture(scope="module")
def scorers(tiny: ModuleType) -> dict[str, Any]:
    models = {str(seed): RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()) for seed in range(2)}
    scales = {"0": Scale(0.1, 1.5), "1": Scale(-0.2, 0.7)}
    return {"model": models["0"], "ensemble": ModelEnsemble(models, scales, Combine(combination="worst_case"))}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", ["model", "ensemble"])
def test_scores_are_the_scorers_own_in_the_callers_order(scorers: dict[str, Any], name: str) -> None:
    prompts = ["w1 w2", "w1 w2", "w3", "w1 w2"]
    answers = ["w4", "w5 w6", "w7", "w8"]
    found = TrlReward(scorers[name])([user(prompt) for prompt in prompts], [says(answer) for answer in answers], trainer_state=None)
    alone = [
        scorers[name].score([Group((Message("user", prompt),), ((Message("assistant", answer),),))])[0][0]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert found == pytest.approx(alone, abs=1e-5)
    raw = TrlReward(scorers[name])(prompts, answers)
    joined = [
        scorers[name].score([Group((Message("user", prompt),), ((Message("assistant", answer),),), raw=True)])[0][0]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert raw == pytest.approx(joined, abs=1e-5)


def test_a_content_in_parts_is_its_texts(scorers: dict[str, Any]) -> None:
    reward = TrlReward(scorers["model"])
    parts = [{"type": "text", "text": "w4 "}, {"type": "text", "text": "w5"}]
    in_parts = reward([user("w1")], [[{"role": "assistant", "content": parts}]])
    assert in_parts == pytest.approx(reward([user("w1")], [says("w4 w5")]))
    with pytest.raises(DataError, match="Got a message with a part that is no text"):
        reward([user("w1")], [[{"role": "assistant", "content": [{"type": "image"}]}]])


def test_a_program_finds_its_columns() -> None:
    groups = read_groups("embedded:checkable/heldout", purpose="score").groups[:6]
    prompts = [[{"role": "user", "content": group.prompt_text}] for group in groups for _ in group.answers]
    completions = [says(text) for group in groups for text in group.answer_texts]
    columns = {name: [group.meta[name] for group in groups for _ in group.answers] for name in ("topic", "constraints")}
    found = TrlReward(CheckableGold())(prompts, completions, **columns)
    assert found == pytest.approx([score for group in groups for score in group.scores or ()], abs=1e-4)


def test_trls_log_gains_how_far_the_members_are_apart(scorers: dict[str, Any]) -> None:
    logged: dict[str, float] = {}
    for name in ("model", "ensemble"):
        TrlReward(scorers[name])([user("w1"), user("w2")], [says("w3"), says("w4 w5")], log_metric=logged.__setitem__)
    groups = [Group((Message("user", prompt),), ((Message("assistant", text),),)) for prompt, text in (("w1", "w3"), ("w2", "w4 w5"))]
    apart = [value for row in scorers["ensemble"].disagreement(groups) for value in row]
    assert logged == {DISAGREEMENT: pytest.approx(sum(apart) / 2, rel=1e-5)}


def test_the_command_lines_reward_is_named_by_the_environment(
    reward_dir: Path, scorers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter._configured.cache_clear()
    monkeypatch.delenv("REWARDPROOF_REWARD", raising=False)
    with pytest.raises(ConfigError, match="REWARDPROOF_REWARD is not set, expected the reward"):
        reward(["w1"], ["w2"])
    monkeypatch.setenv("REWARDPROOF_REWARD", str(reward_dir))
    assert reward(["w1"], ["w2"]) == pytest.approx(TrlReward(scorers["model"])(["w1"], ["w2"]), abs=1e-5)
    adapter._configured.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "ensemble", "program", "server"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_trls_trainer_takes_it(name: str, scorers: dict[str, Any], base_dir: Path, tmp_path: Path, server: Any) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    asked = {**scorers, "program": CheckableGold(), "server": RemoteScorer(f"{server.address}/score")}
    groups = read_groups("embedded:checkable/heldout", purpose="score").groups[:4]
    rows = [{"prompt": user(group.prompt_text), **{key: group.meta[key] for key in ("topic", "constraints")}} for group in groups]
    if name != "program":
        rows = [{"prompt": user(f"w{number} w{number + 1}")} for number in range(4)]
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, num_generations=2, max_completion_length=6, report_to="none",
        beta=0.1, use_cpu=True, logging_steps=1, save_strategy="no", learning_rate=1e-3, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base_dir),
        reward_funcs=TrlReward(asked[name], name="ours"),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base_dir),
        callbacks=[HackingCallback(Limits(window=3))],
    )
    trainer.train()
    logged = [entry["rewards/ours/mean"] for entry in trainer.state.log_history if "rewards/ours/mean" in entry]
    assert len(logged) == 8
    signs = {key for entry in trainer.state.log_history for key in entry if key.startswith("hacking/")}
    wanted = {"hacking/acceleration", "hacking/length", "hacking/reward"} | ({"hacking/disagreement"} if name == "ensemble" else set())
    assert signs == wanted, "the callback finds what it watches in TRL's own log"
    assert all(value == value for value in logged)
    apart = [entry[DISAGREEMENT] for entry in trainer.state.log_history if DISAGREEMENT in entry]
    assert len(apart) == (8 if name == "ensemble" else 0)
    assert all(value > 0 for value in apart)
