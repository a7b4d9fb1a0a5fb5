"""A server as a process: it listens, and when it is told to stop it takes nothing more and answers what it has."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from rewardproof.errors import ConfigError
from rewardproof.serving.guards import Guards
from rewardproof.serving.settings import Limits


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
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=limits.drain,
        ),
        ready,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn sends itself the signal again once it has finished, which would make a clean end look like a crash.
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
