"""The command line in processes of its own, which can be killed as a machine that goes down kills them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

SECONDS = 120
"""After which a process counts as hung."""


def command_line(arguments: list[str], output: str, largest_file: int) -> None:
    """What the installed command does, in a process that the libraries have been loaded into; no file can grow beyond `largest_file`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import gc
    import resource
    import signal

    import torch
    from matplotlib.figure import Figure

    from rewardproof.cli.main import app
    from tests.undrawn import blank

    Figure.savefig = blank
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    gc.freeze()
    torch.set_num_threads(1)
    app(args=arguments)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BaseProcess]:
    """`started("train", …)`: the command in a process of its own, its output in the file that the process's name says.

    A server that has the libraries loaded makes each by forking, so that it is running after a hundredth of a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [f"rewardproof.{room}" for room in ("cli.main", "stages.train", "stages.score", "stages.align", "stages.audit", "stages.stress")]
        + ["matplotlib.figure"]
    )
    folder = tmp_path_factory.mktemp("output")

    def start(*arguments: object, largest_file: int = 0) -> BaseProcess:
        output = str(folder / f"{len(list(folder.iterdir()))}.txt")
        Path(output).touch()
        given = ([str(argument) for argument in arguments], output, largest_file)
        process = context.Process(target=command_line, args=given, name=output)
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def finished(started: Callable[..., BaseProcess]) -> Callable[..., str]:
    """`finished("train", …)`: the command to its end, which must be a good one; gives what it printed."""

    def finish(*arguments: object) -> str:
        process = started(*arguments)
        process.join(SECONDS)
        printed = Path(process.name).read_text()
        assert process.exitcode == 0, printed
        return printed

    return finish


@pytest.fixture(scope="session")
def installed() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The installed command, from its start."""

    def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("rewardproof")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, **options)

    return call


@pytest.fixture
def killed(started: Callable[..., BaseProcess]) -> Callable[..., bool]:
    """`killed(when, "train", …)`: start the command and kill it (SIGKILL) as soon as `when()` is true; says whether it was still alive."""

    def kill(when: Callable[[], bool], *arguments: object) -> bool:
        process = started(*arguments)
        begun = time.monotonic()
        while process.is_alive() and not when():
            assert time.monotonic() - begun < SECONDS, "neither ended nor came to the moment"
            time.sleep(0.0005)
        process.kill()
        process.join(SECONDS)
        assert process.exitcode in (0, -9), Path(process.name).read_text()
        return process.exitcode == -9

    return kill
