"""`auto` is bf16 where a processor gains by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rewardproof.models import precision
from rewardproof.models.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    precision._cpu_gains_by_bf16.cache_clear()
    yield
    precision._cpu_gains_by_bf16.cache_clear()


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "name", "expected"),
    [
        (True, True, "Intel(R) Xeon(R) Platinum", "bf16"),
        (False, True, "Intel(R) Xeon(R) Processor", "fp32"),
        (False, True, "AMD EPYC", "bf16"),
        (False, False, "AMD EPYC", "fp32"),
    ],
)
def test_a_processor_computes_in_what_it_does_fast(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, name: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(precision, "processor", lambda: name)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("bf16", CPU) == "bf16"
