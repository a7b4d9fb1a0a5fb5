"""Starting Python scripts and modules in several processes that talk over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`launch(["script.py"], processes=2)`: what was printed, and how it ended; one process is started without a launcher."""

    def start(command: list[str], *, processes: int, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1"]
        launcher += ["--master_port", str(port)]
        given = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})}
        return subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), *command],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **given},
        )

    return start
