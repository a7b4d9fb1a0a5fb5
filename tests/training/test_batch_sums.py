"""Batch-wise sum-to-zero in training: the penalty of the whole step, however the step is cut up; the released form beside it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.models.factor_head import Factors, install_factors
from rewardproof.models.families import family_of
from rewardproof.models.heads import Head
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.training.batches import TrainingGroup, TrainingSet
from rewardproof.training.factor_divergence import FactorDivergence
from rewardproof.training.fit import Compute
from rewardproof.training.objective import Loss
from tests.training.test_fit import assert_same_gradients, train

NOTHING = {"reward_l2": 0.0, "router_balance": 0.0}
LAMBDA = 0.3
ONE_STREAM = Compute(precision="fp32", tokens_per_batch=100_000)
MANY_STREAMS = Compute(precision="fp32", tokens_per_batch=20)


def bsr(**changes: Any) -> Loss:
    return Loss(**{**NOTHING, "bsr": LAMBDA, **changes})


def written_out(model: PreTrainedModel, batches: Sequence[Sequence[TrainingGroup]], penalty: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The released objective by the stock forward: over batches, the mean loss of the pairs and a function of mean reward and B.

    Conversations are scored alone; a group's pairs are averaged, so that a ranking counts as one pair.
    """
    total = torch.zeros(())
    n_groups = sum(len(batch) for batch in batches)
    for batch in batches:
        losses, means = [], []
        for entry in batch:
            rewards = torch.cat([model(input_ids=torch.tensor([tokens])).logits[0] for tokens in entry.group.conversations])
            chosen, rejected = (rewards[list(side)] for side in zip(*((p.winner, p.loser) for p in entry.pairs), strict=True))
            losses.append(-F.logsigmoid(chosen - rejected).mean())
            means.append((chosen + rejected).mean() / 2)
        whole = torch.stack(losses).mean() + penalty(torch.stack(means).mean(), len(batch))
        total = total + whole * len(batch) / n_groups
    return total


def gradients(model: PreTrainedModel, batches: Sequence[Sequence[TrainingGroup]], penalty: Callable[[Tensor, int], Tensor]) -> dict:
    model = copy.deepcopy(model)
    model.config.pad_token_id = 0
    written_out(model, batches, penalty).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def mean_squared(mean: Tensor, n_pairs: int) -> Tensor:
    return LAMBDA * n_pairs * mean**2


CUTS = [(8, 1, MANY_STREAMS), (8, 1, ONE_STREAM), (4, 2, ONE_STREAM), (2, 4, MANY_STREAMS)]


@pytest.mark.parametrize(("size", "accumulated", "compute"), CUTS)
@pytest.mark.parametrize("form", ["mean_squared", "sum_squared"])
def test_acceptance_2_a_step_has_one_penalty_however_it_is_cut(
    form: str, size: int, accumulated: int, compute: Compute, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(8), tiny.classifier("llama")
    records: list[dict[str, Any]] = []
    trainer = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "logging_steps": 1}
    loss = bsr(bsr_form=form, bsr=LAMBDA if form == "mean_squared" else LAMBDA / 10)
    watch, result = train(model, data, tmp_path, loss=loss, compute=compute, trainer=trainer, record=records.append)

    def penalty(mean: Tensor, n_pairs: int) -> Tensor:
        return mean_squared(mean, n_pairs) if form == "mean_squared" else LAMBDA / 10 * (2 * n_pairs * mean) ** 2

    assert result.steps == 1
    assert_same_gradients(watch.gradients[0], gradients(model, [data.groups], penalty))
    logged = next(record for record in records if "loss" in record)
    with torch.no_grad():
        model.config.pad_token_id = 0
        whole, plain = written_out(model, [data.groups], penalty), written_out(model, [data.groups], lambda mean, _: 0 * mean)
    assert logged["loss"] == pytest.approx(float(whole), rel=1e-4), "the loss that is reported is the true one"
    assert logged["loss/bsr"] == pytest.approx(float(whole - plain), rel=1e-4)
    assert logged["loss/bsr"] > 1e-3
    assert logged["bsr/pairs"] == 8
    assert logged["bsr/second_pass"] == float(compute is MANY_STREAMS or accumulated > 1)


def test_defect_a_the_released_form_is_a_penalty_of_each_micro_batch_and_changes_with_it(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model, found = random_set(8), tiny.classifier("llama"), []
    for size in (8, 4, 2):
        records: list[dict[str, Any]] = []
        trainer = {
            "per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "logging_steps": 1,
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        watch, _ = train(model, data, tmp_path, loss=bsr(bsr_scope="device"), compute=MANY_STREAMS, trainer=trainer, record=records.append)
        batches = [data.groups[start : start + size] for start in range(0, 8, size)]
        assert_same_gradients(watch.gradients[0], gradients(model, batches, mean_squared))
        logged = next(record for record in records if "loss" in record)
        assert logged["bsr/pairs"] == size
        found.append(logged["loss/bsr"])
    assert len({round(value, 3) for value in found}) == 3, "the same eight groups, another penalty"


def test_acceptance_3_without_a_weight_training_is_bradley_terry_to_the_bit(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    trained = []
    for loss in (Loss(**NOTHING), bsr(bsr=0.0, bsr_form="sum_squared", bsr_scope="device")):
        model = tiny.classifier("llama")
        settings = {"optim": "adamw_torch", "learning_rate": 1e-3}
        train(model, random_set(8), tmp_path, loss=loss, compute=MANY_STREAMS, trainer=settings, head=Head(init="keep"))
        trained.append(model.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


@pytest.mark.parametrize(("compute", "loss", "passes"), [(ONE_STREAM, bsr(), 1), (MANY_STREAMS, bsr(), 2), (MANY_STREAMS, bsr(bsr=0.0), 1)])
def test_a_second_pass_is_run_only_where_a_stream_does_not_know_the_sum(
    compute: Compute, loss: Loss, passes: int, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(8), tiny.classifier("llama")
    seen: list[int] = []
    family_of(model).layer_list(model)[0].register_forward_hook(lambda *_: seen.append(1))
    train(model, data, tmp_path, loss=loss, compute=compute, trainer={"per_device_train_batch_size": 8})
    streams = 1 if compute is ONE_STREAM else len(seen) // passes
    assert len(seen) == passes * streams
    assert (streams > 1) == (compute is MANY_STREAMS)


@pytest.mark.parametrize("noise", ["dropout", "random routing", "sampled rewards, and a term that draws too"])
def test_the_second_pass_sees_the_rewards_that_were_added_up(
    noise: str, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model, changes = tiny.classifier("llama"), {}
    if noise.startswith("sampled"):
        install_factors(model, factors := Factors(n_factors=8, dropout=0.3), seed=0)
        changes["auxiliaries"] = lambda model: [FactorDivergence(model, factors)]
    else:
        experts: dict[str, Any] = {"expert_dropout": 0.5} if noise == "dropout" else {"mixing": "random"}
        upcycle(model, Upcycle(n_experts=4, n_active=3, **experts))
    records: list[dict[str, Any]] = []
    trainer = {"per_device_train_batch_size": 8, "logging_steps": 1}
    data = random_set(8, sizes=(2,))
    train(model, data, tmp_path, loss=bsr(), compute=MANY_STREAMS, trainer=trainer, record=records.append, **changes)
    logged = next(record for record in records if "loss" in record)
    assert logged["bsr/second_pass"] == 1
    # Value and slope are of the two passes: they agree with the squared mean of the pass that trains only if both drew the same numbers.
    assert logged["loss/bsr"] == pytest.approx(LAMBDA * 8 * logged["reward/mean"] ** 2, rel=1e-4)


def test_a_resumed_run_ends_at_the_same_weights(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    def run(**changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        model, records = tiny.classifier("llama"), []
        settings = {
            "optim": "adamw_torch", "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 4,
            "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 3,
        }  # fmt: skip
        train(model, random_set(12), tmp_path, loss=bsr(), compute=MANY_STREAMS, trainer=settings, record=records.append, **changes)
        return model.state_dict(), records

    whole, logged = run()
    shutil.rmtree(tmp_path / "checkpoint-3")
    again, relogged = run(resume=True)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    names = ("loss", "loss/bsr", "bsr/pairs", "bsr/second_pass")
    (first,), (second,) = ([entry for entry in records if "loss" in entry] for records in (logged, relogged))
    assert {name: first[name] for name in names} == {name: second[name] for name in names}


def test_the_held_out_loss_leaves_the_penalty_out(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    losses = []
    for loss in (Loss(**NOTHING), bsr()):
        records: list[dict[str, Any]] = []
        train(tiny.classifier("llama"), random_set(4), tmp_path, held_out=random_set(4, seed=1), loss=loss, record=records.append)
        losses.append(next(record["eval_loss"] for record in records if "eval_loss" in record))
        assert not any("eval_loss/bsr" in record for record in records)
    assert losses[0] == losses[1]
