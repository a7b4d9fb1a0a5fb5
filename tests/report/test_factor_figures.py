"""The figure of a head of factors draws what it is given and refuses to draw nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewardproof.errors import EvaluationError
from rewardproof.report import factors_figure, save_figure

FACTORS: list[dict[str, Any]] = [
    {"number": 7, "share": 0.25, "length_correlation": 0.1, "reward_correlation": 0.9},
    {"number": 2, "share": 0.05, "length_correlation": None, "reward_correlation": -0.3},
]


def test_a_row_a_factor_with_its_share_and_correlations(tmp_path: Path) -> None:
    figure = factors_figure(FACTORS, length_correlation=0.4)
    bars, dots = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["factor 7", "factor 2"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([25, 5])
    drawn = {str(line.get_label()): list(line.get_xdata()) for line in dots.lines}
    assert drawn["reward"] == [0.9, -0.3]
    assert drawn["length"] == [0.1], "a correlation with a constant is not drawn"
    assert drawn["reward with length"] == [0.4, 0.4]
    assert "reward with length" not in {str(line.get_label()) for line in factors_figure(FACTORS).axes[1].lines}
    first, second = (save_figure(factors_figure(FACTORS), tmp_path, name).svg.read_bytes() for name in ("one", "two"))
    assert first == second


def test_no_factors() -> None:
    with pytest.raises(EvaluationError, match="no factors to draw"):
        factors_figure([])
