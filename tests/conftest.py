"""Quiet, offline, one thread, and a cache of its own for the session; the tiny models and toy preferences that several rooms test with."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_CACHE = tempfile.mkdtemp(prefix="rewardproof-cache-")
os.environ["REWARDPROOF_CACHE"] = _CACHE

import pytest  # noqa: E402
import torch  # noqa: E402

from rewardproof.data.encoding import EncodedGroup  # noqa: E402
from rewardproof.data.pairs import Pair  # noqa: E402
from rewardproof.training.batches import TrainingGroup, TrainingSet, keep_paired  # noqa: E402


def _by_path(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"rewardproof_tests_{name}", Path(__file__).parent / "models" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = _by_path("tiny")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tests/models/tiny.py`."""
    return TINY


@pytest.fixture(params=TINY.FAMILY_NAMES)
def any_family(request: pytest.FixtureRequest) -> str:
    return request.param


def _conversation(draw: random.Random, shared: list[int]) -> tuple[int, ...]:
    return (*shared, *(draw.randrange(4, 96) for _ in range(draw.randint(2, 9))))


def _group(draw: random.Random, n_answers: int, index: int) -> EncodedGroup:
    shared = [draw.randrange(4, 96) for _ in range(draw.randint(3, 12))]
    conversations = tuple(_conversation(draw, shared) for _ in range(n_answers))
    whole = EncodedGroup(conversations, 0, (len(shared),) * n_answers, index)
    return whole.select(range(n_answers))


@pytest.fixture(scope="session")
def random_groups() -> Callable[..., list[EncodedGroup]]:
    """Groups of random tokens: `random_groups(6, seed=0)`; sizes from one to four answers."""

    def make(count: int, *, seed: int = 0, sizes: tuple[int, ...] = (1, 2, 3, 4)) -> list[EncodedGroup]:
        draw = random.Random(seed)
        return [_group(draw, draw.choice(sizes), index) for index in range(count)]

    return make


@pytest.fixture(scope="session")
def random_set(random_groups: Callable[..., list[EncodedGroup]]) -> Callable[..., TrainingSet]:
    """Random groups with an order: pairs, and rankings of three answers with two or three pairs."""

    def make(count: int, *, seed: int = 0, sizes: tuple[int, ...] = (2, 2, 3)) -> TrainingSet:
        found: list[TrainingGroup] = []
        for number, group in enumerate(random_groups(count, seed=seed, sizes=sizes)):
            pairs = [Pair(0, 1, 0.5), Pair(1, 2, None), Pair(0, 2, 1.5)][: 1 if len(group.conversations) == 2 else 2 + number % 2]
            found.append(keep_paired(group, pairs))
        return TrainingSet(found)

    return make


def toy_row(draw: random.Random) -> dict[str, Any]:
    """A preference that one glance decides: good answers are of the words w0 to w9, bad ones of w10 to w19, and lengths say nothing."""

    def words(first: int, last: int, count: int) -> str:
        return " ".join(f"w{draw.randint(first, last)}" for _ in range(count))

    return {"prompt": words(40, 91, 5), "chosen": words(0, 9, draw.randint(3, 5)), "rejected": words(10, 19, draw.randint(3, 5))}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def toy_rows() -> Callable[..., list[dict[str, Any]]]:
    def make(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        return [toy_row(draw) for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, list[dict[str, Any]]], Path]:
    return write_rows


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., list[dict[str, Any]]]) -> Path:
    """160 separable preferences."""
    return write_rows(tmp_path_factory.mktemp("toy") / "toy.jsonl", toy_rows(160))


@pytest.fixture(scope="session")
def pool_file(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Callable[..., Path]) -> Path:
    """20 prompts with 9 answers each, scored by their data."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(count))

    rows = [
        {
            "prompt": f"w{number} {words(3)}",
            "answers": [words(draw.randint(2, 6)) for _ in range(9)],
            "scores": [draw.random() for _ in range(9)],
        }
        for number in range(20)
    ]
    return write_jsonl(tmp_path_factory.mktemp("pools") / "pools.jsonl", rows)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama language model on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    TINY.causal("llama").save_pretrained(folder)
    TINY.word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same whose head is its input embedding."""
    folder = tmp_path_factory.mktemp("tied")
    TINY.causal("llama", tie_word_embeddings=True).save_pretrained(folder)
    TINY.word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense Llama reward model on disk, with random weights."""
    from rewardproof.models.saving import save_reward_model

    folder = tmp_path_factory.mktemp("reward") / "model"
    return save_reward_model(TINY.classifier("llama"), TINY.word_tokenizer(), folder)


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`launch(["script.py"], processes=2)`: what was printed, and how it ended; one process is started without a launcher."""

    def start(command: list[str], *, processes: int, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1"]
        launcher += ["--master_port", str(port)]
        given = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[1]), **(environment or {})}
        return subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), *command],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **given},
        )

    return start


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(first, second, …)`: an address that answers each request by the next function, the last one for ever."""
    servers = []

    def start(*answers: Callable[[dict[str, Any]], tuple[int, str]]) -> str:
        waiting = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text = (waiting.pop(0) if len(waiting) > 1 else waiting[0])(body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/score"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
