"""One training run: its gradients, its parameters, its rates; whatever streams, batches and caches it is cut into."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from rewardproof.errors import ConfigError
from rewardproof.models.families import family_of
from rewardproof.models.heads import Head
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.training.batches import TrainingSet
from rewardproof.training.callbacks import BestStateCallback
from rewardproof.training.fit import Compute, Fit, FitResult, fit
from rewardproof.training.objective import Loss
from rewardproof.training.trainer import PackedRewardModule

PAIRS_ALONE = Loss(reward_l2=0.0, router_balance=0.0)


class Watch(TrainerCallback):
    """Gradients of every optimiser step, the optimiser's groups, and the matrix precision while training."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.gradients: list[dict[str, Tensor]] = []
        self.rates: dict[str, tuple[float, float]] = {}
        self.matmul = ""

    def on_train_begin(self, *_: Any, optimizer: torch.optim.Optimizer, **__: Any) -> None:
        self.matmul = torch.get_float32_matmul_precision()
        groups = {id(parameter): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]}
        self.rates = {name.removeprefix("model."): groups[id(p)] for name, p in self.module.named_parameters() if id(p) in groups}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.gradients.append(
            {name.removeprefix("model."): p.grad.detach().clone() for name, p in self.module.named_parameters() if p.grad is not None}
        )


def train(model: PreTrainedModel, data: TrainingSet, folder: Path, **changes: Any) -> tuple[Watch, FitResult]:
    watching: list[Watch] = []

    def callbacks(module: PackedRewardModule) -> list[TrainerCallback]:
        watching.append(Watch(module))
        return list(watching)

    trainer = {
        "optim": "sgd", "learning_rate": 0.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4, "save_strategy": "no", **changes.pop("trainer", {}),
    }  # fmt: skip
    settings: dict[str, Any] = {
        "held_out": None, "layers": range(3), "seed": 0, "loss": PAIRS_ALONE, "compute": Compute(precision="fp32"),
        "head": Head(init="keep", learning_rate=0.0),
    }  # fmt: skip
    result = fit(Fit(model=model, train=data, folder=folder, trainer=trainer, callbacks=callbacks, **{**settings, **changes}))
    return watching[0], result


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 1e-4 in norm, parameter by parameter; gradients that are zero to rounding are not compared with each other."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.norm()) for tensor in expected.values())
    assert largest > 1e-2
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm()) <= 1e-4 * float(tensor.norm()) + 1e-7 * largest, name


def stock_gradients(model: PreTrainedModel, data: TrainingSet) -> dict[str, Tensor]:
    """Bradley-Terry by the stock classifier on right-padded rows: a group's pairs averaged, groups averaged."""
    model = copy.deepcopy(model)
    model.config.pad_token_id = 0
    total = torch.zeros(())
    for entry in data.groups:
        longest = max(len(tokens) for tokens in entry.group.conversations)
        rows = [(*tokens, *[0] * (longest - len(tokens))) for tokens in entry.group.conversations]
        ids = torch.tensor(rows)
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in entry.group.conversations])
        rewards = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        losses = torch.stack([-F.logsigmoid(rewards[pair.winner] - rewards[pair.loser]) for pair in entry.pairs])
        total = total + losses.mean() / len(data)
    total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("tokens_per_batch", [20, 100_000])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi3"])
def test_gradients_of_a_step_are_those_of_stock_padded_bradley_terry(
    tiny: ModuleType, family: str, tokens_per_batch: int, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(8), tiny.classifier(family)
    compute = Compute(precision="fp32", tokens_per_batch=tokens_per_batch)
    watch, result = train(model, data, tmp_path, compute=compute, trainer={"per_device_train_batch_size": 8})
    assert result.steps == len(watch.gradients) == 1
    assert_same_gradients(watch.gradients[0], stock_gradients(model, data))


def test_gradients_of_a_mixture_do_not_depend_on_the_streams(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    found = []
    for tokens_per_batch in (20, 100_000):
        compute = Compute(precision="fp32", tokens_per_batch=tokens_per_batch)
        watch, _ = train(model, random_set(8), tmp_path, compute=compute, trainer={"per_device_train_batch_size": 8})
        found.append(watch.gradients[0])
    assert any("router" in name for name in found[0])
    assert_same_gradients(*found)


def test_accumulated_half_batches_are_one_batch(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data, trained = random_set(8), []
    for size, accumulated in ((4, 1), (2, 2), (1, 4)):
        model = tiny.classifier("llama")
        settings = {
            "optim": "adamw_torch",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulated,
        }
        _, result = train(model, data, tmp_path, trainer=settings, head=Head(init="keep", learning_rate=1e-2))
        assert result.steps == 2
        trained.append(model.state_dict())
    start = tiny.classifier("llama").state_dict()
    assert any(not torch.equal(start[name], trained[0][name]) for name in start)
    for other in trained[1:]:
        for name, tensor in trained[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "accumulated"), [(4, 1), (2, 2)])
def test_the_last_batch_is_divided_by_its_own_groups(
    tiny: ModuleType, size: int, accumulated: int, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, model = random_set(5), tiny.classifier("llama")
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    watch, result = train(model, data, tmp_path, trainer=settings)
    assert result.steps == 2
    four, one = watch.gradients
    total = {name: (4 * four[name] + one[name]) / 5 for name in four}
    assert_same_gradients(total, stock_gradients(model, data))


def test_rates_reach_their_parts(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    settings = {"learning_rate": 1e-4, "weight_decay": 0.1, "optim": "adamw_torch"}
    watch, _ = train(
        model, random_set(4), tmp_path, trainer=settings, head=Head(init="keep", learning_rate=1e-2), router_learning_rate=1e-3
    )
    expected = {
        name: (1e-3, 0.0) if "router" in name else (1e-2, 0.0) if name == "score.weight" else (1e-4, 0.1)
        for name, _ in model.named_parameters()
    }
    assert watch.rates == expected
    assert sum("router" in name for name in watch.rates) == 3


def test_only_the_head_moves_when_only_the_head_has_a_rate(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, random_set(4), tmp_path, head=Head(init="keep", learning_rate=0.1))
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == ["score.weight"]


def test_top_one_trains_the_last_layer_the_final_norm_and_the_head(
    tiny: ModuleType, any_family: str, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model = tiny.classifier(any_family)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    last = family_of(model).layers + ".2."
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2}
    _, result = train(model, random_set(4), tmp_path, layers=range(2, 3), trainer=settings, head=Head(init="keep", learning_rate=1e-2))
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    norms = {f"{family_of(model).layers.rpartition('.')[0]}.{name}" for name in ("norm.weight", "ln_f.weight", "ln_f.bias")}
    norms |= {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"}
    expected = {name for name in before if name.startswith(last) or name in norms or name == "score.weight"}
    blind = {name for name in before if name.endswith(("k_proj.bias",))}  # softmax does not see a constant added to all keys
    assert changed - blind == expected - blind
    assert changed & norms
    assert result.trainable_parameters == sum(before[name].numel() for name in expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "experts"),
    [("llama", ""), ("gemma2", ""), ("gemma3", ""), ("gpt2", ""), ("gpt_neox", ""), ("llama", "full"), ("llama", "lora:2")],
)
def test_the_trunk_cache_changes_nothing(
    tiny: ModuleType, family: str, experts: str, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    trained, calls = [], []
    for cache_gb in (20.0, 0.0):
        model = tiny.classifier(family)
        if experts:
            upcycle(model, Upcycle(n_experts=4, n_active=3, experts=experts), layers=range(2, 3))
        seen: list[int] = []
        family_of(model).layer_list(model)[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        compute = Compute(precision="fp32", trunk_cache_gb=cache_gb, tokens_per_batch=100)
        settings = {"learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 3}
        train(
            model,
            random_set(7, seed=5),
            tmp_path,
            layers=range(2, 3),
            trainer=settings,
            head=Head(init="keep", learning_rate=1e-2),
            compute=compute,
        )
        trained.append(model.state_dict())
        calls.append(len(seen))
    assert calls[0] < calls[1], "with the cache the frozen layers must not run in every step"
    start = tiny.classifier(family).state_dict()
    assert not torch.allclose(start["score.weight"], trained[0]["score.weight"], atol=1e-4)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=1e-5, rtol=1e-5)


def test_the_trunk_cache_is_left_out_when_it_does_not_fit(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.classifier("llama", seed=77)
    train(model, random_set(4), tmp_path, layers=range(2, 3), compute=Compute(precision="fp32", trunk_cache_gb=1e-6))
    assert "exceed trunk_cache_gb=1e-06; running them every step" in caplog.text


def test_a_tf32_run_restores_the_matrix_precision(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    watch, _ = train(tiny.classifier("llama"), random_set(4), tmp_path, compute=Compute(precision="tf32"))
    assert watch.matmul == "medium"
    assert torch.get_float32_matmul_precision() == "highest"

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(tiny.classifier("llama"), random_set(4), tmp_path, compute=Compute(precision="tf32"), progress=fail)
    assert torch.get_float32_matmul_precision() == "highest"


def test_bf16_keeps_float32_masters(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model = tiny.classifier("llama")
    before = model.score.weight.detach().clone()
    watch, _ = train(model, random_set(4), tmp_path, compute=Compute(precision="bf16"), head=Head(init="keep", learning_rate=1e-6))
    assert all(gradient.dtype == torch.float32 for gradient in watch.gradients[0].values())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    moved = (model.score.weight.detach() - before).abs().max()
    assert 0 < float(moved) < 1e-4, "an update far below a bf16 ulp must survive"
    exact, _ = train(tiny.classifier("llama"), random_set(4), tmp_path)
    gap = watch.gradients[0]["score.weight"] - exact.gradients[0]["score.weight"]
    assert 1e-5 < float(gap.norm() / exact.gradients[0]["score.weight"].norm()) < 0.1, "bf16 must have been on, and be close"


def test_heads_start_as_told(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data = random_set(12, sizes=(2,))
    heads = {}
    for init in ("zero", "normal", "probe"):
        model = tiny.classifier("llama")
        torch.nn.init.zeros_(model.score.weight)
        fit(
            Fit(model=model, train=data, held_out=None, layers=range(3), folder=tmp_path, seed=3, trainer={"num_train_epochs": 0},
                loss=PAIRS_ALONE, compute=Compute(precision="fp32"), head=Head(init=init))
        )  # fmt: skip
        heads[init] = model.score.weight.detach().clone()
    assert float(heads["zero"].abs().max()) == 0
    assert float(heads["normal"].std()) == pytest.approx(32**-0.5, rel=0.4)
    model = tiny.classifier("llama")
    with torch.no_grad():
        model.score.weight.copy_(heads["probe"])
        right = sum(
            float(model(input_ids=torch.tensor([entry.group.conversations[0]])).logits)
            > float(model(input_ids=torch.tensor([entry.group.conversations[1]])).logits)
            for entry in data.groups
        )
    assert right >= 11, "a probe on 12 pairs in 32 dimensions fits nearly all of them"


def test_lora_trains_adapters_and_the_head_and_leaves_a_stock_model(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 3}
    _, result = train(
        model, random_set(4), tmp_path, layers=range(1, 3), lora=lora, trainer=settings, head=Head(init="keep", learning_rate=1e-2)
    )
    after = model.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: tensor.shape for name, tensor in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {f"model.layers.{layer}.self_attn.{part}.weight" for layer in (1, 2) for part in ("q_proj", "v_proj")} | {"score.weight"}
    assert changed == expected
    assert result.trainable_parameters < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"learning_rte": 1.0}}, "Bad `trainer:` settings: .*learning_rte.*TrainingArguments; correct the key"),
        ({"trainer": {"lr_scheduler_type": "wavy"}}, "Bad `trainer:` settings: .*wavy"),
        ({"trainer": {"eval_strategy": "steps"}}, "eval_strategy=steps: nothing is held out .*give eval_data= or split="),
        ({"lora": {"rank": 3}}, "Bad `lora:` settings: .*rank.*peft.LoraConfig; correct the key"),
    ],
)
def test_settings_that_are_refused(
    changes: dict[str, Any], message: str, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny.classifier("llama"), random_set(4), tmp_path, **changes)


def test_nothing_to_train_on(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No ordered pairs to train on.*counts of dropped rows"):
        train(tiny.classifier("llama"), TrainingSet([]), tmp_path)


def test_the_log_holds_what_the_contract_promises(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    model, records = tiny.classifier("llama"), []
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    settings = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1}
    train(model, random_set(8), tmp_path, held_out=random_set(3, seed=1), trainer=settings, record=records.append, loss=Loss())
    training = [record for record in records if "loss" in record]
    evaluation = [record for record in records if "eval_loss" in record]
    assert len(training) == len(evaluation) == 2
    names = {
        "pair/accuracy",
        "reward/gap",
        "reward/mean",
        "reward/std",
        "reward/length_correlation",
        "router/shared_weight",
        "router/entropy",
        "router/load_max",
    }
    assert names | {"loss/balance", "tokens_per_second"} <= training[0].keys()
    assert {f"eval_{name}" for name in names} <= evaluation[0].keys()
    assert evaluation[0]["eval_loss"] == pytest.approx(evaluation[1]["eval_loss"]), "nothing trains at a rate of zero"


def test_best_state_callback_keeps_the_best_and_stops() -> None:
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    callback = BestStateCallback(module, patience=2)

    class Control:
        should_training_stop = False

    class State:
        global_step = 0

    stops = []
    for step, loss in enumerate([1.0, 0.5, 0.7, 0.4, 0.4, 0.6, 0.9]):
        with torch.no_grad():
            module.weight.fill_(step)
            module.bias.fill_(step)
        State.global_step = step
        callback.on_evaluate(None, State, Control, {"eval_loss": loss})
        stops.append(Control.should_training_stop)
        if stops[-1]:
            break
    assert stops == [False, False, False, False, False, True], "patience counts from the last best; a tie is no new best"
    assert (callback.best_step, callback.best_loss) == (3, 0.4)
    callback.restore()
    assert (float(module.weight.detach()), float(module.bias.detach())) == (3.0, 5.0), "only what trains is put back"


def test_delta_and_full_blocks_are_found_by_layer(tiny: ModuleType) -> None:
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3), layers=range(1, 3))
    assert list(moe_blocks(model)) == [1, 2]
