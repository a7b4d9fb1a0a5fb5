"""A server as a process: it listens, and when it is told to stop it takes nothing more and answers what it has."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from rewardproof.errors import ConfigError
from rewardproof.serving.guards import Guards
from rewardproof.serving.settings import Limits

BODY_SECONDS = 5.0
"""How long a server that stops waits for bodies that are on their way."""
SETTLE_SECONDS = 0.05
"""How long connections that were just accepted have to become known."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen at {host}:{port} ({error.strerror or error}), expected an address of this machine that is free: another server "
            "may hold it. Give --port another number, or 0 for a free one."
        ) from error


def serve(app: Guards, listening: socket.socket, limits: Limits, *, ready: Callable[[], None]) -> None:
    """Answer until a signal says to stop, then finish.

    Args:
        app: The application.
        listening: Where.
        limits: Connections at a time, and how long finishing may take.
        ready: Called when requests are answered.
    """
    server = Server(
        uvicorn.Config(
            app,
            http=impatient(limits.timeout),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=limits.drain,
        ),
        ready,
        app,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn sends itself the signal again once it has finished, which would make a clean end look like a crash.
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listening])


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which hangs up where a request's head does not arrive in time: nothing else bounds that, and it holds a place."""

    class Impatient(AutoHTTPProtocol):
        _alarm: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch(transport)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            cycle = getattr(self, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                self._rest()
            elif self._alarm is None:
                self._watch(getattr(self, "transport", None))

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def _watch(self, transport: Any) -> None:
            self._alarm = asyncio.get_running_loop().call_later(seconds, transport.close)

        def _rest(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    return Impatient


class Server(uvicorn.Server):
    """Uvicorn's server, which tells when it answers, and which forgets no connection when it stops."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], app: Guards) -> None:
        """Make a server of `app`, which `config` holds too; `ready` is called when it answers."""
        super().__init__(config)
        self._ready = ready
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer from now on."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, answer what was taken, and end."""
        # A connection that is being accepted while uvicorn tells all it knows to end would not be told: it would be served on, or left open
        # without an answer. So nothing more is accepted, and what was is given the time to become known.
        for listening in sockets or ():
            asyncio.get_running_loop().remove_reader(listening)
        await asyncio.sleep(SETTLE_SECONDS)
        self._app.hurry(BODY_SECONDS)
        await super().shutdown(sockets)
