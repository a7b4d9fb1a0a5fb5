from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from rewardproof.errors import ConfigError
from rewardproof.models.experts import FullExperts, UpcycledSparseMoeBlock
from rewardproof.models.routing import Router
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.training.batches import TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss
from rewardproof.training.pulling import PullTogether, pull_together
from rewardproof.training.trainer import RewardTrainer


def test_each_moves_to_the_mean_of_the_others_and_their_mean_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator)
    before = stack.clone()
    pull_together(stack, 0.3)
    for number in range(4):
        others = torch.cat((before[:number], before[number + 1 :])).mean(dim=0)
        torch.testing.assert_close(stack[number], 0.7 * before[number] + 0.3 * others)
    torch.testing.assert_close(stack.mean(dim=0), before.mean(dim=0))


def test_parts_of_experts_on_several_processes_cannot_be_pulled(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharded(RewardTrainer):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.is_fsdp_enabled = True

    monkeypatch.setattr("rewardproof.training.fit.RewardTrainer", Sharded)
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=2, mixing="random", share_rate=0.1))
    run = Fit(
        model=model, train=random_set(4), held_out=None, layers=range(3), folder=tmp_path, seed=0, trainer={"max_steps": 1},
        loss=Loss(router_balance=0.0), compute=Compute(precision="fp32"), callbacks=lambda module: [PullTogether(module, 0.1)],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="share_rate with FSDP or DeepSpeed, expected DDP or one process"):
        fit(run)


def test_the_rate_rises_over_the_training_and_the_shared_expert_stays(tmp_path: Path) -> None:
    dense = {"up": torch.randn(6, 4), "down": torch.randn(4, 6)}
    block = UpcycledSparseMoeBlock(FullExperts(dense, 3), Router(4, 2, 1, mixing="random", shared_weight=0.0), torch.relu)
    with torch.no_grad():
        block.experts.get_parameter("up")[1].add_(1.0)
    shared = block.experts.get_parameter("up")[0].clone()
    callback = PullTogether(nn.Sequential(block), 0.4)
    arguments, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    gaps = [1.0]
    for step in range(2):
        callback.on_optimizer_step(arguments, TrainerState(global_step=step, max_steps=2), control)
        gaps.append(float((block.experts.get_parameter("up")[1] - block.experts.get_parameter("up")[2]).detach().mean()))
    # Two experts: each pull by rate b shrinks their gap by 1 - 2 b.
    torch.testing.assert_close(torch.tensor(gaps), torch.tensor([1.0, 0.6, 0.6 * 0.2]))
    assert torch.equal(block.experts.get_parameter("up")[0], shared)
