"""The divergence of factors from their priors as a term of the objective: by conversation, without pads, with every loss of a pair."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.errors import ModelError
from rewardproof.losses import weibull_gamma_kl
from rewardproof.models.factor_head import Factors, factor_head_of, install_factors
from rewardproof.models.heads import Head
from rewardproof.training.batches import Collator, Stream, TrainingSet
from rewardproof.training.factor_divergence import FactorDivergence
from rewardproof.training.fit import Compute, Fit, FitResult, fit
from rewardproof.training.objective import Loss, StepTotals, step_loss
from rewardproof.training.trainer import PackedRewardModule

K = 16


def with_factors(tiny: ModuleType, family: str = "llama", **settings: Any) -> tuple[PreTrainedModel, Factors]:
    model, factors = tiny.classifier(family), Factors(n_factors=K, **settings)
    install_factors(model, factors, seed=0)
    return model.eval(), factors


def module_of(model: PreTrainedModel, factors: Factors) -> PackedRewardModule:
    return PackedRewardModule(model, trunk=None, auxiliaries=[FactorDivergence(model, factors)]).eval()


def streams_of(data: TrainingSet, tokens_per_batch: int = 4096) -> list[Stream]:
    return list(Collator(tokens_per_batch=tokens_per_batch, cache=None).streams(data.groups))


def divergences_alone(model: PreTrainedModel, tokens: tuple[int, ...], prior: tuple[float, float], pads: int) -> Tensor:
    """Mean over factors at every token of one conversation, which is run with pads behind it; theirs are cut off."""
    ids, mask = [*tokens, *[0] * pads], [1] * len(tokens) + [0] * pads
    states = model.base_model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0, : len(tokens)]
    theta = factor_head_of(model).theta(states)
    return weibull_gamma_kl(theta.shape, theta.scale, prior_shape=prior[0], prior_rate=prior[1]).mean(dim=1)


@pytest.mark.parametrize("tokens_per_batch", [20, 4096])
@pytest.mark.parametrize(("kl_over", "family"), [("scored", "llama"), ("valid", "llama"), ("all", "llama"), ("all", "gpt2")])
def test_it_is_that_of_each_conversation_alone_and_pads_are_no_part_of_it(
    kl_over: str, family: str, tokens_per_batch: int, tiny: ModuleType, random_set: Callable[..., TrainingSet]
) -> None:
    prior = (2.0, 0.5)
    model, factors = with_factors(tiny, family, kl_over=kl_over, theta_prior=prior, phi_prior=(0.7, 3.0), kl_theta=0.3, kl_phi=0.2)
    data, module = random_set(6), module_of(model, factors)
    found, metrics = 0.0, dict.fromkeys(("factors/kl_theta", "factors/kl_phi"), 0.0)
    with torch.no_grad():
        for stream in streams_of(data, tokens_per_batch):
            (term,) = module(stream).auxiliary
            found += float(term.loss)
            metrics = {name: value + term.metrics[name] for name, value in metrics.items()}
        expected = 0.0
        for entry in data.groups:
            for number, tokens in enumerate(entry.group.conversations):
                kl_L = divergences_alone(model, tokens, prior, pads=number)
                value = {"scored": kl_L[-1], "valid": kl_L.mean(), "all": kl_L.sum()}[kl_over]
                expected += float(value) / len(entry.group.conversations)
        phi = factor_head_of(model).phi()
        of_phi = len(data) * float(weibull_gamma_kl(phi.shape, phi.scale, prior_shape=0.7, prior_rate=3.0).mean())
    assert metrics["factors/kl_theta"] == pytest.approx(expected, rel=1e-4)
    assert metrics["factors/kl_phi"] == pytest.approx(of_phi, rel=1e-5)
    assert found == pytest.approx(0.3 * expected + 0.2 * of_phi, rel=1e-4)


def test_only_the_published_sum_depends_on_length(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    """Where each token's state is the same, a sum over positions is their number times the value of one."""
    short, long = random_set(12, sizes=(2,)).groups[:2], random_set(12, sizes=(2,)).groups
    assert len(long) > len(short)
    for kl_over, grows in (("scored", False), ("valid", False), ("all", True)):
        model, factors = with_factors(tiny, kl_over=kl_over)
        head, term = factor_head_of(model), FactorDivergence(model, factors)
        state_D = torch.randn(model.config.hidden_size)
        with torch.no_grad():
            theta = head.theta(state_D)
            of_one = float(weibull_gamma_kl(theta.shape, theta.scale).mean())
            for entry in (*short, *long):
                batch = pack([entry.group], [entry.pairs])
                output = PackedRewardModule(model, trunk=None)(Stream(batch, None))
                states_TD = state_D.expand(batch.n_tokens, -1)
                flat = output._replace(states_CD=states_TD[:2], states_TD=states_TD if term.needs_tokens else None)
                found = term(flat, Stream(batch, None)).metrics["factors/kl_theta"]
                length = sum(len(tokens) for tokens in entry.group.conversations) / 2
                assert found == pytest.approx(of_one * (length if grows else 1), rel=1e-4)


@pytest.mark.parametrize("loss", [Loss(), Loss(label_smoothing=0.1), Loss(margin="data"), Loss(reward_l2=0, centering=0.01)])
def test_no_loss_of_a_pair_leaves_it_out(loss: Loss, tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    """The release's margin, label smoothing and positive regularisation have no divergence."""
    model, factors = with_factors(tiny, kl_theta=0.1, kl_phi=0.2)
    (stream,) = streams_of(random_set(5))
    with torch.no_grad():
        output = module_of(model, factors)(stream)
        whole = step_loss(output, stream.batch, loss, totals := StepTotals())
        pairs = step_loss(output._replace(auxiliary=()), stream.batch, loss, StepTotals())
    (term,) = output.auxiliary
    assert float(term.loss) > 0.1
    torch.testing.assert_close(whole, pairs + term.loss)
    names = {"factors/kl_theta", "factors/kl_phi", "factors/dead", "factors/in_effect", "factors/phi_travelled"}
    assert set(totals.auxiliary) == names <= set(totals.metrics())


def test_the_objective_of_a_step_is_the_published_one(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    """Bradley-Terry plus one weight for both divergences, θ's summed over positions; the release counts pads too."""
    model, factors = with_factors(tiny, kl_over="all", kl_theta=1e-5, kl_phi=1e-5)
    data = random_set(4, sizes=(2,))
    (stream,) = streams_of(data)
    with torch.no_grad():
        found = step_loss(module_of(model, factors)(stream), stream.batch, Loss(reward_l2=0), StepTotals()) / len(data)
        rewards = tiny.stock_rewards(model, [entry.group for entry in data.groups]).reshape(-1, 2)
        sums = [divergences_alone(model, tokens, (1.0, 1.0), 0).sum() for e in data.groups for tokens in e.group.conversations]
        phi = factor_head_of(model).phi()
        divergence = torch.stack(sums).mean() + weibull_gamma_kl(phi.shape, phi.scale).mean()
        torch.testing.assert_close(found, -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean() + 1e-5 * divergence, rtol=1e-4, atol=1e-6)


def train(model: PreTrainedModel, factors: Factors, data: TrainingSet, folder: Path, **changes: Any) -> tuple[list[dict], FitResult]:
    records: list[dict[str, Any]] = []
    trainer = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 1, **changes.pop("trainer", {})}
    settings: dict[str, Any] = {"layers": range(1, 3), "compute": Compute(precision="fp32"), "loss": Loss(reward_l2=0)}
    run = Fit(
        model=model,
        train=data,
        held_out=data,
        folder=folder,
        seed=0,
        trainer=trainer,
        head=Head(init="keep", learning_rate=1e-2),
        auxiliaries=lambda model: [FactorDivergence(model, factors)],
        record=records.append,
        **{**settings, **changes},
    )
    return records, fit(run)


def test_what_is_logged(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model, factors = with_factors(tiny, dictionary_init="release")
    start_K = factor_head_of(model).dictionary().detach().clone()
    records, _ = train(model, factors, random_set(12), tmp_path, trainer={"num_train_epochs": 2})
    logged = [entry for entry in records if "loss" in entry]
    assert logged[0]["factors/phi_travelled"] == 0
    assert all(entry["factors/dead"] >= float((start_K == 0).float().mean()) > 0.2 for entry in logged), "what starts dead stays so"
    assert all(1 <= entry["factors/in_effect"] <= K for entry in logged)
    way = [entry["eval_factors/phi_travelled"] for entry in records if "eval_factors/phi_travelled" in entry]
    end_K = factor_head_of(model).dictionary().detach()
    assert way[-1] == pytest.approx(float((end_K - start_K).norm() / start_K.norm()), rel=1e-4)
    assert way[0] < way[-1]
    assert not model.training
    assert not any("start_K" in name or "auxiliaries" in name for name in model.state_dict())


def test_gradients_do_not_depend_on_what_reads_the_head_twice(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    """The term reads the model's own head: it has no parameter of its own, and its gradient lands there."""
    model, factors = with_factors(tiny)
    term = FactorDivergence(model, factors)
    assert list(term.parameters()) == []
    (stream,) = streams_of(random_set(4))
    PackedRewardModule(model, trunk=None, auxiliaries=[term])(stream).auxiliary[0].loss.backward()
    head = factor_head_of(model)
    assert all(parameter.grad is not None for name, parameter in head.named_parameters() if name != "bias")


@pytest.mark.parametrize("save_steps", [1, 2])
def test_a_resumed_run_ends_at_the_same_weights(
    save_steps: int, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model, factors = with_factors(tiny, kl_over="valid")
    trainer = {"save_steps": save_steps, "save_strategy": "steps", "num_train_epochs": 2, "save_total_limit": 9}
    whole, again = copy.deepcopy(model), copy.deepcopy(model)
    train(whole, factors, random_set(12), tmp_path, trainer=trainer)
    for path in tmp_path.glob("checkpoint-*"):
        if int(path.name[11:]) > 2 * save_steps:
            shutil.rmtree(path)
    records, _ = train(again, factors, random_set(12), tmp_path, trainer=trainer, resume=True)
    assert [entry["step"] for entry in records if "loss" in entry] == list(range(2 * save_steps + 1, 7))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=0, rtol=0, msg=name)


LORA = {"r": 2, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@pytest.mark.parametrize("changes", [{"layers": range(3)}, {"layers": range(3, 3)}, {"lora": LORA}])
def test_what_trains(changes: dict[str, Any], tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model, factors = with_factors(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, factors, random_set(8), tmp_path, **changes)
    assert model.state_dict().keys() == before.keys()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith("score.") and not name.endswith(".bias")} <= changed
    backbone = {name for name in changed if not name.startswith("score.")}
    if "lora" in changes:
        assert backbone
        assert all(".layers.1." in name or ".layers.2." in name for name in backbone)
    else:
        assert bool(backbone) == bool(len(changes["layers"]))


def test_bf16_trains_and_the_head_stays_in_float32(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model, factors = with_factors(tiny)
    records, result = train(model, factors, random_set(12), tmp_path, compute=Compute(precision="bf16"), trainer={"num_train_epochs": 2})
    assert result.steps == 6
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in records if "loss" in entry)
    assert {parameter.dtype for parameter in factor_head_of(model).parameters()} == {torch.float32}


def test_a_stored_trunk_changes_nothing(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model, factors = with_factors(tiny, kl_over="all")
    stored, computed = copy.deepcopy(model), copy.deepcopy(model)
    train(stored, factors, random_set(8), tmp_path / "stored")
    train(computed, factors, random_set(8), tmp_path / "computed", compute=Compute(precision="fp32", trunk_cache_gb=0))
    for name, tensor in stored.state_dict().items():
        torch.testing.assert_close(computed.state_dict()[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_a_linear_head_has_no_divergence(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match="has a linear reward head, expected one of factors"):
        FactorDivergence(tiny.classifier("llama"), Factors())
