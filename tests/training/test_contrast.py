"""Contrastive terms on streams: against sums written out group by group, quiet in evaluation, trained and resumed with the model."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.packing import PackedBatch, pack
from rewardproof.losses import simcse, swav
from rewardproof.models.heads import Head
from rewardproof.models.packed import Auxiliary, PackedRewards, head_rewards, packed_rewards
from rewardproof.training.batches import Stream, TrainingSet
from rewardproof.training.contrast import Contrast, ContrastTerm, contrast_terms
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss, StepTotals, step_loss

METHODS = [(method, on) for method in ("simcse", "swav") for on in ("features", "differences")]
PLAIN = Loss(reward_l2=0.0)


def stream_of(data: TrainingSet) -> Stream:
    groups = [entry.group for entry in data.groups]
    return Stream(pack(groups, [entry.pairs for entry in data.groups]), None, tuple(groups))


def term_of(model: PreTrainedModel, settings: Contrast, loss: Loss = PLAIN) -> ContrastTerm:
    (term,) = contrast_terms(settings, loss, 0)(model)
    assert isinstance(term, ContrastTerm)
    return term


@pytest.fixture
def passed(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> tuple[PreTrainedModel, Stream, PackedRewards]:
    """A tiny model, a stream of pairs and rankings, and its pass."""
    model, stream = tiny.classifier("llama"), stream_of(random_set(6))
    with torch.no_grad():
        return model, stream, packed_rewards(model, stream.batch)


def by_group(batch: PackedBatch, features_CD: Tensor, on: str) -> list[list[Tensor]]:
    """What is contrasted, group by group."""
    found, first = [], 0
    for size, pairs in zip(batch.conversations_per_group, batch.pairs, strict=True):
        rows = features_CD[first : first + size]
        apart = [rows[pair.winner] - rows[pair.loser] for pair in pairs]
        found.append(list(rows) if on == "features" else [*apart, *(-row for row in apart)])
        first += size
    return found


@pytest.mark.parametrize(("method", "on"), METHODS)
def test_a_group_counts_once_against_all_of_the_stream(
    method: Any, on: Any, passed: tuple[PreTrainedModel, Stream, PackedRewards], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stream, output = passed
    assert {len(pairs) for pairs in stream.batch.pairs} > {1}, "the sample must hold rankings"
    settings = Contrast(method=method, on=on, weight=0.7, augmented=0.4, temperature=0.3, prototypes=4)
    term = term_of(model, settings, Loss(margin="data", label_smoothing=0.1))
    views = [output.states_CD + 0.1 * torch.randn(output.states_CD.shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    drawn = iter(views)
    monkeypatch.setattr(F, "dropout", lambda *_: next(drawn))
    found = term(output, stream)
    groups = [by_group(stream.batch, view, on) for view in views]
    first, second = (torch.stack([row for rows in view for row in rows]) for view in groups)
    of_all = (
        simcse(first, second, temperature=0.3, reduction="none")
        if method == "simcse"
        else swav(first, second, term.prototypes_KD, temperature=0.3, reduction="none")
    )
    sizes = [len(rows) for rows in groups[0]]
    contrast = sum(float(part.detach().mean()) for part in of_all.split(sizes))
    # The loss of a step with these rewards and nothing else is the pairs' loss of a view.
    pair_losses = [
        float(step_loss(PackedRewards(head_rewards(model, view), (), view), stream.batch, term.loss.model_copy(update={"reward_l2": 0.0}),
                        StepTotals()).detach())
        for view in views
    ]  # fmt: skip
    assert float(found.loss.detach()) == pytest.approx(0.7 * contrast + 0.4 * sum(pair_losses) / 2, rel=1e-4)
    assert found.pairs == pytest.approx(0.6), "what is left to the features as they are"
    assert found.metrics["contrast/loss"] == pytest.approx(contrast, rel=1e-4)
    assert found.metrics["contrast/pairs"] == pytest.approx(sum(pair_losses) / 2, rel=1e-4)


@pytest.mark.parametrize(("method", "on"), METHODS)
def test_views_differ_in_training_and_not_in_evaluation(
    method: Any, on: Any, passed: tuple[PreTrainedModel, Stream, PackedRewards]
) -> None:
    """A decoder-only model has no dropout of its own: without the term's, both views would be one."""
    model, stream, output = passed
    term = term_of(model, Contrast(method=method, on=on, dropout=0.3, temperature=0.5))
    assert not any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules())
    term.train()
    torch.manual_seed(0)
    noisy = [float(term(output, stream).loss.detach()) for _ in range(3)]
    assert len(set(noisy)) == 3
    term.eval()
    quiet = [term(output, stream) for _ in range(2)]
    assert float(quiet[0].loss.detach()) == float(quiet[1].loss.detach())
    rewards = step_loss(output, stream.batch, PLAIN, StepTotals())
    assert quiet[0].metrics["contrast/pairs"] == pytest.approx(float(rewards), rel=1e-5), "the rewards of both views are the rewards"
    joined = step_loss(output._replace(auxiliary=(quiet[0],)), stream.batch, PLAIN, StepTotals())
    assert float(joined.detach()) == pytest.approx(float(rewards) + quiet[0].metrics["contrast/loss"], rel=1e-5), "pairs count once"


def test_dropout_keeps_the_mean_and_drops_its_share(passed: tuple[PreTrainedModel, Stream, PackedRewards]) -> None:
    model, stream, output = passed
    seen: list[Tensor] = []

    def rewards(view_CD: Tensor) -> Tensor:
        seen.append(view_CD)
        return head_rewards(model, view_CD)

    term = ContrastTerm(Contrast(dropout=0.2), PLAIN, rewards=rewards, width=model.config.hidden_size, seed=0)
    torch.manual_seed(0)
    for _ in range(30):
        term(output, stream)
    views = torch.stack(seen)
    assert len(views) == 60, "two views a pass"
    assert not torch.equal(views[0], views[1]), "of their own noise each"
    assert float((views == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    kept = views[views != 0]
    torch.testing.assert_close(kept, (output.states_CD / 0.8).expand_as(views)[views != 0])


def test_what_it_is_contrasted_with_is_the_stream(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    """Negatives come from the same stream: cutting it in two, as a smaller token budget does, changes the loss; the order does not."""
    model, data = tiny.classifier("llama"), random_set(6)
    term = term_of(model, Contrast(augmented=0.0, temperature=0.5)).eval()

    def loss(entries: list[Any]) -> float:
        stream = stream_of(TrainingSet(entries))
        with torch.no_grad():
            return float(term(packed_rewards(model, stream.batch), stream).loss)

    whole = loss(data.groups)
    assert loss(data.groups[::-1]) == pytest.approx(whole, rel=1e-5)
    assert loss(data.groups[:3]) + loss(data.groups[3:]) < whole - 0.1


def run(model: PreTrainedModel, data: TrainingSet, folder: Path, settings: Contrast | None, **changes: Any) -> dict[str, Any]:
    model = copy.deepcopy(model)
    records: list[dict[str, Any]] = []
    made: list[Any] = []

    def terms(model: PreTrainedModel) -> list[Any]:
        made.extend(contrast_terms(settings, PLAIN, 0)(model))
        return made[-1:]

    trainer = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 1, "save_total_limit": 3}
    fit(
        Fit(
            model=model, train=data, held_out=data, folder=folder, trainer=trainer | changes.pop("trainer", {}), layers=range(1, 3), seed=0,
            loss=PLAIN, compute=Compute(precision="fp32"), head=Head(init="normal"), record=records.append, auxiliaries=terms, **changes,
        )
    )  # fmt: skip
    return {"model": model, "records": records, "term": made[-1] if made else None}


@pytest.mark.parametrize(("method", "on"), METHODS)
def test_it_trains_and_is_logged_and_resumes_at_the_same_numbers(
    method: Any, on: Any, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(12), tiny.classifier("llama")
    settings = Contrast(method=method, on=on, prototypes=4, temperature=0.2)
    whole = run(model, data, tmp_path, settings)
    assert all({"contrast/loss", "contrast/pairs"} <= entry.keys() for entry in whole["records"] if "loss" in entry)
    assert any("eval_contrast/loss" in entry for entry in whole["records"])
    start = term_of(model, settings)
    assert hasattr(start, "prototypes_KD") == (method == "swav")
    if method == "swav":
        assert float((whole["term"].prototypes_KD - start.prototypes_KD).detach().norm()) > 1e-3
    assert not any("prototypes" in name for name in whole["model"].state_dict()), "nothing of it is delivered"
    shutil.rmtree(tmp_path / "checkpoint-3")
    again = run(model, data, tmp_path, settings, resume=True)
    assert [entry["step"] for entry in again["records"] if "loss" in entry] == [3]
    for name, tensor in whole["model"].state_dict().items():
        torch.testing.assert_close(again["model"].state_dict()[name], tensor, atol=0, rtol=0)
    for name, tensor in whole["term"].state_dict().items():
        torch.testing.assert_close(again["term"].state_dict()[name], tensor, atol=0, rtol=0)


def test_the_head_is_not_a_part_of_the_term(tiny: ModuleType) -> None:
    """It would be saved twice, and found twice by what shards parameters."""
    model = tiny.classifier("llama")
    assert list(term_of(model, Contrast()).state_dict()) == []
    assert list(term_of(model, Contrast(method="swav")).state_dict()) == ["prototypes_KD"]


def test_without_weights_training_is_what_it_is_without_the_term(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(8), tiny.classifier("llama")
    plain = run(model, data, tmp_path / "plain", None)
    nothing = run(model, data, tmp_path / "nothing", Contrast(weight=0.0, augmented=0.0))
    for name, tensor in plain["model"].state_dict().items():
        torch.testing.assert_close(nothing["model"].state_dict()[name], tensor, atol=0, rtol=0)
    assert contrast_terms(None, PLAIN, 0)(model) == []


def test_both_parts_reach_the_layers_below(passed: tuple[PreTrainedModel, Stream, PackedRewards]) -> None:
    model, stream, _ = passed
    for settings in (Contrast(augmented=0.0), Contrast(weight=0.0)):
        model.zero_grad()
        output = packed_rewards(model, stream.batch)
        found: Auxiliary = term_of(model, settings)(output, stream)
        found.loss.backward()
        down = model.model.layers[1].mlp.down_proj.weight.grad
        assert down is not None
        assert float(down.abs().max()) > 0
        assert (model.score.weight.grad is not None and bool(model.score.weight.grad.any())) == (settings.augmented > 0)


@pytest.mark.parametrize(
    "bad", [{"augmented": 1.5}, {"dropout": 0.0}, {"dropout": 1.0}, {"temperature": 0.0}, {"prototypes": 1}, {"method": "moco"}]
)
def test_settings_that_mean_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Contrast(**bad)


def test_rewards_of_a_term_are_the_model_s_own(passed: tuple[PreTrainedModel, Stream, PackedRewards]) -> None:
    model, _, output = passed
    torch.testing.assert_close(partial(head_rewards, model)(output.states_CD), output.rewards_C, atol=0, rtol=0)
