"""The policy's loss beside the reward head's: brute force through stock models, its reference, its head, its turns, its log."""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from rewardproof.data.pairs import Pair
from rewardproof.errors import CheckpointError, ConfigError
from rewardproof.models.checkpoints import load_base
from rewardproof.models.cost import products_per_token
from rewardproof.models.heads import Head
from rewardproof.models.language_head import load_language_head
from rewardproof.training.batches import TrainingGroup, TrainingSet
from rewardproof.training.fit import Compute, Fit, FitResult, fit
from rewardproof.training.objective import Loss
from rewardproof.training.policy_loss import JUDGES, POLICY_LOSSES, Alternate, Answers, PolicyLoss, PolicyTerm
from rewardproof.training.reference import FILE
from rewardproof.training.trainer import PackedRewardModule, RewardTrainer

PLAIN = Loss(reward_l2=0.0)
LOG_2 = math.log(2)


class Watch(TrainerCallback):
    """Gradients and weights of every optimiser step."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.weights.append({name: parameter.detach().clone() for name, parameter in self.module.named_parameters()})

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.gradients.append({name: p.grad.detach().clone() for name, p in self.module.named_parameters() if p.grad is not None})

    on_train_end = on_step_begin


class Run:
    """A run on a tiny language model and what it left."""

    def __init__(
        self, base: Path, tiny: ModuleType, data: TrainingSet, folder: Path, policy: PolicyLoss | None = None, **changes: Any
    ) -> None:
        self.model: PreTrainedModel = load_base(str(base), tiny.word_tokenizer())
        self.terms: list[PolicyTerm] = []
        self.records: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.said: dict[str, Any] = {}
        self.watch: Watch | None = None
        self.policy, self.base, self.smoothing = policy, base, changes.pop("label_smoothing", 0.0)
        trainer = {
            "learning_rate": 0.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "logging_steps": 1,
            "per_device_train_batch_size": 4, "save_strategy": "no", **changes.pop("trainer", {}),
        }  # fmt: skip
        settings: dict[str, Any] = {
            "held_out": None, "layers": range(3), "seed": 0, "loss": PLAIN, "compute": Compute(precision="fp32", tokens_per_batch=60),
            "head": Head(learning_rate=trainer["learning_rate"]),
        }  # fmt: skip
        self.settings = Fit(
            model=self.model, train=data, folder=folder, trainer=trainer, auxiliaries=self._terms, callbacks=self._callbacks,
            record=self.records.append, progress=lambda what, *_: self.asked.append(what), **{**settings, **changes},
        )  # fmt: skip
        self.result: FitResult = fit(self.settings)

    def _terms(self, model: PreTrainedModel) -> list[PolicyTerm]:
        if self.policy is None:
            return []
        head = load_language_head(str(self.base), model, kind=self.policy.lm_head)
        judge = lambda said: self.said.update(said) or {"judged": len(said["reward"])}  # noqa: E731
        self.terms = [PolicyTerm(self.policy, head, label_smoothing=self.smoothing, judge=judge)]
        return self.terms

    def _callbacks(self, module: PackedRewardModule) -> list[TrainerCallback]:
        self.watch = Watch(module)
        turns = [Alternate(module, self.policy.alternate)] if self.policy and self.policy.alternate else []
        return [*turns, self.watch]

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.records if name in entry]

    @property
    def evaluated(self) -> dict[str, Any]:
        return [entry for entry in self.records if "eval_loss" in entry][-1]

    @property
    def weights(self) -> dict[str, Tensor]:
        assert self.watch is not None
        return self.watch.weights[-1]


@pytest.fixture
def run(tiny: ModuleType, tmp_path: Path) -> Callable[..., Run]:
    numbers = iter(range(100))

    def make(base: Path, data: TrainingSet, policy: PolicyLoss | None = None, **changes: Any) -> Run:
        return Run(base, tiny, data, changes.pop("folder", tmp_path / str(next(numbers))), policy, **changes)

    return make


@pytest.fixture(params=["untied", "tied"])
def base(request: pytest.FixtureRequest, base_dir: Path, tied_dir: Path) -> Path:
    return tied_dir if request.param == "tied" else base_dir


def stock_answers(causal: PreTrainedModel, group: Any) -> Tensor:
    """Log-probability of every answer of a group, one by one, in a graph."""
    found = []
    for tokens, start in zip(group.conversations, group.answer_starts, strict=True):
        ids = torch.tensor([tokens])
        log_probs = causal(input_ids=ids).logits[0].log_softmax(dim=-1)
        first = max(start, 1)
        found.append(log_probs[first - 1 : -1].gather(1, ids[0, first:, None]).sum())
    return torch.stack(found)


def stock_causal(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")


# Acceptance tests of the method.


def test_acceptance_a_weight_of_zero_is_bradley_terry(base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]) -> None:
    rates = {"trainer": {"learning_rate": 1e-2}}
    without = run(base, random_set(12), None, **rates)
    found = run(base, random_set(12), PolicyLoss(weight=0.0), **rates)
    assert found.logged("loss") == without.logged("loss")
    for name, tensor in without.weights.items():
        assert torch.equal(found.weights[name], tensor), name
    assert found.result.steps == 3


@pytest.mark.parametrize(
    ("form", "expected"),
    [("dpo", LOG_2), ("hinge", 1.0), ("ipo", 25.0), ("ipo_sqrt", 2.5), ("ipo_full", 0.25)],
)
def test_acceptance_the_term_at_initialisation_is_that_of_no_gap(
    form: str, expected: float, base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    found = run(base_dir, random_set(12), PolicyLoss(form=form))  # pyright: ignore[reportArgumentType]
    assert found.logged("loss/policy") == pytest.approx([expected] * 3, rel=1e-4)
    assert found.logged("policy/implicit_gap") == pytest.approx([0.0] * 3, abs=1e-3)


def test_acceptance_a_head_of_zeros_starts_bradley_terry_at_log_2_and_is_the_head_that_is_read(
    base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    found = run(base, random_set(4), PolicyLoss(weight=0.2))
    assert not found.model.get_submodule("score").weight.any()
    assert found.logged("loss")[0] - 0.2 * found.logged("loss/policy")[0] == pytest.approx(LOG_2, abs=1e-6)
    assert found.logged("reward/std") == [0.0]


def test_the_published_weights_are_the_defaults() -> None:
    settings = PolicyLoss()
    assert (settings.form, settings.weight, settings.tau, settings.alternate, settings.lm_head) == ("dpo", 0.2, 0.1, 0, "auto")


# The loss itself.


def test_every_form_has_a_name_and_every_name_a_form() -> None:
    assert set(get_args(PolicyLoss.model_fields["form"].annotation)) == set(POLICY_LOSSES)


@pytest.mark.parametrize("form", POLICY_LOSSES)
def test_forms_are_those_of_the_table(form: str) -> None:
    torch.manual_seed(0)
    numbers = 20 * torch.randn(4, 50, dtype=torch.float64)
    lengths = torch.randint(1, 9, (2, 50))
    chosen, rejected = Answers(numbers[0], numbers[1], lengths[0]), Answers(numbers[2], numbers[3], lengths[1])
    tau = 0.1
    table: dict[str, Callable[[float, float, float, int, int], float]] = {
        "dpo": lambda gap, *_: math.log1p(math.exp(-tau * gap)),
        "hinge": lambda gap, *_: max(0.0, 1 - tau * gap),
        "ipo": lambda gap, *_: (gap - 1 / (2 * tau)) ** 2,
        "ipo_sqrt": lambda gap, *_: tau * (gap - 1 / (2 * tau)) ** 2,
        "ipo_full": lambda gap, *_: (tau * gap - 0.5) ** 2,
        "slic": lambda _gap, better, *_: -better,
        "simpo": lambda _gap, better, worse, long, short: math.log1p(math.exp(-tau * (better / long - worse / short))),
    }
    gaps = (numbers[0] - numbers[1]) - (numbers[2] - numbers[3])
    rows = zip(gaps.tolist(), numbers[0].tolist(), numbers[2].tolist(), *lengths.tolist(), strict=True)
    expected = torch.tensor([table[form](*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(POLICY_LOSSES[form](chosen, rejected, tau), expected)
    moved = numbers[0].clone().requires_grad_()
    POLICY_LOSSES[form](chosen._replace(log_prob_P=moved), rejected, 1e-3).sum().backward()
    assert moved.grad is not None
    assert bool((moved.grad < 0).all()), "a likelier preferred answer costs less, before any target is reached"


def test_gradients_of_a_step_are_those_of_stock_models_one_by_one(
    base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    data = random_set(6)
    trainer = {"per_device_train_batch_size": 6}
    found = run(base, data, PolicyLoss(weight=0.7, tau=0.3), trainer=trainer, head=Head(init="normal", learning_rate=0.0), head_seed=3)
    causal, reference = stock_causal(base), stock_causal(base)
    score = found.model.get_submodule("score").weight.detach().clone().requires_grad_()
    total = torch.zeros(())
    for entry in data.groups:
        log_probs, before = stock_answers(causal, entry.group), stock_answers(reference, entry.group).detach()
        ends = [causal.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in entry.group.conversations]
        rewards = torch.stack([score[0] @ end for end in ends])
        terms = []
        for pair in entry.pairs:
            gap = (log_probs - before)[pair.winner] - (log_probs - before)[pair.loser]
            terms.append(-F.logsigmoid(rewards[pair.winner] - rewards[pair.loser]) - 0.7 * F.logsigmoid(0.3 * gap))
        total = total + torch.stack(terms).mean() / len(data)
    total.backward()
    expected = {f"model.model.{name}": parameter.grad for name, parameter in causal.base_model.named_parameters()}
    expected["model.score.weight"] = score.grad
    if not causal.config.tie_word_embeddings:
        expected["auxiliaries.0.head.own.weight"] = causal.get_output_embeddings().weight.grad
    assert found.watch is not None
    (gradients,) = found.watch.gradients
    assert gradients.keys() == expected.keys()
    assert found.logged("loss") == pytest.approx([float(total.detach())], rel=1e-4)
    for name, tensor in expected.items():
        assert tensor is not None
        assert float((gradients[name] - tensor).norm()) <= 2e-4 * float(tensor.norm()) + 1e-6, name


def test_a_frozen_head_of_a_tied_model_moves_the_embedding_by_its_inputs_alone(
    tied_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    used = {tokens for entry in random_set(4).groups for conversation in entry.group.conversations for tokens in conversation}
    unseen = sorted(set(range(96)) - used)
    assert unseen
    name = "model.model.embed_tokens.weight"
    for kind, moves in (("frozen", False), ("tied", True)):
        found = run(tied_dir, random_set(4), PolicyLoss(lm_head=kind))  # pyright: ignore[reportArgumentType]
        assert found.watch is not None
        assert bool(found.watch.gradients[0][name][unseen].any()) == moves, "a head's gradient reaches words that no text holds"


def test_streams_and_stored_layers_change_nothing(base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]) -> None:
    policy, rates = PolicyLoss(lm_head="own"), {"learning_rate": 1e-2}
    stored = run(base_dir, random_set(8), policy, layers=range(1, 3), trainer=rates)
    compute = Compute(precision="fp32", tokens_per_batch=10_000, trunk_cache_gb=0)
    plain = run(base_dir, random_set(8), policy, layers=range(1, 3), trainer=rates, compute=compute)
    assert plain.result.steps == 2
    for name in stored.weights:
        torch.testing.assert_close(stored.weights[name], plain.weights[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)
    initial = stock_causal(base_dir).get_output_embeddings().weight.detach()
    assert float((plain.weights["auxiliaries.0.head.own.weight"] - initial).norm()) > 0.01


def test_a_doubted_label_is_doubted_by_both_heads(base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]) -> None:
    entries = random_set(4, sizes=(2,)).groups

    def with_pair(pair: Pair) -> TrainingSet:
        return TrainingSet([TrainingGroup(entry.group, (pair,)) for entry in entries])

    policy = PolicyLoss(form="slic")
    flipped = run(base_dir, with_pair(Pair(1, 0, None)), policy).logged("loss/policy")
    assert run(base_dir, with_pair(Pair(0, 1, None)), policy).logged("loss/policy") != pytest.approx(flipped)
    assert run(base_dir, with_pair(Pair(0, 1, None, doubt=1.0)), policy).logged("loss/policy") == pytest.approx(flipped)
    assert run(base_dir, with_pair(Pair(0, 1, None)), policy, label_smoothing=1.0).logged("loss/policy") == pytest.approx(flipped)


# What is logged and reported.


def test_the_logged_loss_is_before_its_weight_and_of_every_group_of_a_step(
    base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    data = random_set(8)
    found = [
        run(base_dir, data, PolicyLoss(form="slic", weight=weight), trainer={"per_device_train_batch_size": 8}) for weight in (0.2, 1.0)
    ]
    first, second = (entry.logged("loss/policy")[0] for entry in found)
    causal = stock_causal(base_dir)
    each = []
    with torch.no_grad():
        for entry in data.groups:
            log_probs = stock_answers(causal, entry.group)
            each.append(-torch.stack([log_probs[pair.winner] for pair in entry.pairs]).mean())
    assert first == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert first == second
    assert found[0].logged("loss")[0] - LOG_2 == pytest.approx(0.2 * first, rel=1e-5)
    assert found[1].logged("loss")[0] - LOG_2 == pytest.approx(first, rel=1e-5)


def test_half_precision_rounds_neither_loss_nor_log(
    base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    found = run(
        base_dir, random_set(7), PolicyLoss(tau=1e-5), compute=Compute(precision="bf16"), trainer={"per_device_train_batch_size": 7}
    )
    assert found.logged("loss/policy") == pytest.approx([LOG_2], abs=1e-5), "bf16 holds 0.691 and 0.695, and nothing between"


def test_three_accuracies_are_logged_apart(base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]) -> None:
    data = random_set(10, sizes=(2,))
    found = run(base_dir, data, PolicyLoss(), held_out=data, trainer={"learning_rate": 1e-2, "num_train_epochs": 4})
    last = found.evaluated
    causal = stock_causal(base_dir)
    with torch.no_grad():
        before = torch.stack([stock_answers(causal, entry.group) for entry in data.groups])
        causal.base_model.load_state_dict(found.model.base_model.state_dict())
        causal.get_output_embeddings().weight.copy_(found.weights["auxiliaries.0.head.own.weight"])
        after = torch.stack([stock_answers(causal, entry.group) for entry in data.groups])
    shares = {
        "eval_policy/log_prob_accuracy": (after[:, 0] > after[:, 1]).float().mean(),
        "eval_policy/implicit_accuracy": ((after - before)[:, 0] > (after - before)[:, 1]).float().mean(),
    }
    for name, share in shares.items():
        assert last[name] == pytest.approx(float(share)), name
    gaps = (after - before)[:, 0] - (after - before)[:, 1]
    assert last["eval_policy/implicit_gap"] == pytest.approx(float(gaps.mean()), rel=1e-3)
    assert last["eval_loss/policy"] == pytest.approx(float(-F.logsigmoid(0.1 * gaps).mean()), rel=1e-3)
    assert 0 <= last["eval_pair/accuracy"] <= 1


@pytest.mark.parametrize("layers", [range(3), range(2, 3)])
def test_what_is_said_of_whole_groups_at_the_end(
    layers: range, base_dir: Path, random_set: Callable[..., TrainingSet], random_groups: Callable[..., Any], run: Callable[..., Run]
) -> None:
    judged = random_groups(7, seed=5)
    found = run(base_dir, random_set(4), PolicyLoss(lm_head="frozen"), judged=judged, layers=layers, trainer={"learning_rate": 1e-2})
    assert found.result.found["policy"]["judged"] == 7
    assert tuple(found.said) == JUDGES
    causal = stock_causal(base_dir)
    with torch.no_grad():
        before = [stock_answers(causal, group) for group in judged]
        causal.base_model.load_state_dict(found.model.base_model.state_dict())
        for number, group in enumerate(judged):
            after = stock_answers(causal, group)
            torch.testing.assert_close(torch.tensor(found.said["log_prob"][number]), after, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(torch.tensor(found.said["implicit"][number]), after - before[number], atol=2e-3, rtol=1e-3)
            ends = [causal.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in group.conversations]
            rewards = torch.stack(ends) @ found.model.get_submodule("score").weight[0]
            torch.testing.assert_close(torch.tensor(found.said["reward"][number]), rewards, atol=1e-3, rtol=1e-3)


def test_operations_count_the_heads_products_and_the_reference(
    base_dir: Path, tiny: ModuleType, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    data = random_set(8)
    trainer = {"num_train_epochs": 3, "per_device_train_batch_size": 4}
    without = run(base_dir, data, None, trainer=trainer).result
    tokens = sum(entry.group.n_tokens for entry in data.groups)
    pairs = [pair for entry in data.groups for pair in zip(entry.group.conversations, entry.group.answer_starts, strict=True)]
    answers = sum(len(conversation) - start for conversation, start in pairs)
    vocabulary, width = stock_causal(base_dir).get_output_embeddings().weight.shape
    once = 2 * products_per_token(tiny.classifier("llama")) * tokens + 2 * vocabulary * width * answers
    for kind, factor in (("own", 8), ("frozen", 6)):
        found = run(base_dir, data, PolicyLoss(lm_head=kind), trainer=trainer).result  # pyright: ignore[reportArgumentType]
        extra = factor * vocabulary * width * answers * 3 + once
        assert found.tflops - without.tflops == pytest.approx(extra / 1e12, rel=1e-6)
        assert found.trainable_parameters - without.trainable_parameters == (vocabulary * width if kind == "own" else 0)


# The reference.


def reference_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / FILE).read_text())


STEPS = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_a_resumed_run_has_the_initial_models_reference_and_ends_at_the_same_weights(
    lost: bool, base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    data, more = random_set(12), {"held_out": random_set(3, seed=9), "folder": folder, "trainer": STEPS, "layers": range(1, 3)}
    whole = run(base, data, PolicyLoss(weight=1.0), **more)
    known = reference_of(folder)
    shutil.rmtree(folder / "checkpoint-3")
    if lost:
        (folder / FILE).unlink()
    again = run(base, data, PolicyLoss(weight=1.0), **more, resume=True)
    assert [entry["step"] for entry in again.records if "loss" in entry] == [3]
    assert ("reference log-probabilities" in again.asked) == lost, "asked once, and then kept"
    assert reference_of(folder) == known
    causal = stock_causal(base)
    with torch.no_grad():
        for entry in [*data.groups, *more["held_out"].groups]:
            torch.testing.assert_close(again.terms[0].reference.of([entry.group]), stock_answers(causal, entry.group), atol=1e-3, rtol=1e-4)
        trained = copy.deepcopy(causal)
        trained.base_model.load_state_dict(whole.model.base_model.state_dict())
        moved = [stock_answers(trained, entry.group) - again.terms[0].reference.of([entry.group]) for entry in data.groups]
    assert float(torch.cat(moved).abs().max()) > 0.1, "the trained model's are others"
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(again.weights[name], tensor, atol=0, rtol=0)


def test_a_reference_that_cannot_be_read_is_an_error(
    base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_text('{"abc": 1.0, "de')
    with pytest.raises(CheckpointError, match=r"reference.json cannot be read .*expected the log-probabilities.*Delete it"):
        run(base_dir, random_set(4), PolicyLoss(), folder=tmp_path / "run")


# Which weights train.


def test_under_lora_the_reward_head_trains_and_the_language_head_as_asked(
    base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    initial = stock_causal(base).get_output_embeddings().weight
    for kind, trains in (("auto", False), ("own", True)):
        found = run(base, random_set(12), PolicyLoss(lm_head=kind), lora={"r": 2}, trainer={"learning_rate": 1e-2})  # pyright: ignore
        assert found.model.get_submodule("score").weight.any(), "it started at zero"
        assert found.result.found["policy"]["lm_head"]["trains"] == trains
        own = found.terms[0].head.own
        assert (own is not None and not torch.equal(own.weight, initial)) == trains
        assert torch.equal(found.model.get_input_embeddings().weight, initial) or base.name.startswith("base")
        changed = {name for name, tensor in found.weights.items() if found.watch and not torch.equal(tensor, found.watch.weights[0][name])}
        assert any("lora" in name for name in changed)


def test_with_the_top_layers_alone_the_language_head_stays(
    base: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]
) -> None:
    found = run(base, random_set(8), PolicyLoss(), layers=range(2, 3), trainer={"learning_rate": 1e-2})
    assert found.watch is not None
    changed = {name for name, tensor in found.weights.items() if not torch.equal(tensor, found.watch.weights[0][name])}
    assert changed
    assert all(".layers.2." in name or name in {"model.model.norm.weight", "model.score.weight"} for name in changed)


def test_heads_take_turns_and_who_rests_stays(base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run]) -> None:
    found = run(base_dir, random_set(24), PolicyLoss(alternate=2), trainer={"learning_rate": 1e-2}, held_out=random_set(4))
    assert found.watch is not None
    moved = {
        name: [not torch.equal(one[name], two[name]) for one, two in itertools.pairwise(found.watch.weights)]
        for name in ("model.score.weight", "auxiliaries.0.head.own.weight", "model.model.layers.2.mlp.up_proj.weight")
    }
    assert list(moved.values()) == [
        [False, False, True, True, False, False],
        [True, True, False, False, True, True],
        [True] * 6,
    ]
    policy, losses = found.logged("loss/policy"), found.logged("loss")
    assert losses[0] == pytest.approx(0.2 * policy[0], rel=1e-5)
    assert losses[4] == pytest.approx(0.2 * policy[4], rel=1e-5)
    assert losses[2] == pytest.approx(LOG_2, rel=1e-2)
    last = found.evaluated
    assert last["eval_loss"] > 0.2 * last["eval_loss/policy"] + 0.1, "judged by both"


def test_parts_of_a_head_on_several_processes_are_refused(
    base_dir: Path, random_set: Callable[..., TrainingSet], run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharded(RewardTrainer):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.is_fsdp_enabled = True

    monkeypatch.setattr("rewardproof.training.fit.RewardTrainer", Sharded)
    with pytest.raises(
        ConfigError, match=r"Got PolicyTerm with FSDP or DeepSpeed, expected DDP or one process.*Use examples/launch/ddp.yaml"
    ):
        run(base_dir, random_set(4), PolicyLoss())
