"""Experts side by side on one model, the network over them, and the router over queries."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import pack
from rewardproof.errors import CheckpointError, ConfigError, MissingExtraError
from rewardproof.models.cost import products_per_token
from rewardproof.models.double_mixture import (
    CapabilityExperts,
    QueryRouter,
    adapter_name,
    add_experts,
    expert_parameters,
    load_experts,
    put_category_head,
    save_expert,
    share_equal_tensors,
    switch_to,
)
from rewardproof.models.families import family_of
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel

FAMILIES = ["llama", "gpt2", "gemma2", "phi3", "gpt_neox"]


def disturb(model: PreTrainedModel, n_experts: int, *, scale: float = 0.3) -> None:
    """Experts as after a training: every one of its own."""
    for number in range(n_experts):
        with torch.no_grad():
            for parameter in expert_parameters(model, number):
                parameter += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def experts_on(tiny: ModuleType, family: str, layers: range, n_experts: int = 3) -> tuple[PreTrainedModel, Any, CapabilityExperts]:
    model = tiny.classifier(family)
    adapted = add_experts(model, layers, n_experts, {"r": 4, "lora_alpha": 4}, seed=0)
    disturb(model, n_experts)
    return model.eval(), adapted, CapabilityExperts(model, [f"p{number}" for number in range(n_experts)], seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_acceptance_3_an_expert_starts_as_the_model_that_it_lies_on(tiny: ModuleType, random_groups, family: str) -> None:
    model, batch = tiny.classifier(family), pack(random_groups(5))
    with torch.no_grad():
        before = packed_rewards(model, batch).rewards_C
        adapted = add_experts(model, range(1, 3), 3, {}, seed=0)
        for number in range(3):
            switch_to(model, number)
            assert torch.equal(packed_rewards(model.eval(), batch).rewards_C, before)
    assert {config.r for config in adapted.peft_config.values()} == {32}
    assert {(config.lora_alpha, config.lora_dropout) for config in adapted.peft_config.values()} == {(32, 0.05)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 2])
def test_states_are_those_of_every_expert_by_itself_and_lower_layers_run_once(
    tiny: ModuleType, random_groups, family: str, first: int
) -> None:
    model, _, experts = experts_on(tiny, family, range(first, 3))
    batch = pack(random_groups(6, seed=3))
    runs: Counter[int] = Counter()
    for place, layer in enumerate(family_of(model).layer_list(model)):
        layer.register_forward_hook(lambda *_, place=place: runs.update([place]))
    states = experts.states(model, batch)
    assert [runs[place] for place in range(3)] == [1 if place < first else 3 for place in range(3)]
    with torch.no_grad():
        alone = []
        for number in range(3):
            switch_to(model, number)
            alone.append(packed_rewards(model, batch).states_CD)
    torch.testing.assert_close(states, torch.stack(alone, dim=1), rtol=1e-5, atol=1e-5)
    assert (states[:, 0] - states[:, 1]).abs().max() > 1e-3, "the experts differ"
    assert experts.first_layer(model) == first


def test_the_reward_is_the_network_over_the_joined_states(tiny: ModuleType, random_groups) -> None:
    model, _, experts = experts_on(tiny, "llama", range(1, 3))
    batch = pack(random_groups(6))
    with torch.no_grad():
        found = experts(model, batch).rewards_C
        joined = torch.cat(list(experts.states(model, batch).unbind(dim=1)), dim=1)
        first, prelu, second = experts.mixer
        middle = joined @ first.weight.T + first.bias
        middle = torch.where(middle > 0, middle, prelu.weight * middle)
        torch.testing.assert_close(found, (middle @ second.weight.T + second.bias)[:, 0], rtol=1e-5, atol=1e-5)
    assert first.weight.shape == (32, 3 * 32)
    assert second.weight.shape == (1, 32)


def test_acceptance_6_exchanging_experts_with_their_blocks_of_the_network_changes_nothing(tiny: ModuleType, random_groups) -> None:
    model, _, experts = experts_on(tiny, "llama", range(1, 3))
    batch, order = pack(random_groups(6)), [2, 0, 1]
    with torch.no_grad():
        before = experts(model, batch).rewards_C
        swapped = copy.deepcopy(model)
        for new, old in enumerate(order):
            for target, source in zip(expert_parameters(swapped, new), expert_parameters(model, old), strict=True):
                target.copy_(source)
        moved = CapabilityExperts(swapped, [experts.points[old] for old in order])
        moved.mixer.load_state_dict(experts.mixer.state_dict())
        unmatched = moved(swapped, batch).rewards_C
        weight = experts.mixer[0].weight
        moved.mixer[0].weight.copy_(torch.cat([weight[:, old * 32 : (old + 1) * 32] for old in order], dim=1))
        torch.testing.assert_close(moved(swapped, batch).rewards_C, before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unmatched, before, atol=1e-3)


def test_acceptance_2_saved_experts_give_the_same_rewards_and_are_pefts_own(tiny: ModuleType, random_groups, tmp_path: Path) -> None:
    model, adapted, experts = experts_on(tiny, "llama", range(1, 3), n_experts=12)
    groups = random_groups(5)
    batch = pack(groups)
    for number in range(12):
        save_expert(adapted, number, tmp_path / "experts")
    experts.save_mixer(tmp_path)
    assert not list((tmp_path / "experts").glob(".*")), "nothing half-written stays"
    loaded = tiny.classifier("llama")
    load_experts(loaded, tmp_path / "experts", 12)
    again = CapabilityExperts(loaded, experts.points)
    again.load_mixer(tmp_path)
    with torch.no_grad():
        for number in range(12):
            switch_to(model, number)
            switch_to(loaded, number)
            assert torch.equal(packed_rewards(model, batch).rewards_C, packed_rewards(loaded.eval(), batch).rewards_C)
        assert torch.equal(experts(model, batch).rewards_C, again(loaded, batch).rewards_C)
    stock = PeftModel.from_pretrained(tiny.classifier("llama"), str(tmp_path / "experts" / adapter_name(7))).eval()
    switch_to(model, 7)
    expected = RewardModel(model, tiny.word_tokenizer()).score_encoded(groups)
    for group, rewards in zip(groups, expected, strict=True):
        for tokens, reward in zip(group.conversations, rewards, strict=True):
            assert float(stock(input_ids=torch.tensor([tokens])).logits) == pytest.approx(reward, abs=1e-4)


def test_groups_are_scored_by_experts_as_one_by_one_also_from_a_stored_trunk(tiny: ModuleType, random_groups) -> None:
    model, _, experts = experts_on(tiny, "llama", range(2, 3))
    groups = random_groups(8, seed=1)
    scorer = RewardModel(model, tiny.word_tokenizer(), experts=experts, tokens_per_batch=60)
    together = scorer.score_encoded(groups)
    apart = [RewardModel(model, tiny.word_tokenizer(), experts=experts).score_encoded([group])[0] for group in groups]
    stored = scorer.share_trunk(2, limit_gb=1.0).score_encoded(groups)
    for found in (apart, stored):
        for one, other in zip(together, found, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    extra = sum(parameter.numel() for parameter in experts.mixer.parameters())
    assert scorer.parameters == sum(parameter.numel() for parameter in model.parameters()) + extra


@pytest.mark.parametrize("first", [0, 2])
def test_the_cost_is_the_lower_layers_once_and_the_upper_ones_an_expert(tiny: ModuleType, first: int) -> None:
    plain = tiny.classifier("llama")
    layers = [products_per_token(layer) for layer in family_of(plain).layer_list(plain)]
    model, _, experts = experts_on(tiny, "llama", range(first, 3))
    adapters = sum(parameter.numel() for number in range(3) for parameter in expert_parameters(model, number) if parameter.shape != (1, 32))
    assert experts.products(model) == sum(layers[:first]) + 3 * sum(layers[first:]) + adapters
    assert RewardModel(model, tiny.word_tokenizer(), experts=experts).products == experts.products(model)
    assert RewardModel(plain, tiny.word_tokenizer()).products == sum(layers)


def test_states_kept_while_the_network_trains_are_computed_once(tiny: ModuleType, random_groups) -> None:
    model, _, experts = experts_on(tiny, "llama", range(1, 3))
    groups = random_groups(5)
    runs: Counter[int] = Counter()
    family_of(model).layer_list(model)[2].register_forward_hook(lambda *_: runs.update([2]))
    with experts.keeping():
        first = experts(model, pack(groups), groups=groups).rewards_C
        reordered = [groups[place] for place in (3, 0, 4, 1, 2)]
        again = experts(model, pack(reordered), groups=reordered).rewards_C
    assert runs[2] == 3
    torch.testing.assert_close(
        torch.cat([again.split([len(group.conversations) for group in reordered])[place] for place in (1, 3, 4, 0, 2)]), first
    )
    assert experts.learned_tokens == pack(groups).n_tokens, "what is kept costs nothing"
    experts(model, pack(groups), groups=groups)
    assert runs[2] == 6, "outside nothing is kept"
    experts.eval()
    experts(model, pack(groups), groups=groups)
    assert experts.learned_tokens == 2 * pack(groups).n_tokens, "to judge is not to learn"


def test_defect_5_adapters_are_not_nested(tiny: ModuleType) -> None:
    model, adapted, _ = experts_on(tiny, "llama", range(3), n_experts=4)
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.count("base_layer") > 1 or name.count("lora_A") > 1 for name in names)
    assert sum("base_layer" in name for name in names) == 3 * 2
    assert set(adapted.peft_config) == {adapter_name(number) for number in range(4)}
    assert adapted.get_base_model() is model


def test_an_expert_that_computes_is_not_thereby_trained(tiny: ModuleType) -> None:
    model, _, _ = experts_on(tiny, "llama", range(3))
    model.requires_grad_(False)
    switch_to(model, 1)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_damaged_experts_and_networks_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    _, adapted, experts = experts_on(tiny, "llama", range(3))
    save_expert(adapted, 0, tmp_path / "experts")
    with pytest.raises(CheckpointError, match=r"experts in .* cannot be read \(.*expected 3 whole adapters"):
        load_experts(tiny.classifier("llama"), tmp_path / "experts", 3)
    place = tmp_path / "experts" / adapter_name(0)
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot be read \(point_000 has no adapter_model.safetensors\)"):
        load_experts(tiny.classifier("llama"), tmp_path / "experts", 1)
    with pytest.raises(CheckpointError, match=r"mixer.safetensors cannot be read \(.*expected the network over 3 experts"):
        experts.load_mixer(tmp_path)
    experts.save_mixer(tmp_path)
    other = CapabilityExperts(tiny.classifier("llama"), ["one", "two"])
    with pytest.raises(CheckpointError, match="expected the network over 2 experts"):
        other.load_mixer(tmp_path)


def test_bad_adapter_settings_name_the_section(tiny: ModuleType) -> None:
    for settings in ({"rank": 3}, {"target_modules": ["nothing"]}):
        with pytest.raises(ConfigError, match=r"Bad `capabilities.lora` settings: .*correct the key or value named"):
            add_experts(tiny.classifier("llama"), range(3), 2, settings, seed=0)


def test_without_peft_the_message_names_what_to_install(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft is not installed; install it with: pip install 'rewardproof\[lora\]'"):
        add_experts(tiny.classifier("llama"), range(3), 2, {}, seed=0)


def router_of(tiny: ModuleType, family: str = "llama") -> QueryRouter:
    model = tiny.classifier(family)
    put_category_head(model, ["chat", "text", "code"])
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(5)))
        model.score.bias.copy_(torch.tensor([0.5, -0.25, 0.125]))
    return QueryRouter(model, ["chat", "text", "code"])


def queries_of(tiny: ModuleType) -> list[tuple[int, ...]]:
    return [tokens[:9] for tokens in tiny.conversations(tiny.random_groups(3))]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_query_is_routed_by_the_heads_logits_at_its_last_token(tiny: ModuleType, family: str) -> None:
    router = router_of(tiny, family)
    queries = queries_of(tiny)
    found = router.logits(queries)
    weight, bias = router.model.score.weight, router.model.score.bias
    for tokens, logits in zip(queries, found, strict=True):
        state: Tensor = router.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
        torch.testing.assert_close(logits, weight @ state + bias, rtol=1e-4, atol=1e-4)
    assert router.route(queries) == [router.categories[place] for place in found.argmax(dim=1)]
    assert router.route([]) == []


def test_of_a_query_beyond_the_position_table_the_end_is_read(tiny: ModuleType) -> None:
    router = router_of(tiny, "gpt2")
    limit = router.longest
    assert limit is not None
    query = tuple(4 + number % 70 for number in range(limit + 5))
    torch.testing.assert_close(router.logits([query]), router.logits([query[-limit:]]))
    assert router_of(tiny).longest is None


def test_defect_1_a_saved_router_is_a_stock_classifier_with_its_trained_weights(tiny: ModuleType, tmp_path: Path) -> None:
    router = router_of(tiny)
    queries = queries_of(tiny)
    bias = router.save(tmp_path / "router", tiny.word_tokenizer())
    assert bias == (0.5, -0.25, 0.125)
    assert router.model.score.bias is not None, "saving leaves the router whole"
    again = QueryRouter.load(tmp_path / "router", bias, router.categories)
    torch.testing.assert_close(again.logits(queries), router.logits(queries))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "router")
    expected = router.logits(queries[:1]) - torch.tensor(bias)
    torch.testing.assert_close(stock(input_ids=torch.tensor(queries[:1])).logits.detach(), expected, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "router" / "config.json").read_text())["id2label"] == {"0": "chat", "1": "text", "2": "code"}


def test_a_missing_router_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"The router in .* cannot be read \(.*expected a whole classifier"):
        QueryRouter.load(tmp_path, (0.0, 0.0), ("a", "b"))


def test_equal_tensors_of_several_models_are_in_memory_once(tiny: ModuleType) -> None:
    one, other = tiny.classifier("llama"), tiny.classifier("llama")
    with torch.no_grad():
        other.score.weight += 1
    known: dict[str, Tensor] = {}
    for model in (one, other):
        share_equal_tensors(model, known)
    shared = {name for name, parameter in other.named_parameters() if parameter.data_ptr() == dict(one.named_parameters())[name].data_ptr()}
    assert shared == {name for name, _ in one.named_parameters()} - {"score.weight"}


def test_a_group_without_pairs_is_read_as_one_conversation() -> None:
    from rewardproof.models.double_mixture import query_group

    group = query_group((5, 6, 7), 4)
    assert group == EncodedGroup(((5, 6, 7),), 0, (2,), 4)
    assert pack([group]).end_index_C.tolist() == [2]
