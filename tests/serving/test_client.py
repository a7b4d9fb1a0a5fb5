"""The asynchronous client against our own server, and against servers that fail."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.errors import EvaluationError, MissingExtraError
from rewardproof.scoring import AnyModel, RemoteScorer
from rewardproof.serving.client import RewardClient

GROUPS = [
    Group((Message("user", f"w{number} w2"),), ((Message("assistant", "w3"),), (Message("assistant", "w4 w5"),))) for number in range(40)
]
RAW = [Group((Message("user", "w1 "),), ((Message("assistant", "w3"),),), raw=True)]


def ask(address: str, groups: list[Group] | None = None, **settings: Any) -> tuple[list[tuple[float, ...]], int]:
    async def one() -> tuple[list[tuple[float, ...]], int]:
        async with RewardClient(address, **settings) as client:
            return await client.score(groups or GROUPS[:1]), client.retries

    return asyncio.run(one())


def test_many_at_a_time(start_server: Callable[..., Any], models: dict[str, AnyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server("dense", "ensemble", token="sesame")

    async def all_of_them() -> list[list[tuple[float, ...]]]:
        async with RewardClient(f"{server.address}/score", token="sesame", model="ensemble", connections=8) as client:
            return await asyncio.gather(*(client.score([group]) for group in GROUPS))

    found = asyncio.run(all_of_them())
    assert [row[0] for row in found] == [pytest.approx(row, abs=2e-5) for row in models["ensemble"].score(GROUPS)]
    assert ask(f"{server.address}/score", RAW, token="sesame")[0][0] == pytest.approx(models["dense"].score(RAW)[0], abs=2e-5)
    with pytest.raises(EvaluationError, match=r"gave no scores for 1 groups: HTTP status 401, .*Bearer"):
        ask(f"{server.address}/score", token="other")
    with pytest.raises(EvaluationError, match=r"HTTP status 401, .*with this server's token"):
        RemoteScorer(f"{server.address}/score", token="other").score(GROUPS[:1])
    monkeypatch.setenv("REWARDPROOF_TOKEN", "sesame")
    assert ask(f"{server.address}/score", RAW)[0][0] == pytest.approx(models["dense"].score(RAW)[0], abs=2e-5)


def test_what_may_pass_is_tried_again(serve: Callable[..., str]) -> None:
    good = json.dumps({"rewards": [[1.0, 2.0]]})
    bad = ((500, ""), (429, ""), (200, "no JSON"), (200, '{"rewards": [[1]]}'))
    address = serve(*(lambda _, one=one: one for one in bad), lambda _: (200, good))
    assert ask(address, wait=0.01) == ([(1.0, 2.0)], 4)
    with pytest.raises(EvaluationError, match=r"gave no scores for 1 groups: .*Expected a finite score for every answer.*See to the"):
        ask("http://127.0.0.1:9/score", wait=0.01, attempts=2)


def test_a_full_server_says_when_to_come_back(start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardproof.serving.refused import Refused

    server = start_server("dense")
    worker = server.app.app.state.desk.worker
    submit, refusals = worker.submit, [Refused(429, "full", retry_after=1)] * 2
    monkeypatch.setattr(worker, "submit", lambda job: submit(job) if len(refusals) % 2 else (_ for _ in ()).throw(refusals.pop()))
    remote = RemoteScorer(f"{server.address}/score", wait=0.01)
    for asking in (lambda: ask(f"{server.address}/score", wait=0.01), lambda: remote.score(GROUPS[:1])):
        started = time.monotonic()
        asking()
        assert time.monotonic() - started >= 1
        refusals.pop()
        refusals += [Refused(429, "full", retry_after=1)] * 2


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(
        MissingExtraError, match=r"RewardClient needs httpx, which is not installed; install it with: pip install 'rewardproof"
    ):
        RewardClient("http://127.0.0.1:9/score")
    names = "fastapi uvicorn starlette prometheus_client httpx".split()
    code = f"import sys; sys.modules.update(dict.fromkeys({names})); import rewardproof.serving.{{}}"
    for adapter in ("client", "verl", "openrlhf", "trl"):
        assert subprocess.run([sys.executable, "-c", code.format(adapter)], check=False).returncode == 0, adapter
