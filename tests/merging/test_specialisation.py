from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import pack
from rewardproof.merging.specialisation import alone, dense_blocks, parting, regime_information, smallest_correlation, weights_by_group
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle


def mixture(tiny: ModuleType, experts: str = "full", spread: float = 0.3) -> tuple[PreTrainedModel, dict[int, dict[str, torch.Tensor]]]:
    model = tiny.classifier("llama")
    start = dense_blocks(model, [1, 2])
    upcycle(model, Upcycle(n_experts=4, n_active=3, layers="top:2", experts=experts))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in moe_blocks(model).values():
            for parameter in block.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval(), start  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("experts", ["full", "lora:2"])
def test_parting_is_the_distance_to_the_shared_expert_over_that_ones_own_way(tiny: ModuleType, experts: str) -> None:
    model, start = mixture(tiny, experts)
    found = parting(model, start)
    for layer, block in moe_blocks(model).items():
        vectors = [
            torch.cat([matrix.detach().flatten() for matrix in block.experts.expert(number).values()]).double() for number in range(4)
        ]
        origin = torch.cat([start[layer][name].flatten() for name in block.experts.expert(0)]).double()
        wanted = [float((vector - vectors[0]).norm() / (vectors[0] - origin).norm()) for vector in vectors[1:]]
        assert found[layer].apart == pytest.approx(wanted, rel=1e-5)
        ways = [float((vector - origin).norm() / (vectors[0] - origin).norm()) for vector in vectors[1:]]
        assert found[layer].moved == pytest.approx(ways, rel=1e-5)


def test_experts_that_have_not_moved_have_not_parted(tiny: ModuleType) -> None:
    model, start = mixture(tiny, spread=0.0)
    assert parting(model, start) == dict.fromkeys((1, 2), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


def test_where_the_shared_expert_takes_no_part_the_routed_experts_mean_stands_for_it(tiny: ModuleType) -> None:
    model, start = mixture(tiny, spread=0.0)
    up = moe_blocks(model)[1].experts.get_parameter("up")
    with torch.no_grad():
        up[2].add_(3.0)
    # The mean of (0, 3, 0) moved by 1; the experts are 1, 2 and 1 away from it, in every entry.
    assert parting(model, start)[1].apart == pytest.approx((1.0, 2.0, 1.0), rel=1e-5)
    assert parting(model, start)[1].moved == pytest.approx((0.0, 3.0, 0.0), rel=1e-5)


def test_weights_by_group_are_the_mean_over_its_tokens(tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]) -> None:
    model, _ = mixture(tiny)
    groups = random_groups(7)
    scorer = RewardModel(model, tiny.word_tokenizer(), precision="fp32", tokens_per_batch=40)
    found = weights_by_group(scorer, groups)
    for place, group in enumerate(groups):
        with torch.no_grad():
            routings = packed_rewards(model, pack([group])).routings
        for layer, routing in zip((1, 2), routings, strict=True):
            torch.testing.assert_close(found[layer][place], routing.weights_TE.mean(dim=0), atol=1e-6, rtol=1e-5)


def test_information_is_all_where_the_route_tells_the_regime_and_none_where_it_does_not() -> None:
    telling = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7]])
    silent = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    regimes = ["helpful", "helpful", "harmless", "harmless"]
    assert regime_information({4: telling, 5: silent}, regimes) == {4: pytest.approx(1.0), 5: pytest.approx(0.0)}
    assert regime_information({4: telling}, ["one"] * 4) == {}


def test_an_expert_alone_gives_the_rewards_of_the_dense_model_that_it_is(
    tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]
) -> None:
    model, _ = mixture(tiny)
    groups = random_groups(5)
    with alone(model, 1):
        found = RewardModel(model, tiny.word_tokenizer(), precision="fp32").score_encoded(groups)
    assert all(block.router.only is None for block in moe_blocks(model).values())
    dense = tiny.classifier("llama").eval()
    dense.load_state_dict(model.state_dict(), strict=False)
    for layer, block in moe_blocks(model).items():
        expert = block.experts.expert(2)
        mlp = dense.model.layers[layer].mlp
        with torch.no_grad():
            for name in ("gate", "up", "down"):
                getattr(mlp, f"{name}_proj").weight.copy_(expert[name])
    wanted = RewardModel(dense, tiny.word_tokenizer(), precision="fp32").score_encoded(groups)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, abs=2e-5)


def test_smallest_correlation_is_over_all_pairs_of_experts() -> None:
    generator = np.random.default_rng(0)
    rewards = generator.standard_normal((3, 50))
    assert smallest_correlation(rewards) == pytest.approx(np.corrcoef(rewards)[np.triu_indices(3, 1)].min())
    assert smallest_correlation(rewards[:1]) is None
    assert smallest_correlation(np.stack((rewards[0], np.ones(50)))) is None
