"""Why a request gets no reward, as a status and a JSON body; what the client sent is never sent back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rewardproof.errors import ConfigError, DataError, ModelError, RewardproofError
from rewardproof.serving.refused import Refused

log = logging.getLogger(__name__)
DEEPEST = 8
"""Steps of a path into a body that a message names."""


class Problem(BaseModel):
    """What went wrong."""

    message: str
    """What was got, what was expected, and what to do."""
    status: int
    """The HTTP status."""
    request: str
    """The request's id, which the server's log has too."""


class Failure(BaseModel):
    """The body of every answer that is not a success."""

    error: Problem


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The body is no JSON"},
    401: {"model": Failure, "description": "The bearer token is missing or wrong"},
    404: {"model": Failure, "description": "No model of that name, or no such address"},
    405: {"model": Failure, "description": "The address takes another method"},
    408: {"model": Failure, "description": "The body did not arrive in time"},
    413: {"model": Failure, "description": "More bytes, texts or tokens than the server takes"},
    422: {"model": Failure, "description": "The body does not say what is to be scored"},
    429: {"model": Failure, "description": "Too many texts wait; Retry-After says when to come back"},
    500: {"model": Failure, "description": "The model gave no finite reward, or the server has a fault"},
    503: {"model": Failure, "description": "The server stops, or the answer took too long"},
}
"""For the OpenAPI description of every address that scores."""


class AsciiJSON(JSONResponse):
    """JSON in which every character is written in ASCII, so that no text of a client can fail to be encoded."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refusal(status: int, message: str, *, request: str, headers: Mapping[str, str] | None = None) -> AsciiJSON:
    """An answer that says what went wrong."""
    return AsciiJSON(
        Failure(error=Problem(message=message, status=status, request=request)).model_dump(), status_code=status, headers=headers
    )


def request_id(scope: Mapping[str, Any]) -> str:
    """The id that the guards gave a request."""
    return scope.get("state", {}).get("request_id", "")


async def of_error(request: Request, error: Exception) -> Response:
    """The answer to a request whose scoring raised."""
    name = request_id(request.scope)
    if isinstance(error, Refused):
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
        return refusal(error.status, str(error), request=name, headers=headers)
    if isinstance(error, DataError | ConfigError | ModelError):
        return refusal(422, str(error), request=name)
    log.error("request %s: %s: %s", name, type(error).__name__, error)
    return refusal(500, str(error) if isinstance(error, RewardproofError) else "The server has a fault; its log says which.", request=name)


async def of_http(request: Request, error: Exception) -> Response:
    """The answer where the address, the method or the body's syntax is wrong."""
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), request=request_id(request.scope), headers=error.headers)


async def of_body(request: Request, error: Exception) -> Response:
    """The answer to a body that does not validate: where and why, without what was there."""
    assert isinstance(error, RequestValidationError)
    found: Sequence[Mapping[str, Any]] = error.errors()
    first = found[0]
    status = 400 if first["type"] == "json_invalid" else 422
    where = ".".join(str(part)[:40] for part in first["loc"][:DEEPEST])
    more = f" ({len(found) - 1} more)" * (len(found) > 1)
    message = f"{where}: {first['msg']}{more}. Expected the body that this address's entry in /openapi.json describes; correct it."
    return refusal(status, message, request=request_id(request.scope))
