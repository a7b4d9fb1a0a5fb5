"""`rewardproof serve MODEL…`: rewards over HTTP, for TRL, OpenRLHF, verl, vLLM and LLaMA-Factory clients, and a page for a person."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rewardproof.config import Section, Strings
from rewardproof.errors import ConfigError, MissingExtraError
from rewardproof.models.precision import Precision
from rewardproof.scoring import TOKEN
from rewardproof.serving.settings import Limits

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


class Serve(Section):
    """A server of rewards."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """What is served: directories of reward models, ensembles or DMoERMs, or hub ids; the first answers where a request names none."""
    names: Strings = ()
    """What clients call them, one a model; else they are called by their runs."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port; 0 takes a free one."""
    precision: Precision = "fp32"
    """Of the forward pass; `fp32` reproduces stock rewards to rounding."""
    token_file: str = ""
    """File whose content every request has to bring as bearer token; else the token is that of `REWARDPROOF_TOKEN`, or there is none."""
    limits: Limits = Limits()
    """What a request may ask."""


def run(config: Serve, *, say: Callable[[str], None] = print) -> None:
    """Serve until a signal says to stop.

    Args:
        config: Models, address and limits.
        say: Is told the address once requests are answered.

    Raises:
        MissingExtraError: What the server is built on is not installed.
        ConfigError: The address cannot be had, or the token's file is empty or missing.
        CheckpointError: A model is missing or damaged.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(
            f"serve needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; install with: "
            "pip install 'rewardproof[serve]'"
        )
    from rewardproof.serving.app import create_app
    from rewardproof.serving.served import Catalogue
    from rewardproof.serving.server import listen, serve
    from rewardproof.serving.telemetry import log_to_stderr

    token = token_of(config.token_file)
    listening = listen(config.host, config.port)
    with listening:
        models = Catalogue.load(config.models, config.limits, names=config.names, precision=config.precision)
        address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{listening.getsockname()[1]}"
        log_to_stderr()
        app = create_app(models, config.limits, token=token)
        serve(app, listening, config.limits, ready=lambda: say(f"{address} serves {', '.join(models.models)}"))


def token_of(file: str) -> str:
    """The bearer token of a file, or of the environment.

    Raises:
        ConfigError: The file holds none.
    """
    if not file:
        return os.environ.get(TOKEN, "")
    path = Path(file)
    token = path.read_text().strip() if path.is_file() else ""
    if not token:
        raise ConfigError(
            f"token_file={file} is {'empty' if path.is_file() else 'no file'}, expected a file that holds the token; write it."
        )
    return token
