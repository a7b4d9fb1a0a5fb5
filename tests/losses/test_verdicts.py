"""Binary cross-entropy of verdicts, against its definition."""

from __future__ import annotations

import pytest
import torch

from rewardproof.errors import DataError
from rewardproof.losses import verdict


def test_is_the_written_out_cross_entropy_and_finite_where_that_is_not() -> None:
    logits, labels = torch.randn(9, dtype=torch.float64), torch.tensor([0.0, 1.0] * 4 + [1.0], dtype=torch.float64)
    said = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(verdict(logits, labels), -(labels * said.log() + (1 - labels) * (1 - said).log()).mean())
    assert verdict(torch.tensor([-200.0]), torch.tensor([1.0])).item() == pytest.approx(200)


def test_bf16_is_computed_in_float32() -> None:
    assert verdict(torch.zeros(2, dtype=torch.bfloat16), torch.tensor([0.0, 1.0])).dtype == torch.float32


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="logits and labels"):
        verdict(torch.zeros(2), torch.zeros(3))
