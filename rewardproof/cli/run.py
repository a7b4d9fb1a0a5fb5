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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from rewardproof.artifacts import Progress, is_main, n_processes, silent, writing
from rewardproof.errors import ConfigError, RewardproofError, StorageError

PATIENCE = 2.0
"""Seconds that a piece of work may take before it gets a progress bar."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of every verb that runs a stage.

    Attributes:
        as_json: Print the report's content as JSON.
        several: The verb shares its work out among the processes that a launcher has started.
    """

    as_json: bool
    several: bool = False


def guarded(command: Callable[..., Any]) -> Callable[..., None]:
    """Run a verb: print what it returns, turn the user's mistakes into one message and exit code 2, limits missed into 3, ours into 1."""

    @functools.wraps(command)
    def verb(*args: Any, **kwargs: Any) -> None:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which happens inside the verb
        try:
            if kwargs.get("overwrite") and kwargs.get("resume"):
                raise ConfigError(
                    "Got --overwrite and --resume, expected one of them: the first deletes what an earlier run left, the second continues "
                    "it. Drop one."
                )
            with writing("what this command leaves"):
                report = command(*args, **kwargs)
        except RewardproofError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            who = "" if is_main() else f"process {os.environ['RANK']}: "
            typer.echo(f"{who}error: {error}{_going_on(kwargs) if isinstance(error, StorageError) else ''}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo(f"interrupted{_going_on(kwargs)}", err=True)
            raise typer.Exit(130) from None
        if report is None or not is_main():
            return
        if kwargs.get("as_json"):
            sys.stdout.write(json.dumps(report.results, indent=2, ensure_ascii=False) + "\n")
        else:
            typer.echo(f"{report.path}: {report.headline}")
        if report.missed:
            typer.echo("\n".join(f"limit missed: {sentence}" for sentence in report.missed), err=True)
            raise typer.Exit(3)

    return verb


def _going_on(options: Mapping[str, Any]) -> str:
    """What to do after an interruption, by what the verb can do."""
    if "resume" in options:
        return f"; run the same command with --resume{' in place of --overwrite' if options.get('overwrite') else ''} to go on"
    if "overwrite" in options and not options["overwrite"]:
        return "; run the same command again, with --overwrite if it has left a directory behind"
    return "; run the same command again"


@contextlib.contextmanager
def session(options: Options) -> Iterator[Progress]:
    """Prepare this process, quiet the libraries, and show progress on a terminal only; of several processes one speaks.

    Raises:
        ConfigError: Several processes were started for a verb that runs on one.
    """
    if n_processes() > 1 and not options.several:
        raise ConfigError(
            f"Got {n_processes()} processes, expected one: this verb does not share its work out, and they would write over each other. "
            "Run it without the launcher; `rewardproof train` and `rewardproof align` run on several."
        )
    from transformers.utils import logging as transformers_logging

    from rewardproof.models.allocator import keep_freed_memory

    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING if is_main() else logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty() or not is_main():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if time.monotonic() - started < PATIENCE:
                return
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None, visible=not total or done < total)

        yield show
