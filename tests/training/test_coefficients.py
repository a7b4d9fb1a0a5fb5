"""Learning merge coefficients: only the logits move, the best are kept, and the mixture comes back untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rewardproof.merging.experts import (
    FoldedBlock,
    Merge,
    RoutingMass,
    measure_routing,
    merge_experts,
    put_folded_blocks,
    starting_coefficients,
)
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.training import coefficients as module
from rewardproof.training.batches import Collator, TrainingSet
from rewardproof.training.coefficients import LearnedCoefficients, find_coefficients
from rewardproof.training.fit import Compute, FitResult, fit
from rewardproof.training.objective import Loss
from rewardproof.training.trainer import PackedRewardModule, evaluate_set

COMPUTE = Compute(precision="fp32")


@pytest.fixture
def mixture(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> tuple[PreTrainedModel, dict[int, RoutingMass]]:
    """Two upcycled layers of three whose experts differ, and their routing."""
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3, layers="top:2"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in moe_blocks(model).values():
            for parameter in block.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    groups = [entry.group for entry in random_set(6).groups]
    return model, measure_routing(RewardModel(model, tiny.word_tokenizer(), precision="fp32"), groups)


def loss_of(model: PreTrainedModel, groups: TrainingSet) -> float:
    collator = Collator(tokens_per_batch=1000, cache=None)
    return evaluate_set(PackedRewardModule(model, trunk=None), groups, collator=collator, loss=Loss(reward_l2=0.0), precision="fp32")[1]


@pytest.mark.parametrize("learn_shared", [False, True])
def test_only_the_logits_change(
    learn_shared: bool,
    mixture: tuple[PreTrainedModel, dict[int, RoutingMass]],
    random_set: Callable[..., TrainingSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, masses = mixture
    before, blocks = {name: tensor.clone() for name, tensor in model.state_dict().items()}, moe_blocks(model)
    folded: dict[int, FoldedBlock] = {}
    results: list[FitResult] = []
    monkeypatch.setattr(module, "put_folded_blocks", lambda *args: folded.update(put_folded_blocks(*args)) or folded)
    monkeypatch.setattr(module, "fit", lambda run: results.append(fit(run)) or results[0])
    sets = (random_set(12, seed=1), random_set(12, seed=1))
    settings = Merge(steps=20, learning_rate=0.1, shared_weight=0.4, learn_shared_weight=learn_shared, groups_per_step=6)
    found = find_coefficients(model, masses, settings, sets=sets, compute=COMPUTE, folder=tmp_path)

    assert results[0].trainable_parameters == 2 * (4 if learn_shared else 3), "n logits a layer, and λ where it is learned"
    assert moe_blocks(model) == blocks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer, block in folded.items():
        assert all(torch.equal(block.get_buffer(name), blocks[layer].experts.stack(name)) for name in block.names)
    start = starting_coefficients(masses, settings)
    for layer, learned in found.by_layer.items():
        assert float(learned.sum()) == pytest.approx(1, abs=1e-6)
        assert not torch.allclose(learned, start[layer], atol=1e-3), "nothing was learned"
        assert (float(learned[0]) == pytest.approx(0.4, abs=1e-6)) == (not learn_shared)
    assert found.loss_after is not None
    assert found.loss_before is not None
    assert found.loss_after < found.loss_before
    assert 0 < found.best_step <= found.steps <= 20


def test_the_kept_coefficients_have_the_loss_reported(
    mixture: tuple[PreTrainedModel, dict[int, RoutingMass]], random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model, masses = mixture
    sets = (random_set(12, seed=1), random_set(8, seed=2))
    settings = Merge(steps=15, learning_rate=0.1, groups_per_step=6)
    records: list[dict[str, Any]] = []
    found = find_coefficients(model, masses, settings, sets=sets, compute=COMPUTE, folder=tmp_path, record=records.append)
    losses = {}
    for name, coefficients in (("before", starting_coefficients(masses, settings)), ("after", found.by_layer)):
        merged = copy.deepcopy(model)
        merge_experts(merged, coefficients)
        losses[name] = loss_of(merged, sets[1])
    assert found.loss_before == pytest.approx(losses["before"], rel=1e-5)
    assert found.loss_after == pytest.approx(losses["after"], rel=1e-5)
    evaluated = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert found.loss_after == min(evaluated)
    assert {record["phase"] for record in records} == {"merge"}


def test_learning_stops_when_patience_ends(
    mixture: tuple[PreTrainedModel, dict[int, RoutingMass]], random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model, masses = mixture
    sets = (random_set(8, seed=1), random_set(8, seed=2))
    found = find_coefficients(model, masses, Merge(steps=60, learning_rate=0.0, patience=2), sets=sets, compute=COMPUTE, folder=tmp_path)
    assert (found.steps, found.best_step) == (10, 0), "two evaluations, five steps apart, without a new best"
    assert found.loss_after == found.loss_before
    torch.testing.assert_close(found.by_layer, starting_coefficients(masses, Merge()))


def test_learning_stops_at_its_last_step_without_a_new_best(
    mixture: tuple[PreTrainedModel, dict[int, RoutingMass]], random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    """The evaluation at the last step is inside an epoch: the stop that transformers asked for must stand."""
    model, masses = mixture
    sets, settings = (random_set(12, seed=1), random_set(8, seed=2)), Merge(steps=5, learning_rate=0.0, groups_per_step=4)
    found = find_coefficients(model, masses, settings, sets=sets, compute=COMPUTE, folder=tmp_path)
    assert (found.steps, found.best_step) == (5, 0)
    assert found.tokens > 0
    assert found.tflops > 0


@pytest.mark.parametrize("method", ["uniform", "routing_mass"])
def test_methods_that_learn_nothing_need_no_data(
    method: str, mixture: tuple[PreTrainedModel, dict[int, RoutingMass]], tmp_path: Path
) -> None:
    model, masses = mixture
    settings = Merge(method=method)
    found = find_coefficients(model, masses, settings, sets=(TrainingSet([]), TrainingSet([])), compute=COMPUTE, folder=tmp_path)
    expected = LearnedCoefficients(starting_coefficients(masses, settings))
    assert (found.steps, found.loss_before, found.loss_after) == (0, None, None)
    torch.testing.assert_close(found.by_layer, expected.by_layer)


def test_an_interruption_puts_the_mixture_back(
    mixture: tuple[PreTrainedModel, dict[int, RoutingMass]], random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model, masses = mixture
    blocks = moe_blocks(model)

    def stop(what: str, done: int, total: int) -> None:
        if what == "merging" and done == 2:
            raise KeyboardInterrupt

    sets = (random_set(8, seed=1), random_set(8, seed=2))
    with pytest.raises(KeyboardInterrupt):
        find_coefficients(model, masses, Merge(), sets=sets, compute=COMPUTE, folder=tmp_path, progress=stop)
    assert moe_blocks(model) == blocks
