"""How a handler gets its answer from the worker: it waits, but neither for ever nor for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from rewardproof.data.encoding import EncodedGroup
from rewardproof.serving.refused import Refused
from rewardproof.serving.served import Catalogue, Rewards, Served
from rewardproof.serving.settings import Limits
from rewardproof.serving.worker import Job, Worker

CLIENT_LEFT = 499
"""Status in the log of a request whose client did not wait; nobody receives it."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What handlers share.

    Attributes:
        models: The models.
        worker: Scores.
        limits: Of the server.
    """

    models: Catalogue
    worker: Worker
    limits: Limits

    def model(self, request: Request, name: str = "", *, any_name: bool = False) -> Served:
        """The model that a request asks for: by `?model=` in its address, or as its body says; raises as `Catalogue.named`."""
        told = request.query_params.get("model", "")
        return self.models.named(told or name, any_name=any_name and not told)

    async def rewards(self, request: Request, served: Served, n_texts: int, encode: Callable[[], list[EncodedGroup]]) -> list[Rewards]:
        """Rewards of groups, in order.

        Raises:
            Refused: The line is full, it took too long, the client has left, or the groups are beyond a limit.
            DataError: A group cannot be scored.
        """
        if not n_texts:
            return []
        return await self._wait(request, Job(served, n_texts, encode))

    async def work(self, request: Request, served: Served, n_texts: int, work: Callable[[], Any]) -> Any:
        """What a piece of work with a model returns; raises as `rewards`."""
        return await self._wait(request, Job(served, n_texts, work=work))

    async def _wait(self, request: Request, job: Job) -> Any:
        coming = asyncio.wrap_future(self.worker.submit(job))
        left = asyncio.ensure_future(_left(request))
        try:
            done, _ = await asyncio.wait({coming, left}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                return coming.result()
            if left in done:
                raise Refused(CLIENT_LEFT, "The client left before its answer.")
            raise Refused(503, f"Got no rewards within {self.limits.timeout:g} s. Send fewer texts, or come back later.", retry_after=10)
        finally:
            left.cancel()
            coming.cancel()  # which passes it over in the line; one that is done stays as it is


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def one_each(found: Sequence[Rewards]) -> list[float]:
    """Rewards of groups of one text."""
    return [rewards.values[0] for rewards in found]


def desk_of(request: Request) -> Desk:
    """The desk of the server that a request came to."""
    return request.app.state.desk
