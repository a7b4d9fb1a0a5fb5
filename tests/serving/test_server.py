"""Many clients, rude clients, full lines, limits, tokens, numbers and logs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from rewardproof.data import Group, Message
from rewardproof.errors import ConfigError
from rewardproof.scoring import AnyModel
from rewardproof.serving.app import create_app
from rewardproof.serving.refused import Refused
from rewardproof.serving.served import Catalogue, Served
from rewardproof.serving.server import Server, impatient, listen
from rewardproof.serving.settings import Limits
from rewardproof.serving.telemetry import JsonLines, Metrics
from rewardproof.serving.worker import Job, Worker

BODY = {"groups": [{"prompt": "w1 w2", "answers": ["w3", "w4 w5"]}]}


class Slow:
    """A model that scores when it is told to."""

    def __init__(self, model: Any) -> None:
        self.model, self.go, self.texts = model, threading.Event(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def score_encoded(self, groups: Any, *, origins: Any = ()) -> Any:
        assert self.go.wait(30)
        self.texts += sum(len(group.conversations) for group in groups)
        return self.model.score_encoded(groups, origins=origins)


@pytest.fixture
def slow(models: dict[str, AnyModel]) -> Slow:
    return Slow(models["dense"])


def number(server: Any, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    return sum(one.value for family in families for one in family.samples if one.name == name and labels.items() <= one.labels.items())


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("what was waited for did not happen")


@contextmanager
def asking(server: Any, bodies: list[Any]) -> Iterator[list[httpx.Response]]:
    """While the context is open, threads wait for an answer to each body."""
    found: list[Any] = [None] * len(bodies)

    def ask(place: int) -> None:
        found[place] = server.post("/score", bodies[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join(60)


def test_many_clients_get_what_one_would_get_alone(start_server: Callable[..., Any], models: dict[str, AnyModel]) -> None:
    server = start_server("dense", "ensemble")
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(count))

    prompts = [words(12) for _ in range(5)]
    asked = [
        (draw.choice(["dense", "ensemble"]), draw.choice(prompts), [words(draw.randint(1, 9)) for _ in range(draw.randint(1, 4))])
        for _ in range(160)
    ]

    async def all_of_them() -> list[list[float]]:
        async with httpx.AsyncClient(
            base_url=server.address, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=32)
        ) as client:

            async def one(model: str, prompt: str, answers: list[str]) -> list[float]:
                found = await client.post("/score", json={"model": model, "groups": [{"prompt": prompt, "answers": answers}]})
                assert found.status_code == 200, found.text
                return found.json()["rewards"][0]

            return await asyncio.gather(*(one(*body) for body in asked))

    found = asyncio.run(all_of_them())
    for (name, prompt, answers), rewards in zip(asked, found, strict=True):
        group = Group((Message("user", prompt),), tuple((Message("assistant", answer),) for answer in answers))
        assert rewards == pytest.approx(models[name].score([group])[0], abs=2e-5)
    assert number(server, "rewardproof_batch_requests_count") < 160, "some were scored together"
    assert number(server, "rewardproof_texts_total") == sum(len(answers) for _, _, answers in asked)


def test_a_full_line_says_when_to_come_back(start_server: Callable[..., Any], slow: Slow) -> None:
    server = start_server("slow", limits=Limits(waiting=2, batch_tokens=1), known={"slow": slow})
    with asking(server, [BODY]) as first:
        wait_for(lambda: server.app.app.state.desk.worker.waiting == 0 and not server.app.app.state.desk.worker._line)
        time.sleep(0.2)
        with asking(server, [BODY]) as second:
            wait_for(lambda: server.app.app.state.desk.worker.waiting == 2)
            refused = server.post("/score", BODY)
            slow.go.set()
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert "2 texts wait, expected room for 2" in refused.json()["error"]["message"]
    assert [found.status_code for found in (*first, *second)] == [200, 200], "those in line lose nothing"
    assert server.post("/score", BODY).status_code == 200


def ask_and_leave(server: Any) -> None:
    """A client whose request stands in line when it hangs up."""
    data = json.dumps(BODY).encode()
    with socket.create_connection(server.address.removeprefix("http://").split(":")) as rude:
        head = f"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        rude.sendall(head.encode() + data)
        wait_for(lambda: server.app.app.state.desk.worker.waiting == 2)


def test_a_client_that_leaves_is_passed_over(start_server: Callable[..., Any], slow: Slow) -> None:
    server = start_server("slow", limits=Limits(batch_tokens=1), known={"slow": slow})
    with asking(server, [BODY]) as first:
        time.sleep(0.3)
        ask_and_leave(server)
        with asking(server, [BODY]) as last:
            wait_for(lambda: server.app.app.state.desk.worker.waiting == 4)
            time.sleep(0.3)
            slow.go.set()
    assert first[0].json()["rewards"] == last[0].json()["rewards"]
    assert number(server, "rewardproof_abandoned_total") == 1
    assert slow.texts == 4, "the one who left was not scored"
    assert number(server, "rewardproof_requests_total", status="499") == 1


def test_an_answer_that_takes_too_long(start_server: Callable[..., Any], slow: Slow) -> None:
    server = start_server("slow", limits=Limits(timeout=0.3), known={"slow": slow})
    found = server.post("/score", BODY)
    slow.go.set()
    assert (found.status_code, found.headers["Retry-After"]) == (503, "10")
    assert "no rewards within 0.3 s" in found.json()["error"]["message"]


def test_places_of_clients_that_left_go_to_those_who_come(start_server: Callable[..., Any], slow: Slow) -> None:
    server = start_server("slow", limits=Limits(waiting=2, batch_tokens=1), known={"slow": slow})
    worker = server.app.app.state.desk.worker
    with asking(server, [BODY]) as first:
        time.sleep(0.3)
        ask_and_leave(server)
        wait_for(lambda: worker._line[0].future.cancelled())
        with asking(server, [BODY]) as last:
            wait_for(lambda: not worker._line[0].future.cancelled())
            slow.go.set()
    assert [found.status_code for found in (*first, *last)] == [200, 200]
    assert number(server, "rewardproof_abandoned_total") == 1


def test_a_head_that_does_not_arrive(start_server: Callable[..., Any]) -> None:
    server = start_server("dense", limits=Limits(timeout=0.5))
    place = server.address.removeprefix("http://").split(":")
    with socket.create_connection(place) as silent, socket.create_connection(place) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        slow.settimeout(10)
        answered = b""
        while not answered.endswith(b"}"):
            answered += slow.recv(4096)
        slow.sendall(b"GET /hea")
        silent.settimeout(10)
        assert (silent.recv(100), slow.recv(100)) == (b"", b""), "both were hung up on"
    assert server.client.get("/health").status_code == 200


def test_an_empty_answer_has_a_reward(server: Any, models: dict[str, Any]) -> None:
    group = Group((Message("user", "w1"),), ((Message("assistant", ""),), (Message("assistant", "w2"),)))
    found = server.post("/score", {"groups": [{"prompt": "w1", "answers": ["", "w2"]}]}).json()["rewards"][0]
    assert found == pytest.approx(models["dense"].score([group])[0], abs=2e-5)
    assert server.post("/reward", {"prompt": [{"role": "user", "content": "w1"}], "response": ""}).json() == pytest.approx(
        found[0], abs=2e-5
    )


def test_prompts_that_texts_share_count_once_against_the_limit(start_server: Callable[..., Any]) -> None:
    server = start_server("dense", limits=Limits(tokens=100))
    assert server.post("/get_reward", {"query": ["w1 " * 60 + f"w{number}" for number in range(4)]}).status_code == 200
    assert server.post("/get_reward", {"query": [f"w{number} " * 60 for number in range(4)]}).status_code == 413


def test_a_body_that_does_not_arrive(start_server: Callable[..., Any]) -> None:
    server = start_server("dense", limits=Limits(timeout=0.3))
    with socket.create_connection(server.address.removeprefix("http://").split(":")) as slow:
        slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(10)
        assert b"408" in slow.recv(4096).split(b"\r\n")[0]
    assert server.client.get("/health").status_code == 200


def test_one_request_does_not_fail_by_anothers_fault(start_server: Callable[..., Any], slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server("slow", limits=Limits(linger_ms=300), known={"slow": slow})
    slow.go.set()
    good = slow.model.score_encoded

    def breaks(groups: Any, *, origins: Any = ()) -> Any:
        if any(80 in tokens for group in groups for tokens in group.conversations):  # the word w76
            raise RuntimeError("a secret of the machine")
        return good(groups, origins=origins)

    monkeypatch.setattr(slow.model, "score_encoded", breaks)
    bad = {"groups": [{"prompt": "w1 w2", "answers": ["w76"]}]}
    with asking(server, [BODY, bad, BODY]) as found:
        pass
    assert [one.status_code for one in found] == [200, 500, 200]
    assert "secret" not in found[1].text
    assert "its log says which" in found[1].json()["error"]["message"]


@pytest.mark.parametrize(
    ("limits", "path", "body", "message"),
    [
        ({"body_mb": 0.001}, "/score", {"groups": [{"prompt": "w1 " * 500, "answers": ["w2"]}]}, "more than 1000 bytes"),
        ({"texts": 2}, "/score", {"groups": [{"prompt": "w1", "answers": ["w2"] * 3}]}, "Got 3 texts, expected at most 2"),
        ({"max_length": 8}, "/score", {"groups": [{"prompt": "w1 " * 9, "answers": ["w2"]}]}, "text of 14 tokens, expected at most 8"),
        ({"tokens": 19}, "/get_reward", {"query": ["w1 " * 9, "w2 " * 9]}, "Got 20 tokens, expected at most 19 in a request"),
        ({}, "/classify", {"input": [5] * 600}, "text of 600 tokens, expected at most 512"),
    ],
    ids=["bytes", "texts", "length", "tokens", "positions"],
)
def test_requests_beyond_a_limit(start_server: Callable[..., Any], limits: dict[str, Any], path: str, body: Any, message: str) -> None:
    found = start_server("dense", limits=Limits(**limits)).post(path, body)
    assert found.status_code == 413
    assert message in found.json()["error"]["message"]


def test_the_token_is_asked_for_and_never_told(start_server: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    server = start_server("dense", token="sesame")
    with caplog.at_level(logging.INFO, logger="rewardproof.serving"), httpx.Client(base_url=server.address, trust_env=False) as stranger:
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}, {"Authorization": "Basic sesame"}):
            for method, path in (("POST", "/score"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nowhere")):
                found = stranger.request(method, path, headers=headers, json=BODY if method == "POST" else None)
                assert (found.status_code, found.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert stranger.get("/health").status_code == 200
        assert stranger.post("/score", json=BODY, headers={"Authorization": "bearer sesame"}).status_code == 200
        told = stranger.get("/metrics", headers={"Authorization": "Bearer sesame"}).text
    assert "sesam" not in caplog.text + told + repr([record.__dict__ for record in caplog.records])


def test_every_answer_has_an_id_and_forbids_what_the_page_does_not_need(server: Any) -> None:
    given = server.client.post("/score", json=BODY, headers={"X-Request-ID": "step-7.a"})
    assert given.headers["X-Request-ID"] == "step-7.a"
    wicked = server.client.post("/score", json={}, headers={"X-Request-ID": 'a b\t"<script>' + "x" * 99})
    assert wicked.headers["X-Request-ID"] == wicked.json()["error"]["request"]
    assert wicked.json()["error"]["request"].isalnum()
    for answer in (given, wicked, server.client.get("/nowhere"), server.client.get("/health")):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_line_a_request_without_its_texts(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rewardproof.serving"):
        server.client.post("/score", json=BODY, headers={"X-Request-ID": "mine"})
        server.client.get("/w3/../../etc/passwd")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [(line["event"], line["path"], line["status"]) for line in lines] == [("request", "/score", 200), ("request", "other", 404)]
    assert lines[0]["id"] == "mine"
    assert "w3" not in caplog.text + json.dumps(lines)


def test_numbers_are_prometheus_s(server: Any) -> None:
    before = number(server, "rewardproof_requests_total", path="/score", status="200")
    server.post("/score", BODY)
    assert number(server, "rewardproof_requests_total", path="/score", status="200") == before + 1
    assert number(server, "rewardproof_waiting_texts") == 0
    assert number(server, "rewardproof_scoring_seconds_total") > 0


def test_a_server_that_stops_takes_nothing_more(models: dict[str, AnyModel]) -> None:
    limits = Limits()
    served = Served.of("dense", models["dense"], limits)
    worker = Worker(limits, Metrics())
    worker.start()
    group = Group((Message("user", "w1"),), ((Message("assistant", "w2"),),))
    taken = [worker.submit(Job(served, 1, lambda: served.encode([group]))) for _ in range(50)]
    worker.stop()
    assert all(len(future.result(timeout=0)) == 1 for future in taken), "what was in line was finished"
    with pytest.raises(Refused, match="The server stops and takes no more requests"):
        worker.submit(Job(served, 1))


def test_an_error_is_a_line_of_json_too() -> None:
    try:
        raise RuntimeError("ours")
    except RuntimeError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "fault", (), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["level"]) == ("fault", "error")
    assert line["traceback"].splitlines()[-1] == "RuntimeError: ours"


def test_two_models_of_one_name(models: dict[str, AnyModel]) -> None:
    one = Served.of("dense", models["dense"], Limits())
    with pytest.raises(ConfigError, match="Got models named dense, dense, expected at least one, each with its name"):
        Catalogue([one, one])
    with pytest.raises(ConfigError, match="Got 2 names for 1 models, expected one each"):
        Catalogue.load(["runs/a"], Limits(), names=["a", "b"])


@pytest.mark.parametrize("steps", range(6))
def test_a_connection_that_comes_as_the_server_stops_is_not_forgotten(models: dict[str, AnyModel], steps: int) -> None:
    bounds = Limits()
    app = create_app(Catalogue([Served.of("dense", models["dense"], bounds, spec="runs/dense/model")]), bounds)
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, http=impatient(bounds.timeout), log_config=None, access_log=False, timeout_graceful_shutdown=3)

    async def stopped() -> float:
        config.load()
        server = Server(config, lambda: None, app)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listening])
        with socket.create_connection(listening.getsockname()) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            for _ in range(steps):  # from not accepted at all to answered, a turn of the loop each
                await asyncio.sleep(0)
            started = time.monotonic()
            await server.shutdown([listening])
            took = time.monotonic() - started
            client.settimeout(1)
            try:
                while client.recv(4096):
                    pass
            except ConnectionResetError:
                pass  # closed before it was taken
            return took

    gc.disable()  # what is forgotten would be closed by chance
    try:
        assert asyncio.run(stopped()) < 2
    finally:
        gc.enable()
        listening.close()
