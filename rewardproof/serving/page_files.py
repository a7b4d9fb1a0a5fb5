"""The page for a person: three files and an icon, sent as they are. It asks `/inspect`, as any client may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Addresses, and what is sent there; nothing else of the disk can be reached."""


def page_router() -> APIRouter:
    """Addresses of the page's files, read once."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in FILES.items():
        router.add_api_route(path, _sends((resources.files("rewardproof.serving") / "page" / name).read_bytes(), kind), name=name)
    return router


def _sends(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind)

    return send
