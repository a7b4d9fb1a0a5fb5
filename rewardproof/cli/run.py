"""What all verbs share: exit codes, one-sentence errors, progress bars on a terminal, and the last line printed."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import typer

from rewardproof.errors import RewardproofError

PATIENCE = 2.0
"""Seconds that a piece of work may take before it gets a progress bar."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of every verb that runs a stage."""

    as_json: bool


def guarded(command: Callable[..., Any]) -> Callable[..., None]:
    """Run a verb: print what it returns, turn the user's mistakes into one message and exit code 2, ours into code 1."""

    @functools.wraps(command)
    def verb(*args: Any, **kwargs: Any) -> None:
        try:
            report = command(*args, **kwargs)
        except RewardproofError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; run the same command with --resume to go on", err=True)
            raise typer.Exit(130) from None
        if report is None:
            return
        if kwargs.get("as_json"):
            sys.stdout.write(json.dumps(report.results, indent=2, ensure_ascii=False) + "\n")
        else:
            typer.echo(f"{report.path}: {report.headline}")

    return verb


@contextlib.contextmanager
def session(options: Options) -> Iterator[Callable[[str, int, int], None]]:
    """Quiet the libraries, send our own log to standard error, and show progress on a terminal only."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if time.monotonic() - started < PATIENCE:
                return
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None, visible=not total or done < total)

        yield show
