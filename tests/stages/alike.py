"""How the records of two runs are compared that compute the same in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def assert_alike(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], *, rel: float, abs: float) -> None:
    """The same records, their numbers equal but for rounding."""
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"phase"}:
            assert one[name] == pytest.approx(two[name], rel=rel, abs=abs), name
