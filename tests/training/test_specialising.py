from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair
from rewardproof.models.heads import Head
from rewardproof.models.routing import Router
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.training.batches import TrainingGroup, TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss
from rewardproof.training.specialising import (
    HardStart,
    average_branches,
    of_part,
    prompt_parts,
    prompt_states,
    put_branches,
    start_routers,
)

SETTINGS = Upcycle(n_experts=4, n_active=2, mixing="fixed", route_by="prompt", router_init="clusters", layers="top:2")


def regimes(count: int) -> tuple[TrainingSet, np.ndarray]:
    """Groups whose prompts come from three ranges of words."""
    generator = torch.Generator().manual_seed(0)
    found: list[TrainingGroup] = []
    regime = np.arange(count) % 3
    for number in range(count):
        first = 5 + 30 * int(regime[number])
        prompt = tuple(torch.randint(first, first + 2, (8,), generator=generator).tolist())
        answers = tuple(tuple(torch.randint(5, 90, (4,), generator=generator).tolist()) for _ in range(2))
        group = EncodedGroup(tuple(prompt + answer for answer in answers), 0, (8, 8), number).select([0, 1])
        found.append(TrainingGroup(group, (Pair(0, 1, None),)))
    return TrainingSet(found), regime


def plan(model: PreTrainedModel, train: TrainingSet, folder: Path, **changes: Any) -> Fit:
    trainer = {"per_device_train_batch_size": 6, "num_train_epochs": 1, "save_strategy": "no", "learning_rate": 1e-3}
    settings: dict[str, Any] = {
        "held_out": None, "layers": range(1, 3), "seed": 0, "loss": Loss(router_balance=0.0), "folder": folder,
        "compute": Compute(precision="fp32", trunk_cache_gb=0), "head": Head(), "trainer": trainer,
    }  # fmt: skip
    return Fit(model=model, train=train, **{**settings, **changes})


def test_prompt_states_are_the_mean_over_prompt_tokens_alone(tiny: ModuleType, tmp_path: Path) -> None:
    train, _ = regimes(5)
    model = tiny.classifier("llama").eval()
    states = prompt_states(plan(model, train, tmp_path), [1, 2])
    for layer in (1, 2):
        for entry, found in zip(train.groups, states[layer], strict=True):
            seen: list[Tensor] = []
            hook = model.model.layers[layer].mlp.register_forward_hook(lambda _m, inputs, _o, seen=seen: seen.append(inputs[0]))
            with torch.no_grad():
                model(input_ids=torch.tensor([entry.group.conversations[0][:8]]))
            hook.remove()
            np.testing.assert_allclose(found, seen[0][0].mean(dim=0).numpy(), atol=1e-5)


def test_parts_by_preferences_are_those_whose_answers_win_by_opposite_rules(tiny: ModuleType, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    found, kinds = [], np.arange(160) % 2
    for number, kind in enumerate(kinds):
        prompt = tuple(torch.randint(5 + 40 * int(kind), 25 + 40 * int(kind), (8,), generator=generator).tolist())
        low, high = ((*torch.randint(first, first + 3, (3,), generator=generator).tolist(),) for first in (10, 80))
        group = EncodedGroup((prompt + low, prompt + high), 0, (8, 8), number).select([0, 1])
        found.append(TrainingGroup(group, (Pair(0, 1, None) if kind else Pair(1, 0, None),)))
    labels = prompt_parts(plan(tiny.classifier("llama"), TrainingSet(found), tmp_path), 1, 2, by="preferences")
    assert max((labels == kinds).mean(), (labels != kinds).mean()) > 0.9


def test_started_routers_send_each_cluster_to_its_own_expert(tiny: ModuleType, tmp_path: Path) -> None:
    train, regime = regimes(36)
    model = tiny.classifier("llama")
    run = plan(model, train, tmp_path)
    labels = prompt_parts(run, 1, 3, by="clusters")
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    upcycle(model, SETTINGS, layers=range(1, 3))
    start_routers(run, regime)
    states = prompt_states(run, [1, 2])
    for layer, block in moe_blocks(model).items():
        logits = states[layer] @ block.router.weight.detach().double().numpy().T
        assert (logits.argmax(axis=1) == regime).mean() > 0.97


def test_clusters_keep_their_groups_and_no_other(tiny: ModuleType) -> None:
    train, regime = regimes(9)
    parts = [of_part(train.groups, regime, number) for number in range(3)]
    assert [entry.group.index for part in parts for entry in part] == [0, 3, 6, 1, 4, 7, 2, 5, 8]


def test_branches_become_experts_and_the_rest_is_their_mean(tiny: ModuleType) -> None:
    base = tiny.classifier("llama")
    branches = [copy.deepcopy(base) for _ in range(3)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in branches:
            for parameter in branch.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    average_branches(base, [branch.state_dict() for branch in branches])
    upcycle(base, SETTINGS)
    put_branches(base, branches)
    mean = {name: torch.stack([branch.state_dict()[name] for branch in branches]).mean(dim=0) for name in branches[0].state_dict()}
    torch.testing.assert_close(base.state_dict()["model.layers.2.self_attn.q_proj.weight"], mean["model.layers.2.self_attn.q_proj.weight"])
    torch.testing.assert_close(base.state_dict()["score.weight"], mean["score.weight"])
    block = moe_blocks(base)[2]
    torch.testing.assert_close(block.experts.expert(0)["up"], mean["model.layers.2.mlp.up_proj.weight"])
    for number, branch in enumerate(branches, start=1):
        torch.testing.assert_close(block.experts.expert(number)["down"], branch.state_dict()["model.layers.2.mlp.down_proj.weight"])


@pytest.mark.parametrize(("share", "hard_steps"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_hard_start_lasts_for_its_share_of_the_steps(share: float, hard_steps: int, tmp_path: Path) -> None:
    router = Router(4, 3, 2, mixing="s_max", shared_weight=0.5)
    callback = HardStart(nn.Sequential(router), share)
    arguments, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    seen = []
    for step in range(4):
        callback.on_step_begin(arguments, TrainerState(global_step=step, max_steps=4), control)
        seen.append(router.hard)
    assert seen == [step < hard_steps for step in range(4)]
    callback.on_train_end(arguments, TrainerState(global_step=4, max_steps=4), control)
    assert not router.hard


def test_experts_have_a_rate_of_their_own(tiny: ModuleType, tmp_path: Path, random_set: Callable[..., TrainingSet]) -> None:
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=3, n_active=2, layers="top:1"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = {"per_device_train_batch_size": 6, "max_steps": 2, "save_strategy": "no", "learning_rate": 0.0, "optim": "sgd"}
    fit(plan(model, random_set(6), tmp_path, expert_learning_rate=0.05, head=Head(init="normal"), trainer=trainer))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "model.layers.2.mlp.experts.up" in moved
    assert not any("self_attn" in name for name in moved)
