"""Merging a mixture back: the dense model at the start, the exact sum later, and the routing that the coefficients come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import pack
from rewardproof.errors import ConfigError, ModelError
from rewardproof.merging import coefficients
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import (
    FoldedBlock,
    Merge,
    RoutingMass,
    measure_routing,
    merge_experts,
    put_folded_blocks,
    restore_blocks,
    starting_coefficients,
    unmeasured_coefficients,
)
from rewardproof.models.experts import UpcycledSparseMoeBlock
from rewardproof.models.families import family_of
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.routing import Router
from rewardproof.models.upcycling import CONFIG_KEY, Upcycle, is_upcycled, moe_blocks, upcycle

KINDS = ("full", "lora:3")
N_EXPERTS = 4


def upcycled(tiny: ModuleType, family: str, kind: str, *, layers: str = "all", spread: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """A mixture of a tiny model; `spread` moves its experts and routers apart."""
    model = tiny.classifier(family, seed=seed)
    upcycle(model, Upcycle(n_experts=N_EXPERTS, n_active=3, experts=kind, layers=layers), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for block in moe_blocks(model).values() if spread else ():
            for parameter in block.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def simplex(seed: int, n: int = N_EXPERTS) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).softmax(dim=0)


def expert_in_float64(block: UpcycledSparseMoeBlock, name: str, number: int) -> Tensor:
    """One expert's matrix from the raw parameters, without the code under test."""
    parameters = {key: parameter.detach().double() for key, parameter in block.experts.named_parameters()}
    if f"{name}_a" not in parameters and parameters[name].ndim == 1 + ("bias" not in name):
        return parameters[name]
    if f"{name}_a" not in parameters:
        return parameters[name][number]
    if number == 0:
        return parameters[name]
    return parameters[name] + parameters[f"{name}_b"][number - 1] @ parameters[f"{name}_a"][number - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_an_untrained_mixture_is_the_dense_model(
    tiny: ModuleType, any_family: str, kind: str, random_groups: Callable[..., list[EncodedGroup]]
) -> None:
    batch = pack(random_groups(4))
    dense, model = tiny.classifier(any_family), upcycled(tiny, any_family, kind)
    with torch.no_grad():
        expected = packed_rewards(dense, batch).rewards_C
        merge_experts(model, {layer: simplex(layer) for layer in moe_blocks(model)})
        torch.testing.assert_close(packed_rewards(model, batch).rewards_C, expected, atol=1e-5, rtol=0)
    assert float(expected.std()) > 0.05
    assert not is_upcycled(model)
    assert not moe_blocks(model)
    assert CONFIG_KEY not in model.config.to_dict()
    assert type(model) is type(dense)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in dense.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()} == shapes
    assert model.num_parameters() == dense.num_parameters()
    dense.load_state_dict(model.state_dict(), strict=True)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_sum_written_out(tiny: ModuleType, any_family: str, kind: str) -> None:
    model = upcycled(tiny, any_family, kind, layers="top:2", spread=0.3)
    blocks, weights = moe_blocks(model), {1: simplex(1), 2: simplex(2)}
    assert list(blocks) == [1, 2]
    expected = {
        (layer, name): sum(float(weights[layer][number]) * expert_in_float64(block, name, number) for number in range(N_EXPERTS))
        for layer, block in blocks.items()
        for name in block.experts.names
    }
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".mlp." not in name or ".0.mlp" in name}
    merge_experts(model, weights)
    family = family_of(model)
    for (layer, name), tensor in expected.items():
        found = family.read(family.layer_list(model)[layer].get_submodule("mlp"))[name]
        torch.testing.assert_close(found.double(), tensor, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in untouched.items())
    biased = any_family in {"llama_biased", "gpt_neox", "gpt2"}
    assert any("bias" in name for _, name in expected) == biased


def test_one_hot_coefficients_deliver_that_expert(tiny: ModuleType) -> None:
    model = upcycled(tiny, "llama", "full", spread=0.3)
    chosen = {layer: block.experts.expert(2)["down"].clone() for layer, block in moe_blocks(model).items()}
    merge_experts(model, dict.fromkeys(range(3), torch.eye(N_EXPERTS)[2]))
    for layer, down in chosen.items():
        assert torch.equal(model.model.layers[layer].mlp.down_proj.weight, down)


def test_a_dense_model_has_nothing_to_merge(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match=r"is dense: it has no experts to merge. Give a mixture \(rewardproof upcycle"):
        merge_experts(tiny.classifier("llama"), {})


@pytest.mark.parametrize("learn_shared", [False, True])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_logits_are_the_inner_product_formula(tiny: ModuleType, kind: str, gated: bool, learn_shared: bool) -> None:
    model = upcycled(tiny, "llama_biased" if gated else "gpt2", kind, spread=0.3).double()
    block = moe_blocks(model)[1]
    shared_weight, logits = 0.3, torch.tensor([0.4, -0.7, 1.1])
    folded = FoldedBlock(block, logits, shared_weight=shared_weight, learn_shared=learn_shared)
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(2, 7, 32, generator=generator, dtype=torch.float64)
    target = torch.randn(2, 7, 32, generator=generator, dtype=torch.float64)
    (folded(inputs) * target).sum().backward()

    alpha = logits.double().softmax(dim=0)
    mixture = torch.cat((torch.tensor([shared_weight], dtype=torch.float64), (1 - shared_weight) * alpha))
    experts = {name: torch.stack([expert_in_float64(block, name, number) for number in range(N_EXPERTS)]) for name in block.experts.names}
    merged = {name: torch.einsum("e,e...->...", mixture, tensors).requires_grad_() for name, tensors in experts.items()}
    up = F.linear(inputs, merged["up"], merged.get("up_bias"))
    gate = F.linear(inputs, merged["gate"], merged.get("gate_bias")) if gated else None
    hidden = block.activation(up) if gate is None else block.activation(gate) * up
    (F.linear(hidden, merged["down"], merged.get("down_bias")) * target).sum().backward()
    inner = sum((merged[name].grad * experts[name]).flatten(1).sum(dim=1) for name in experts)
    expected = (1 - shared_weight) * alpha * (inner[1:] - (alpha * inner[1:]).sum())
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(folded.logits_n.grad.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    if not learn_shared:
        assert folded.shared.grad is None
        return
    by_sigmoid = shared_weight * (1 - shared_weight) * (inner[0] - (alpha * inner[1:]).sum())
    torch.testing.assert_close(folded.shared.grad.double(), by_sigmoid, rtol=1e-5, atol=0)


def masses(model: PreTrainedModel) -> dict[int, RoutingMass]:
    return {layer: RoutingMass(simplex(layer + 10), torch.full((3,), 2 / 3), 1.0) for layer in moe_blocks(model)}


def test_the_whole_model_learns_by_the_same_formula(tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]) -> None:
    batch = pack(random_groups(4, sizes=(2,)))
    settings = Merge(method="routing_mass", shared_weight=0.4)
    model = upcycled(tiny, "llama", "full", spread=0.1)
    stacks = {
        layer: {name: block.experts.stack(name).detach().clone() for name in block.experts.names}
        for layer, block in moe_blocks(model).items()
    }
    merged = copy.deepcopy(model)
    start = starting_coefficients(masses(model), settings)
    merge_experts(merged, start)
    folded = put_folded_blocks(model, masses(model), settings)
    for one in (model, merged):
        rewards = packed_rewards(one, batch).rewards_C
        (-F.logsigmoid(rewards[0::2] - rewards[1::2])).sum().backward()
    for layer, block in folded.items():
        mlp = merged.model.layers[layer].mlp
        gradients = {"gate": mlp.gate_proj.weight.grad, "up": mlp.up_proj.weight.grad, "down": mlp.down_proj.weight.grad}
        inner = sum((gradients[name] * stacks[layer][name]).flatten(1).sum(dim=1) for name in gradients)
        alpha = start[layer][1:] / start[layer][1:].sum()
        expected = (1 - settings.shared_weight) * alpha * (inner[1:] - (alpha * inner[1:]).sum())
        torch.testing.assert_close(block.logits_n.grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_folded_blocks_compute_the_merged_model_and_can_be_taken_out(
    tiny: ModuleType, any_family: str, random_groups: Callable[..., list[EncodedGroup]]
) -> None:
    batch = pack(random_groups(3))
    model = upcycled(tiny, any_family, "full", layers="top:2", spread=0.2)
    settings = Merge(method="routing_mass", shared_weight=0.25)
    blocks, before = moe_blocks(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = copy.deepcopy(model)
    merge_experts(merged, starting_coefficients(masses(model), settings))
    folded = put_folded_blocks(model, masses(model), settings)
    assert list(folded) == [1, 2]
    with torch.no_grad():
        torch.testing.assert_close(packed_rewards(model, batch).rewards_C, packed_rewards(merged, batch).rewards_C, atol=1e-5, rtol=0)
    restore_blocks(model, blocks)
    assert moe_blocks(model) == blocks
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }


@pytest.mark.parametrize("shared_weight", [0.0, 0.5, 1.0])
def test_a_learned_shared_weight_starts_where_it_was_set(tiny: ModuleType, shared_weight: float) -> None:
    block = moe_blocks(upcycled(tiny, "llama", "full"))[0]
    folded = FoldedBlock(block, torch.zeros(3), shared_weight=shared_weight, learn_shared=True)
    assert float(folded.coefficients_E()[0].detach()) == pytest.approx(shared_weight, abs=2e-4)
    assert [id(parameter) for parameter in folded.trainable()] == [id(folded.logits_n), id(folded.shared)]
    fixed = FoldedBlock(block, torch.zeros(3), shared_weight=shared_weight, learn_shared=False)
    assert float(fixed.coefficients_E()[0].detach()) == shared_weight
    assert [id(parameter) for parameter in fixed.trainable()] == [id(fixed.logits_n)]


def test_a_measured_shared_weight_is_that_layers_own_mean() -> None:
    masses = {layer: RoutingMass(torch.tensor([shared, 0.7 - shared, 0.3]), torch.ones(2), 0.5) for layer, shared in ((3, 0.2), (4, 0.6))}
    found = starting_coefficients(masses, Merge(method="routing_mass", shared_weight="measured"))
    for layer, mass in masses.items():
        torch.testing.assert_close(found[layer], mass.weights_E)
    with pytest.raises(ConfigError, match="shared_weight=measured without data"):
        unmeasured_coefficients({3: 3}, Merge(method="uniform", shared_weight="measured"))


def test_starting_coefficients_by_method() -> None:
    mass = RoutingMass(torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([1.0, 0.6, 0.4]), 1.0)
    uniform = starting_coefficients({5: mass}, Merge(method="uniform", shared_weight=0.4))[5]
    torch.testing.assert_close(uniform, torch.tensor([0.4, 0.2, 0.2, 0.2]))
    for method in ("routing_mass", "learned"):
        by_mass = starting_coefficients({5: mass}, Merge(method=method, shared_weight=0.4))[5]
        torch.testing.assert_close(by_mass, torch.tensor([0.4, 0.3, 0.2, 0.1]))
    starved = RoutingMass(torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([2.0, 0.0, 0.0]), 0.0)
    found = starting_coefficients({0: starved}, Merge(method="routing_mass", shared_weight=0.5))[0]
    assert bool(found.isfinite().all())
    assert float(found[1]) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("tokens_per_batch", [10, 60, 100_000])
@pytest.mark.parametrize(("family", "kind"), [("llama", "full"), ("gemma2", "full"), ("gpt2", "lora:3")])
def test_routing_mass_is_the_mean_over_tokens_one_by_one(
    tiny: ModuleType, family: str, kind: str, tokens_per_batch: int, random_groups: Callable[..., list[EncodedGroup]]
) -> None:
    groups = random_groups(6, seed=3)
    model = upcycled(tiny, family, kind, layers="top:2", spread=0.3)
    scorer = RewardModel(model.train(), tiny.word_tokenizer(), precision="fp32", tokens_per_batch=tokens_per_batch)
    found = measure_routing(scorer, groups)
    assert not model.training

    seen: dict[int, list[Tensor]] = {1: [], 2: []}
    for layer, block in moe_blocks(model).items():
        block.router.register_forward_hook(lambda module, inputs, _, layer=layer: seen[layer].append(inputs[0] @ module.weight.T))
    kept: dict[int, list[Tensor]] = {1: [], 2: []}
    with torch.no_grad():
        for group in groups:
            for number, conversation in enumerate(group.conversations):
                model(input_ids=torch.tensor([conversation]))
                for layer, calls in seen.items():
                    kept[layer].append(calls.pop()[0 if number == 0 else group.shared :].double())
    assert sum(len(part) for part in kept[1]) == sum(group.n_tokens for group in groups)
    for layer, mass in found.items():
        weights, load, entropy = written_out(torch.cat(kept[layer]))
        torch.testing.assert_close(mass.weights_E.double(), weights, atol=1e-5, rtol=0)
        torch.testing.assert_close(mass.load_n.double(), load, atol=1e-6, rtol=0)
        assert mass.entropy == pytest.approx(entropy, abs=1e-5)
        assert float(mass.weights_E.sum()) == pytest.approx(1, abs=1e-5)
        assert float(mass.load_n.sum()) == pytest.approx(2, abs=1e-5)
    assert float(found[1].weights_E[1:].std()) > 1e-3


def written_out(logits_TE: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean weights, loads and entropy by the brief's variant X, token by token."""
    weights, load, entropy = torch.zeros(N_EXPERTS, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0.0
    for logits in logits_TE:
        p = logits.softmax(dim=0)
        largest = float(p.max())
        chosen = sorted(range(3), key=lambda number: -float(p[number]))[:2]
        total = sum(float(p[number].exp()) for number in chosen)
        weights[0] += 1 - largest
        for number in chosen:
            weights[number + 1] += largest * float(p[number].exp()) / total
            load[number] += 1
        entropy -= float((p * p.log()).sum())
    return weights / len(logits_TE), load / len(logits_TE), entropy / len(logits_TE)


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_by_brute_force(tiny: ModuleType, kind: str) -> None:
    model = upcycled(tiny, "gpt_neox", kind, layers="top:2", spread=0.2)
    found = expert_divergence(model)
    assert [entry.layer for entry in found] == [1, 2]
    for entry in found:
        block = moe_blocks(model)[entry.layer]
        vectors = [
            torch.cat([expert_in_float64(block, name, number).flatten() for name in block.experts.names]) for number in range(N_EXPERTS)
        ]
        for number in range(1, N_EXPERTS):
            cosine = float(torch.dot(vectors[number], vectors[0]) / (vectors[number].square().sum() * vectors[0].square().sum()).sqrt())
            distance = float((vectors[number] - vectors[0]).square().sum().sqrt() / vectors[0].square().sum().sqrt())
            assert entry.cosine[number - 1] == pytest.approx(cosine, rel=1e-6)
            assert entry.relative_distance[number - 1] == pytest.approx(distance, rel=1e-5)
        assert max(entry.cosine) < 0.9999


def test_untrained_experts_have_not_diverged(tiny: ModuleType) -> None:
    for entry in expert_divergence(upcycled(tiny, "llama", "full")):
        assert entry.cosine == pytest.approx((1.0, 1.0, 1.0))
        assert entry.relative_distance == (0.0, 0.0, 0.0)


def test_coefficients_of_a_block_are_differentiable_only_in_the_logits(tiny: ModuleType) -> None:
    folded = FoldedBlock(moe_blocks(upcycled(tiny, "llama", "full"))[0], torch.zeros(3), shared_weight=0.5, learn_shared=False)
    assert [name for name, parameter in folded.named_parameters() if parameter.requires_grad] == ["logits_n"]
    assert not folded.state_dict().keys() - {"logits_n", "shared"}
    assert isinstance(folded, nn.Module)
    assert not any(isinstance(module, Router) for module in folded.modules())
    torch.testing.assert_close(folded.coefficients_E(), coefficients(0.5, torch.zeros(3)))
