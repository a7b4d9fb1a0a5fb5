"""The one thread that owns the models: requests wait in line, and what waits together is scored together."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.sharing import DistinctTokens
from rewardproof.serving.refused import Refused
from rewardproof.serving.served import Rewards, Served
from rewardproof.serving.settings import Limits
from rewardproof.serving.telemetry import Metrics

PATIENCE, QUIET = 0.2, 0.02
"""How long a batch with room left waits for requests, in shares of the time that the last one took: in all, and for the next to come."""


@dataclass(slots=True)
class Job:
    """Something for the worker to do.

    Attributes:
        served: The model that is asked.
        n_texts: Texts of it, by which the line is measured.
        encode: Gives the groups to score; runs in the worker, which owns the tokenizer too.
        work: Does something else with the model instead, alone.
        future: What comes out: a list of `Rewards`, or what `work` returns.
        groups: What `encode` gave.
    """

    served: Served
    n_texts: int
    encode: Callable[[], list[EncodedGroup]] = list
    work: Callable[[], Any] | None = None
    future: Future[Any] = field(default_factory=Future)
    groups: list[EncodedGroup] = field(default_factory=list)


class Worker:
    """Scores what waits, in batches of requests."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        """Make a worker that `start` sets to work."""
        self.limits = limits
        self.metrics = metrics
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._waiting = 0
        self._stopping = False
        self._seconds_per_text = 0.0
        self._latest_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="rewardproof-worker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Texts in line."""
        return self._waiting

    def submit(self, job: Job) -> Future[Any]:
        """Put a job in line.

        Raises:
            Refused: It has too many texts, the line is full, or the server stops.
        """
        if job.n_texts > self.limits.texts:
            raise Refused(413, f"Got {job.n_texts} texts, expected at most {self.limits.texts} in a request. Send several requests.")
        with self._changed:
            if self._stopping:
                raise Refused(
                    503, "The server stops and takes no more requests. Ask another one, or this one when it is back.", retry_after=5
                )
            if self._waiting + job.n_texts > self.limits.waiting:
                self._forget_abandoned()
            if self._waiting and self._waiting + job.n_texts > self.limits.waiting:
                wait = math.ceil(self._waiting * self._seconds_per_text) or 1
                raise Refused(
                    429, f"{self._waiting} texts wait, expected room for {job.n_texts}. Come back in about {wait} s.", retry_after=wait
                )
            self._line.append(job)
            self._waiting += job.n_texts
            self.metrics.waiting.set(self._waiting)
            self._changed.notify()
        return job.future

    def _forget_abandoned(self) -> None:
        """Give the places of clients that have left to those who come."""
        gone = [job for job in self._line if job.future.cancelled()]
        self._line = deque(job for job in self._line if not job.future.cancelled())
        self._waiting -= sum(job.n_texts for job in gone)
        self.metrics.abandoned.inc(len(gone))

    def _run(self) -> None:
        while jobs := self._draw():
            for served in {id(job.served): job.served for job in jobs}.values():
                mine = [job for job in jobs if job.served is served]
                self._score([job for job in mine if job.work is None])
                for job in mine:
                    if job.work is not None:
                        _settle(job, job.work)

    def _draw(self) -> list[Job]:
        """The next jobs, encoded, as many as fit together; those whose client has left are passed over. Empty when it is time to end."""
        jobs: list[Job] = []
        tokens, until, latest = DistinctTokens(), math.inf, math.inf
        while tokens.count < self.limits.batch_tokens and (job := self._next(until)) is not None:
            if not job.future.set_running_or_notify_cancel():
                self.metrics.abandoned.inc()
                continue
            try:
                job.groups = job.encode()
            except Exception as error:
                job.future.set_exception(error)
                continue
            jobs.append(job)
            tokens.add(_conversations([job]))
            # Clients that were answered together come back together, and what they ask costs less in one batch: it pays to wait for
            # them as long as that is little beside the scoring.
            now, linger = time.monotonic(), self.limits.linger_ms / 1000
            latest = min(latest, now + max(linger, PATIENCE * self._latest_seconds))
            until = min(latest, now + max(linger, QUIET * self._latest_seconds))
        return jobs

    def _next(self, until: float) -> Job | None:
        with self._changed:
            while not self._line:
                left = until - time.monotonic()
                if self._stopping or left <= 0:
                    return None
                self._changed.wait(None if left == math.inf else left)
            job = self._line.popleft()
            self._waiting -= job.n_texts
            self.metrics.waiting.set(self._waiting)
            return job

    def _score(self, jobs: Sequence[Job]) -> None:
        """Score jobs for one model together, or where that fails each alone, so that none fails by another's fault."""
        if not jobs:
            return
        started = time.monotonic()
        try:
            found = jobs[0].served.score([group for job in jobs for group in job.groups])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._score([job])
            return
        self._measure(jobs, time.monotonic() - started)
        rest = iter(found)
        for job in jobs:
            job.future.set_result([next(rest) for _ in job.groups])

    def _measure(self, jobs: Sequence[Job], seconds: float) -> None:
        texts, self._latest_seconds = sum(job.n_texts for job in jobs), seconds
        if texts:
            recent = seconds / texts
            self._seconds_per_text = 0.8 * self._seconds_per_text + 0.2 * recent if self._seconds_per_text else recent
        tokens = DistinctTokens()
        tokens.add(_conversations(jobs))
        self.metrics.batch(requests=len(jobs), texts=texts, tokens=tokens.count, seconds=seconds)


def _conversations(jobs: Sequence[Job]) -> Iterator[tuple[int, ...]]:
    return (tokens for job in jobs for group in job.groups for tokens in group.conversations)


def _settle(job: Job, work: Callable[[], Any]) -> None:
    try:
        job.future.set_result(work())
    except Exception as error:
        job.future.set_exception(error)


Scored = list[Rewards]
"""What a job that scores comes to."""
