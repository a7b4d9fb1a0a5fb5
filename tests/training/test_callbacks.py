"""The best state is kept, also through an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rewardproof.training.callbacks import HISTORY, BestStateCallback


def seen(keeper: BestStateCallback, step: int, loss: float) -> bool:
    control: Any = SimpleNamespace(should_training_stop=False)
    keeper.on_evaluate(None, SimpleNamespace(global_step=step), control, {"eval_loss": loss})  # pyright: ignore[reportArgumentType]
    return control.should_training_stop


def set_to(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def test_a_run_that_goes_on_knows_what_came_before_and_finds_the_rest_again(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    first = BestStateCallback(module, patience=3, folder=tmp_path)
    for step, loss in ((2, 1.0), (4, 0.5), (6, 0.7), (8, 0.4)):
        set_to(module, step)
        assert not seen(first, step, loss)
    again = BestStateCallback(module, patience=3, folder=tmp_path, resumed_at=6)
    assert (again.best_loss, again.best_step, again.waited) == (0.5, 4, 1)
    set_to(module, 8)
    assert not seen(again, 8, 0.4)
    assert (again.best_step, again.waited) == (8, 0)
    assert [seen(again, step, 0.9) for step in (10, 12, 14)] == [False, False, True]
    again.restore()
    assert module.weight.item() == 8
    assert json.loads((tmp_path / HISTORY).read_text())[-1] == [14, 0.9]


def test_a_run_stopped_right_after_its_best_state_still_has_it(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    set_to(module, 7.0)
    seen(BestStateCallback(module, patience=3, folder=tmp_path), 4, 0.5)
    set_to(module, 9.0)
    again = BestStateCallback(module, patience=3, folder=tmp_path, resumed_at=4)
    assert not seen(again, 4, 0.5), "the last step is evaluated once more"
    assert again.waited == 0
    again.restore()
    assert module.weight.item() == 7


def test_what_an_earlier_run_left_does_not_count_for_one_from_the_beginning(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    seen(BestStateCallback(module, patience=3, folder=tmp_path), 4, 0.1)
    assert BestStateCallback(module, patience=3, folder=tmp_path).best_loss == float("inf")
