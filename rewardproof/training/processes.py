"""Several processes that train one model together, started by torchrun or accelerate: who writes, and what all of them agree on.

Every process runs the same stage on the same data and holds the same results; the main one alone writes. With one process nothing happens
here.
"""

from __future__ import annotations

import atexit
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import PartialState
from torch import distributed

from rewardproof.artifacts import FollowedRun, RunDirectory, is_main, n_processes
from rewardproof.config import Section
from rewardproof.models.precision import default_device

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: storing a large trunk's activations takes long. A process that dies ends the run at once."""

Value = TypeVar("Value")


def start() -> None:
    """Join the processes that the launcher started; afterwards `cuda` means this process's own device."""
    if n_processes() > 1 and not distributed.is_initialized():
        PartialState(cpu=default_device().type == "cpu", timeout=PATIENCE)
        atexit.register(leave)


def leave() -> None:
    """Part from the other processes; to be called last by whoever joined them without `start`, which calls it when the interpreter ends.

    A thread of gloo that lets go of the last result while the interpreter is being taken down aborts a process that has finished its work.
    Destroying the group joins those threads, unless something still refers to the group: they are left the moment that they need.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        time.sleep(0.2)


def gathered(value: Value) -> list[Value]:
    """Every process's value, the main one's first; any object that can be pickled."""
    if n_processes() == 1:
        return [value]
    values: list[Any] = [None] * n_processes()
    distributed.all_gather_object(values, value)
    return values


def agreed(value: Value) -> Value:
    """The main process's value, on every process: for decisions that must not differ in a last bit, or in the state of a disk."""
    if n_processes() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return cast("Value", values[0])


def wait() -> None:
    """Go on when every process has come here."""
    gathered(None)


def run_directory(path: Path | str, config: Section, *, overwrite: bool, resume: bool, started: float) -> RunDirectory:
    """The run directory, made by the main process; what the others write into theirs goes nowhere. Arguments as for `RunDirectory`."""
    if is_main():
        made = RunDirectory(path, config, overwrite=overwrite, resume=resume, started=started)
    else:
        made = FollowedRun(path, config, started=started)
    wait()
    return made
