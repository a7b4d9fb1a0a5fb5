"""What trainers call by the name of a file: OpenRLHF's `reward_func` and verl's `compute_score`, loaded as they load them."""

from __future__ import annotations

import asyncio
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.errors import ConfigError, DataError
from rewardproof.scoring import AnyModel

PACKAGE = Path(__file__).parents[2] / "rewardproof" / "serving"
PROMPT, ANSWERS = "w1 w2 w3", ("w4 w5", "w6", "w7 w8 w9")
OPEN = "<bar> w1 w2 w3 <eos> <bar> "


@pytest.fixture
def expected(models: dict[str, AnyModel]) -> Any:
    group = Group((Message("user", PROMPT),), tuple((Message("assistant", answer),) for answer in ANSWERS))
    return pytest.approx(models["dense"].score([group])[0], abs=2e-5)


def loaded(name: str) -> Any:
    """A file as OpenRLHF and verl load it: by its path, under a name of theirs."""
    spec = importlib.util.spec_from_file_location("reward_func_of_the_trainer", PACKAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_openrlhf_file(reward_dir: Path, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_REWARD", str(reward_dir))
    reward_func = loaded("openrlhf").reward_func
    found = reward_func([f"{OPEN}{answer} <eos>" for answer in ANSWERS], [OPEN] * 3, ["", "", ""])
    assert set(found) == {"rewards", "scores", "extra_logs"}
    assert found["rewards"].tolist() == expected
    assert found["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-reward)) for reward in found["rewards"].tolist()])
    assert reward_func([], [], [])["rewards"].shape == (0,)


def test_openrlhf_file_wants_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded("openrlhf")
    monkeypatch.setenv("REWARDPROOF_REWARD", "http://127.0.0.1:8000/get_reward")
    with pytest.raises(ConfigError, match=r"is an address, expected a model: OpenRLHF asks a server itself.*--reward.remote_url"):
        module.reward_func(["w1"], ["w1"], [""])
    monkeypatch.delenv("REWARDPROOF_REWARD")
    with pytest.raises(ConfigError, match=r"REWARDPROOF_REWARD is not set, expected the reward that rewardproof\.serving\.openrlhf"):
        module.reward_func(["w1"], ["w1"], [""])


@pytest.mark.parametrize("where", ["server", "model"])
@pytest.mark.parametrize("chat", [True, False], ids=["messages", "text"])
def test_verl_compute_score(where: str, chat: bool, reward_dir: Path, server: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_REWARD", f"{server.address}/score" if where == "server" else str(reward_dir))
    verl = loaded("verl")
    prompt = [{"role": "user", "content": PROMPT}] if chat else PROMPT

    async def all_of_them() -> list[dict[str, float]]:
        more = {"reward_router_address": None, "reward_model_tokenizer": None}
        info = {"prompt": prompt, "index": 3}
        found = await asyncio.gather(*(verl.compute_score("openai/gsm8k", answer, "42", info, **more) for answer in ANSWERS))
        if where == "server":
            await verl._client(f"{server.address}/score", asyncio.get_running_loop()).close()
        return found

    assert [one["score"] for one in asyncio.run(all_of_them())] == expected


def test_verl_has_to_bring_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_REWARD", "anything")
    with pytest.raises(DataError, match=r"extra_info has no 'prompt' \(it has: question\), expected the prompt there: verl hands"):
        asyncio.run(loaded("verl").compute_score("a", "w1", "", {"question": "w2"}))
    monkeypatch.setenv("REWARDPROOF_PROMPT", "other")
    with pytest.raises(DataError, match=r"extra_info has no 'other' \(it has: nothing\)"):
        asyncio.run(loaded("verl").compute_score("a", "w1", "", None))
