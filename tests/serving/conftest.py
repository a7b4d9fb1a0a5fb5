"""Servers in threads of this process, of tiny models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import httpx
import pytest
import uvicorn

from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import AnyModel, Combine, ModelEnsemble, Scale
from rewardproof.serving.app import create_app
from rewardproof.serving.guards import Guards
from rewardproof.serving.served import Catalogue, Served
from rewardproof.serving.server import impatient, listen
from rewardproof.serving.settings import Limits


@dataclass(frozen=True)
class Running:
    """A server, and a client of it."""

    address: str
    app: Guards
    client: httpx.Client
    server: uvicorn.Server

    def post(self, path: str, body: object) -> httpx.Response:
        return self.client.post(path, json=body)


@pytest.fixture(scope="session")
def models(tiny: ModuleType) -> dict[str, AnyModel]:
    """A reward model, one whose tokenizer writes a BOS, and an ensemble."""
    plain = {str(seed): RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()) for seed in range(2)}
    scales = {"0": Scale(0.1, 1.5), "1": Scale(-0.2, 0.7)}
    return {"dense": plain["0"], "ensemble": ModelEnsemble(plain, scales, Combine(combination="worst_case"))}


@pytest.fixture(scope="session")
def start_server(models: dict[str, AnyModel]) -> Iterator[Callable[..., Running]]:
    """`start_server("dense", limits=…, token=…)`: a running server of some of the models."""
    started: list[tuple[Running, threading.Thread]] = []

    def start(*names: str, limits: Limits | None = None, token: str = "", known: dict[str, AnyModel] | None = None) -> Running:
        bounds = limits or Limits()
        catalogue = Catalogue([Served.of(name, (known or models)[name], bounds, spec=f"runs/{name}/model") for name in names])
        app = create_app(catalogue, bounds, token=token)
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, http=impatient(bounds.timeout), log_config=None, access_log=False, server_header=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        running = Running(address, app, httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False), server)
        started.append((running, thread))
        return running

    yield start
    for running, thread in started:
        running.client.close()
        running.server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Running]) -> Running:
    """A server of both models, `dense` first."""
    return start_server("dense", "ensemble")
