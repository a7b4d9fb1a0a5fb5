"""The server under 64 clients of another process, against the offline scorer and against a server that forwards one request at a time.

    python -m benchmarks.serving             # writes results/bench_serving.json

All answer the same requests: prompts of 512 tokens with 16 answers of 64 each, one answer a request as trainers send them, and every client
waits for its answer before it asks again. Scorer and servers compute with half of the processors, so that clients and HTTP have the
others; beside the ratio by the clock stands one by the processor time of the server's process alone. The naive server pads nothing,
shares nothing, and runs one forward pass a request behind the same kind of HTTP. That every answer equals the offline scorer's to 2e-5 in
fp32 is checked.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.workload import SMALL, SPECIAL, VOCABULARY, random_model, ratio, spread, word_tokenizer, write
from rewardproof.data.encoding import render
from rewardproof.data.group import Group, Message
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.reward_model import RewardModel
from rewardproof.serving.app import create_app
from rewardproof.serving.served import Catalogue, Served
from rewardproof.serving.server import listen, serve
from rewardproof.serving.settings import Limits

CLIENTS, PROMPTS, ANSWERS, PROMPT, ANSWER, ROUNDS = 64, 40, 16, 512, 64, 3
TOLERANCE = 2e-5
OURS, NAIVE, OFFLINE = "server", "one request, one forward", "offline scorer"


class Query(BaseModel):
    """What is asked."""

    query: list[str]


def workload(*, prompts: int = PROMPTS, answers: int = ANSWERS, prompt: int = PROMPT, answer: int = ANSWER, seed: int = 0) -> list[Group]:
    """Groups of random words."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(SPECIAL, VOCABULARY)}" for _ in range(count))

    return [
        Group((Message("user", words(prompt)),), tuple((Message("assistant", words(answer)),) for _ in range(answers)), id=str(number))
        for number in range(prompts)
    ]


def requests_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One request an answer, as OpenRLHF sends them; the answers of a prompt follow each other, as a policy's rollouts do."""
    tokenizer = word_tokenizer()
    return [{"query": [render(group, answer, tokenizer)]} for group in groups for answer in group.answers]


def load(address: str, requests: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Ask everything with so many clients; rewards in order, seconds of each, and of all.

    The clients speak HTTP by hand: a library's client computes for milliseconds a request, on the processors that are measured.
    """
    host, port = urlsplit(address).hostname or "", urlsplit(address).port
    messages = [_message(request) for request in requests]
    rewards, seconds = [0.0] * len(requests), [0.0] * len(requests)
    waiting = iter(range(len(requests)))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for place in waiting:
            started = time.perf_counter()
            writer.write(messages[place])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            seconds[place] = time.perf_counter() - started
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise RuntimeError(f"Got {head!r} {body!r}, expected a reward: not the same work.")
            rewards[place] = json.loads(body)["rewards"][0]
        writer.close()

    async def run() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return time.perf_counter() - started

    return {"all": asyncio.run(run()), "rewards": rewards, "seconds": seconds}


def _message(request: dict[str, Any]) -> bytes:
    body = json.dumps(request).encode()
    return b"POST /get_reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def take_half_of_the_processors() -> None:
    """Compute with half of the processors."""
    torch.set_num_threads(max((os.cpu_count() or 1) // 2, 1))


def contender(naive: bool, shape: dict[str, int], told: Any) -> None:
    """A server in a process of its own; tells its address."""
    keep_freed_memory()
    take_half_of_the_processors()
    model = RewardModel(random_model(shape).eval(), word_tokenizer())
    limits = Limits(max_length=4096)
    served = Served.of("model", model, limits)
    app: Any = create_app(Catalogue([served]), limits) if not naive else one_forward_a_request(model)
    listening = listen("127.0.0.1", 0)
    serve(app, listening, limits, ready=lambda: told.send(f"http://127.0.0.1:{listening.getsockname()[1]}"))


def one_forward_a_request(model: RewardModel) -> Any:
    """The usual reward server: a route that tokenises, forwards and answers, one request at a time."""
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(body: Query) -> dict[str, list[float]]:
        with torch.inference_mode():
            encoded = model.tokenizer(body.query, return_tensors="pt", padding=True, add_special_tokens=False)
            return {"rewards": model.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0].tolist()}

    return app


@contextmanager
def running(naive: bool, shape: dict[str, int]) -> Iterator[tuple[str, int]]:
    """A server's address and process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=contender, args=(naive, shape, there))
    process.start()
    try:
        yield here.recv(), process.pid or 0
    finally:
        process.terminate()
        process.join()


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1e3


def processor_seconds(pid: int) -> float:
    """Seconds that the threads of a process have computed."""
    with open(f"/proc/{pid}/stat") as status:
        user, system = status.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile in milliseconds."""
    return round(1000 * statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1], 1)


def compare(shape: dict[str, int], groups: Sequence[Group], *, clients: int = CLIENTS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Answers per second of all three in turn, latencies, memory, and the largest difference from the offline rewards."""
    offline = RewardModel(random_model(shape).eval(), word_tokenizer())
    requests = requests_of(groups)
    rates: dict[str, list[float]] = {OFFLINE: [], OURS: [], NAIVE: []}
    waits: dict[str, list[float]] = {OURS: [], NAIVE: []}
    computed: dict[str, list[float]] = {OFFLINE: [], OURS: []}
    gaps, memory = {OURS: 0.0, NAIVE: 0.0}, []
    with running(False, shape) as (ours, pid), running(True, shape) as (naive, _):
        for address in (ours, naive):
            load(address, requests[:4], 2)
        for number in range(rounds):
            began, computing = time.perf_counter(), time.process_time()
            wanted = [value for row in offline.score(groups) for value in row]
            rates[OFFLINE].append(len(wanted) / (time.perf_counter() - began))
            computed[OFFLINE].append(time.process_time() - computing)
            # The naive server's rate does not depend on how much is asked, and it is slow: each client asks it once.
            turns = [(OURS, ours, requests), (NAIVE, naive, requests[:clients])]
            for name, address, asked in turns[:: 1 if number % 2 == 0 else -1]:
                before = processor_seconds(pid)
                found = load(address, asked, clients)
                rates[name].append(len(asked) / found["all"])
                waits[name] += found["seconds"]
                gaps[name] = max(gaps[name], *(abs(one - other) for one, other in zip(found["rewards"], wanted, strict=False)))
                if name == OURS:
                    computed[OURS].append(processor_seconds(pid) - before)
            memory.append(round(resident_mb(pid), 1))
    if gaps[OURS] > TOLERANCE:
        raise RuntimeError(f"Got rewards that differ by {gaps[OURS]}, expected at most {TOLERANCE}: not the same work.")
    return {
        "answers_per_second": {name: spread(values, digits=2) for name, values in rates.items()},
        "server_over_offline": ratio(rates[OURS], rates[OFFLINE]),
        "server_over_offline_by_processor_time": ratio(computed[OFFLINE], computed[OURS]),
        "server_over_naive": ratio(rates[OURS], rates[NAIVE]),
        "milliseconds": {name: {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99)} for name, values in waits.items()},
        "largest_difference_of_rewards": gaps,
        "server_resident_mb_after_each_round": memory,
    }


def main() -> None:
    """Measure and write."""
    found = compare(SMALL, workload())
    print(json.dumps(found, indent=2))
    setting = {
        "clients": CLIENTS,
        "prompts": PROMPTS,
        "answers": ANSWERS,
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "rounds": ROUNDS,
    }
    write("serving", {**setting, "rounds": ROUNDS, "shape": {**SMALL, "vocab_size": VOCABULARY}, **found})


if __name__ == "__main__":
    keep_freed_memory()
    take_half_of_the_processors()
    sys.exit(main())
