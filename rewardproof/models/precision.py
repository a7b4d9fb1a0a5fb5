"""Numerical precision of a run: which one the machine does well, and how to switch it on for the length of a computation."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Literal

import torch

from rewardproof.artifacts import processor

Precision = Literal["auto", "fp32", "tf32", "bf16"]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "tf32", "bf16"]:
    """Make `auto` concrete: bf16 where the hardware computes it natively, fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_gains_by_bf16() else "fp32"


@functools.cache
def _cpu_gains_by_bf16() -> bool:
    """Whether this processor multiplies bf16 faster than fp32.

    With AMX it does. AVX512-BF16 alone doubles the speed of AMD's processors; on Intel's products took 1.6 to 1.9 times as long as in fp32.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "Intel" not in processor()


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in a precision while the context is open: autocast for bf16, reduced matrix products for tf32, both undone afterwards."""
    kind = resolve_precision(precision, device)
    before = torch.get_float32_matmul_precision()
    if kind == "tf32":
        torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def computing_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which autocast, where it is on, computes products of this tensor."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are kept in a precision: bfloat16 for `bf16`, else float32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def default_budget(device: torch.device) -> int:
    """Tokens of one stream that keep a device busy: an accelerator would wait for the launches of smaller ones."""
    return 4096 if device.type == "cpu" else 32768


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU; `ACCELERATE_USE_CPU=true` asks for the CPU, as of accelerate."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes", "on", "y", "t"}:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
