"""The application: addresses, guards, and a worker that lives as long as the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rewardproof.errors import RewardproofError
from rewardproof.serving import inspection, perturbing
from rewardproof.serving.answering import Desk, desk_of
from rewardproof.serving.dialects import groups, llama_factory, openrlhf, slime, vllm
from rewardproof.serving.guards import Guards
from rewardproof.serving.page_files import page_router
from rewardproof.serving.refusals import REFUSALS, AsciiJSON, of_body, of_error, of_http
from rewardproof.serving.served import Catalogue
from rewardproof.serving.settings import Limits
from rewardproof.serving.telemetry import Metrics, tell
from rewardproof.serving.worker import Worker

SCORING = (groups, openrlhf, vllm, llama_factory, slime, inspection, perturbing)
"""What answers with rewards."""


class Health(BaseModel):
    """Whether the server lives."""

    status: Literal["ok"]
    models: list[str]
    """Names of its models, the first of which answers where none is named."""


def create_app(models: Catalogue, limits: Limits, *, token: str = "") -> Guards:
    """The application for some models, behind its guards.

    Args:
        models: What is served.
        limits: What a request may ask.
        token: What every request has to bring as bearer; empty lets everyone ask.
    """
    metrics = Metrics()
    worker = Worker(limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await anyio.to_thread.run_sync(worker.stop)
        tell("stopped", waiting=worker.waiting)

    app = FastAPI(
        title="rewardproof",
        version=metadata.version("rewardproof"),
        description="Rewards of answers, for the trainers that optimise policies.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        default_response_class=AsciiJSON,
    )
    app.state.desk = Desk(models, worker, limits)
    app.add_exception_handler(RequestValidationError, of_body)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RewardproofError, of_error)
    app.add_exception_handler(Exception, of_error)
    for one in SCORING:
        app.include_router(one.router, responses=REFUSALS)
    app.include_router(page_router())

    @app.get("/health")
    async def health(desk: Annotated[Desk, Depends(desk_of)]) -> Health:
        """Whether the server lives, and what it serves."""
        return Health(status="ok", models=list(desk.models.models))

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: REFUSALS[401]})
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    return Guards(app, limits=limits, metrics=metrics, token=token)
