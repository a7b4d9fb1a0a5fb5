"""The command: it says where it listens, and when it is told to stop it answers what it has taken."""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rewardproof.config import parse
from rewardproof.errors import ConfigError, MissingExtraError
from rewardproof.stages import serve as stage
from rewardproof.stages.serve import Serve, run, token_of

BODY = {"groups": [{"prompt": "w1 w2", "answers": ["w3", "w4 w5"]}]}


@contextmanager
def process(tmp_path: Path, *arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its address."""
    out, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "rewardproof", "serve", *map(str, arguments), "--port", "0"]
    with out.open("w") as stdout, log.open("w") as stderr:
        server = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1", **environment},
        )
        try:
            for _ in range(1200):
                if "serves" in (said := out.read_text()):
                    break
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield server, said.split()[0]
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing(reward_dir: Path, tmp_path: Path) -> None:
    with process(tmp_path, reward_dir) as (server, address):

        async def load() -> list[int]:
            statuses: list[int] = []
            async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as client:

                async def ask(number: int) -> None:
                    body = {"groups": [{"prompt": f"w{number % 7}", "answers": [f"w{number % 90} " * 40] * 2}]}
                    while True:
                        try:
                            found = await client.post("/score", json=body, headers={"X-Request-ID": f"r{number}"})
                        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                            return  # refused or closed before it was taken; the log has to know nothing of it
                        statuses.append(found.status_code)

                asking = [asyncio.create_task(ask(number)) for number in range(32)]
                while len(statuses) < 100:
                    await asyncio.sleep(0.01)
                server.send_signal(signal.SIGTERM)
                await asyncio.gather(*asking)
            return statuses

        statuses = asyncio.run(load())
        assert server.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    answered = [line for line in lines if line["event"] == "request"]
    assert set(statuses) <= {200, 503}
    assert len(answered) == len(statuses), "every request that was taken was answered, and its answer arrived"
    assert lines[-1] == {**lines[-1], "event": "stopped", "waiting": 0}


@pytest.mark.slow
def test_sigterm_does_not_wait_long_for_a_body(reward_dir: Path, tmp_path: Path) -> None:
    with process(tmp_path, reward_dir) as (server, address):
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(1)
            server.send_signal(signal.SIGTERM)
            slow.settimeout(30)
            assert b"408" in slow.recv(4096).split(b"\r\n")[0]
        assert server.wait(30) == 0


@pytest.mark.slow
def test_several_models_a_token_and_two_interrupts(reward_dir: Path, tmp_path: Path) -> None:
    arguments = (reward_dir, reward_dir, "names=one,two", "limits.texts=3")
    with process(tmp_path, *arguments, REWARDPROOF_TOKEN="sesame") as (server, address):
        assert (tmp_path / "out").read_text().strip() == f"{address} serves one, two"
        assert httpx.get(f"{address}/health", trust_env=False).json() == {"status": "ok", "models": ["one", "two"]}
        assert httpx.post(f"{address}/score", json=BODY, trust_env=False).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.post(f"{address}/score", json={"model": "two", **BODY}, headers=headers, trust_env=False).status_code == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    assert "sesame" not in (tmp_path / "log").read_text() + (tmp_path / "out").read_text()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, reward_dir: Path) -> None:
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda name: None if name in ("uvicorn", "fastapi") else object())
    with pytest.raises(
        MissingExtraError, match=r"serve needs fastapi, uvicorn, which are not installed; install with: pip install 'rewardp"
    ):
        run(parse(Serve, {"models": [str(reward_dir)]}))


def test_the_stage_needs_the_extra_only_to_run() -> None:
    code = "import sys; sys.modules.update(fastapi=None, uvicorn=None, prometheus_client=None, httpx=None); import rewardproof.stages.serve"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_address_that_is_taken(reward_dir: Path, start_server: Callable[..., Any]) -> None:
    port = int(start_server("dense").address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"Cannot listen at 127.0.0.1:{port} \(.+\), expected an address of this machine that is free"):
        run(parse(Serve, {"models": [str(reward_dir)], "port": port}))


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_TOKEN", "from the environment")
    (tmp_path / "token").write_text("from a file\n")
    (tmp_path / "empty").write_text("\n")
    assert (token_of(""), token_of(str(tmp_path / "token"))) == ("from the environment", "from a file")
    for name, message in (("empty", "is empty, expected a file that holds the token"), ("none", "is no file, expected a file")):
        with pytest.raises(ConfigError, match=message):
            token_of(str(tmp_path / name))


def test_no_pickle_is_loaded(reward_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle
    import shutil

    import torch

    from rewardproof.errors import CheckpointError

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (builtins.open, (str(tmp_path / "sprung"), "w"))

    model = tmp_path / "model"
    shutil.copytree(reward_dir, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*model.safetensors"):
        run(parse(Serve, {"models": [str(model)], "port": 0}))
    assert not (tmp_path / "sprung").exists()
