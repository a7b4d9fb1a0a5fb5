"""What the figures of constrained policies show, and that nothing is drawn of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewardproof.errors import EvaluationError
from rewardproof.report import constraints_figure, save_figure


def records(*, weighed: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in (1, 2, 3):
        record: dict[str, Any] = {"step": step}
        for name in ("length", "weights"):
            record |= {f"constraint/{name}/value": 0.1 * step, f"constraint/{name}/threshold": 0.5}
            record |= {f"constraint/{name}/weight": 0.2 * step} if weighed else {}
        found.append(record | ({"constraint/objective_weight": 1.0} if weighed else {}))
    return found


def test_each_value_stands_against_its_threshold_above_the_weights(tmp_path: Path) -> None:
    figure = constraints_figure(records(weighed=True), ["length", "weights"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["length", "weights", "Weights by the multipliers"]
    value, threshold = figure.axes[1].lines
    assert list(value.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    assert list(threshold.get_ydata()) == [0.5] * 3
    assert [line.get_label() for line in figure.axes[2].lines][1:] == ["length", "weights", "objective"]
    assert save_figure(figure, tmp_path, "constraints").png.read_bytes().startswith(b"\x89PNG")


def test_without_multipliers_there_are_no_weights() -> None:
    assert len(constraints_figure(records(weighed=False), ["length", "weights"]).axes) == 2


def test_nothing_is_not_drawn() -> None:
    with pytest.raises(EvaluationError, match="no updates to draw"):
        constraints_figure([], ["length"])
