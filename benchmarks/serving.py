"""The server under 64 clients of another process, against the offline scorer and against a server that forwards one request at a time.

    python -m benchmarks.serving             # writes results/bench_serving.json

All answer the same requests: prompts of 512 tokens with 16 answers of 64 each, one answer a request as trainers send them, and every client
waits for its answer before it asks again. The naive server pads nothing, shares nothing, and runs one forward pass a request behind the
same kind of HTTP. That every answer equals the offline scorer's to 2e-5 in fp32 is checked.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.workload import SMALL, SPECIAL, VOCABULARY, random_model, spread, word_tokenizer, write
from rewardproof.data.encoding import render
from rewardproof.data.group import Group, Message
from rewardproof.models.allocator import keep_freed_memory
from rewardproof.models.reward_model import RewardModel
from rewardproof.serving.app import create_app
from rewardproof.serving.served import Catalogue, Served
from rewardproof.serving.server import listen, serve
from rewardproof.serving.settings import Limits

CLIENTS, PROMPTS, ANSWERS, PROMPT, ANSWER, ROUNDS = 64, 8, 16, 512, 64, 3
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
    """Ask everything with so many clients; rewards in order, seconds of each, and of all."""

    async def run() -> dict[str, Any]:
        rewards, seconds = [0.0] * len(requests), [0.0] * len(requests)
        waiting = iter(range(len(requests)))
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=600, trust_env=False) as client:

            async def work() -> None:
                for place in waiting:
                    started = time.perf_counter()
                    found = await client.post("/get_reward", json=requests[place])
                    seconds[place] = time.perf_counter() - started
                    rewards[place] = found.raise_for_status().json()["rewards"][0]

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(clients)))
            return {"rewards": rewards, "seconds": seconds, "all": time.perf_counter() - started}

    return asyncio.run(run())


def contender(naive: bool, shape: dict[str, int], told: Any) -> None:
    """A server in a process of its own; tells its address."""
    keep_freed_memory()
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


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile in milliseconds."""
    return round(1000 * statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1], 1)


def compare(shape: dict[str, int], groups: Sequence[Group], *, clients: int = CLIENTS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Answers per second of all three in turn, latencies, memory, and the largest difference from the offline rewards."""
    offline = RewardModel(random_model(shape).eval(), word_tokenizer())
    requests = requests_of(groups)
    rates: dict[str, list[float]] = {OFFLINE: [], OURS: [], NAIVE: []}
    waits: dict[str, list[float]] = {OURS: [], NAIVE: []}
    gaps, memory = {OURS: 0.0, NAIVE: 0.0}, []
    with running(False, shape) as (ours, pid), running(True, shape) as (naive, _):
        for address in (ours, naive):
            load(address, requests[:4], 2)
        for number in range(rounds):
            started = time.perf_counter()
            wanted = [value for row in offline.score(groups) for value in row]
            rates[OFFLINE].append(len(wanted) / (time.perf_counter() - started))
            turns = [(OURS, ours), (NAIVE, naive)]
            for name, address in turns[:: 1 if number % 2 == 0 else -1]:
                found = load(address, requests, clients)
                rates[name].append(len(requests) / found["all"])
                waits[name] += found["seconds"]
                gaps[name] = max(gaps[name], *(abs(one - other) for one, other in zip(found["rewards"], wanted, strict=True)))
            memory.append(round(resident_mb(pid), 1))
    if gaps[OURS] > TOLERANCE:
        raise RuntimeError(f"Got rewards that differ by {gaps[OURS]}, expected at most {TOLERANCE}: not the same work.")
    return {
        "answers_per_second": {name: spread(values, digits=2) for name, values in rates.items()},
        "server_over_offline": spread([one / other for one, other in zip(rates[OURS], rates[OFFLINE], strict=True)]),
        "server_over_naive": spread([one / other for one, other in zip(rates[OURS], rates[NAIVE], strict=True)]),
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
    sys.exit(main())
