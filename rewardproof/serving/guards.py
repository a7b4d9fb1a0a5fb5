"""What every request passes before it is read: an id, the token, the size and time of its body; and what every answer is sent with."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rewardproof.serving.refusals import refusal
from rewardproof.serving.settings import Limits
from rewardproof.serving.telemetry import Metrics, tell

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_GIVEN_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
OPEN_PATHS = ("/", "/health")
"""What needs no token: the page, which asks for it, and whether the server lives."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guards:
    """The outermost layer of the server."""

    def __init__(self, app: Any, *, limits: Limits, metrics: Metrics, token: str = "") -> None:
        """Guard an application; without a token everyone may ask."""
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.token = token.encode()
        self._bodies: set[asyncio.Timeout] = set()

    def hurry(self, seconds: float) -> None:
        """Wait for bodies that are on their way no longer than that: the server stops."""
        latest = asyncio.get_running_loop().time() + seconds
        for waiting in self._bodies:
            if (until := waiting.when()) is None or until > latest:
                waiting.reschedule(latest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, headers = time.monotonic(), dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        status = 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS, (b"x-request-id", name.encode())]
            await send(message)

        try:
            if not self._may(scope["path"], headers):
                refused = "Expected `Authorization: Bearer …` with this server's token: it answers nobody else. Send it."
                await refusal(401, refused, request=name, headers={"WWW-Authenticate": "Bearer"})(scope, receive, sending)
            elif (body := await self._body(headers, receive, name)) is not None:
                await (self.app(scope, _again(body, receive), sending) if isinstance(body, bytes) else body(scope, receive, sending))
        finally:
            self._count(scope, status, name, time.monotonic() - started)

    def _may(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self.token or path in OPEN_PATHS or path.startswith("/page/"):
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, name: str) -> bytes | Any | None:
        """The body, the answer to one that is refused, or nothing where the client left."""
        limit = int(self.limits.body_mb * 1e6)
        refused = refusal(
            413, f"Got a body of more than {limit} bytes, expected at most that. Send several requests.", request=name,
            headers={"Connection": "close"},
        )  # fmt: skip
        if (length := headers.get(b"content-length", b"")).isdigit() and int(length[:20]) > limit:
            return refused
        parts: list[bytes] = []
        size, started, waiting = 0, time.monotonic(), None
        try:
            async with asyncio.timeout(self.limits.timeout) as waiting:
                self._bodies.add(waiting)
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        return refused
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            late = f"The body had not arrived after {time.monotonic() - started:.0f} s. Send it whole."
            return refusal(408, late, request=name, headers={"Connection": "close"})
        finally:
            if waiting is not None:
                self._bodies.discard(waiting)

    def _count(self, scope: Scope, status: int, name: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "other"
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        tell("request", id=name, path=route, method=scope["method"], status=status, seconds=round(seconds, 4))


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then what comes after it."""
    given = False

    async def once() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
