"""Host memory that training on a CPU frees is kept for its next step."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt`: how much free memory it keeps, from which size on a block is mapped, and given back, by itself, and how
many pools of memory threads have: those of further threads are too small for activations, which are then mapped anew every time."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GB of freed memory, where the C library is glibc; for the whole process, so a command's to decide.

    The same activations are allocated again every step. Handing their pages back costs a fault for each of them the next time: a quarter of
    the step of a mixture whose activations are large (`python -m benchmarks.experts`).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(MMAP_THRESHOLD, 2**30)
        library.mallopt(ARENA_MAX, 1)
