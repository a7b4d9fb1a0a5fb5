from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import fill, pack
from rewardproof.errors import DataError, ModelError
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.routing import Prompts, Router, Routing, knowing_prompts, route_at_random, route_hard
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle


def mixture(tiny: ModuleType, *, spread: float, **settings: object) -> PreTrainedModel:
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(**{"n_experts": 4, "n_active": 2, "route_by": "prompt", "layers": "top:2", **settings}))  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in moe_blocks(model).values():
            for parameter in block.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def rewards(tiny: ModuleType, model: PreTrainedModel, groups: list[EncodedGroup], tokens_per_batch: int = 4096) -> list[tuple[float, ...]]:
    return RewardModel(model, tiny.word_tokenizer(), precision="fp32", tokens_per_batch=tokens_per_batch).score_encoded(groups)


@pytest.fixture
def prompted() -> list[EncodedGroup]:
    """Groups with a prompt, of one to four answers; two answers of the third begin alike, so that more than the prompt is shared."""
    generator = torch.Generator().manual_seed(5)

    def words(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 40, (count,), generator=generator).tolist())

    prompts = [words(count) for count in (3, 6, 4, 9)]
    answers = [[words(4)], [words(5), words(2)], [(7, 8, *words(3)), (7, 8, *words(6))], [words(3) for _ in range(4)]]
    return [
        EncodedGroup(made := tuple(prompt + answer for answer in group), shared(made), (len(prompt),) * len(group), index)
        for index, (prompt, group) in enumerate(zip(prompts, answers, strict=True))
    ]


def shared(conversations: tuple[tuple[int, ...], ...]) -> int:
    from rewardproof.data.encoding import shared_prefix

    return shared_prefix(conversations)


def test_a_mixture_routed_by_prompt_starts_as_the_dense_model(tiny: ModuleType, prompted: list[EncodedGroup]) -> None:
    dense = rewards(tiny, tiny.classifier("llama").eval(), prompted)
    for settings in ({}, {"mixing": "fixed", "shared_weight": 0.0}, {"experts": "lora:2"}, {"expert_dropout": 0.5}):
        model = tiny.classifier("llama")
        upcycle(model, Upcycle(n_experts=4, n_active=2, route_by="prompt", **settings))  # pyright: ignore[reportArgumentType]
        for found, wanted in zip(rewards(tiny, model.eval(), prompted), dense, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)


def test_an_answer_gets_its_reward_whatever_is_scored_with_it(tiny: ModuleType, prompted: list[EncodedGroup]) -> None:
    model = mixture(tiny, spread=0.3)
    together = rewards(tiny, model, prompted)
    assert rewards(tiny, model, prompted, tokens_per_batch=8) == [pytest.approx(row, abs=2e-5) for row in together]
    for group, row in zip(prompted, together, strict=True):
        alone = [rewards(tiny, model, [group.select([place])])[0][0] for place in range(len(row))]
        assert alone == pytest.approx(row, abs=2e-5)


def test_all_tokens_of_a_group_share_the_route_of_its_prompts_mean(tiny: ModuleType, prompted: list[EncodedGroup]) -> None:
    model = mixture(tiny, spread=0.3)
    block = moe_blocks(model)[1]
    seen: list[Tensor] = []
    block.router.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    batch = pack(prompted)
    with torch.no_grad():
        routing = packed_rewards(model, batch).routings[0]
    for number in range(batch.n_groups):
        mine = batch.group_T == number
        mean_D = seen[0][mine & batch.prompt_T].mean(dim=0)
        wanted_E = (mean_D @ block.router.weight.T).softmax(dim=-1)
        torch.testing.assert_close(routing.probabilities_TE[mine], wanted_E.expand(int(mine.sum()), -1))


def test_a_stock_forward_is_refused_because_it_does_not_know_the_prompts(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match="routes by prompt, and only a packed forward says so"):
        mixture(tiny, spread=0.0)(input_ids=torch.tensor([[5, 6, 7]]))


def test_a_group_without_a_prompt_cannot_be_routed_by_it(tiny: ModuleType) -> None:
    with pytest.raises(DataError, match=r"Got a group without a prompt.*route_by=token"):
        rewards(tiny, mixture(tiny, spread=0.0), [EncodedGroup(((5, 6, 7), (8, 9)), 0, (0, 0), 0)])


def test_routers_forget_the_prompts_afterwards(tiny: ModuleType) -> None:
    model = mixture(tiny, spread=0.0)
    prompts = Prompts(torch.zeros(3, dtype=torch.long), torch.tensor([True, True, False]), 1)
    with knowing_prompts(model, prompts):
        assert all(block.router.prompts is prompts for block in moe_blocks(model).values())
    assert all(block.router.prompts is None for block in moe_blocks(model).values())


def test_a_constant_weight_leaves_the_router_where_it_is() -> None:
    torch.manual_seed(0)
    router = Router(64, 4, 1, mixing="fixed", shared_weight=0.0)
    before = router.weight.detach().clone()
    optimiser = torch.optim.AdamW(router.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        optimiser.zero_grad()
        routing: Routing = router(torch.randn(50, 64))
        (routing.weights_TK * torch.randn(50, 1)).sum().backward()
        optimiser.step()
    assert torch.equal(router.weight, before)


def test_hard_routing_is_one_expert_with_a_gradient_for_the_router() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    routing = route_hard(logits)
    assert (routing.shared_T == 0).all()
    assert (routing.weights_TK == 1).all()
    assert (routing.chosen_TK[:, 0] == logits.argmax(dim=1)).all()
    routing.weights_TK.sum().backward()
    p = logits.detach().softmax(dim=1)
    largest = torch.nn.functional.one_hot(logits.argmax(dim=1), 3)
    torch.testing.assert_close(logits.grad, largest - p)  # d log(max p)


def test_hard_routing_of_equal_experts_is_the_dense_model(tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]) -> None:
    groups = random_groups(5)
    dense = rewards(tiny, tiny.classifier("llama").eval(), groups)
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    for block in moe_blocks(model).values():
        block.router.hard = True
    for found, wanted in zip(rewards(tiny, model.eval(), groups), dense, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_one_expert_alone_computes_every_token(random_groups: Callable[..., list[EncodedGroup]]) -> None:
    router = Router(8, 3, 2, mixing="s_max", shared_weight=0.5)
    router.only = 2
    routing: Routing = router(torch.randn(5, 8))
    assert (routing.shared_T == 0).all()
    assert (routing.chosen_TK == 2).all()
    assert (routing.weights_TK == 1).all()


def test_dropout_is_of_routed_experts_and_of_training_alone(tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]) -> None:
    model = mixture(tiny, spread=0.3, route_by="token", expert_dropout=0.5)
    run = next(fill(random_groups(4), tokens_per_batch=1000))

    def once() -> Tensor:
        with torch.no_grad():
            return packed_rewards(model, pack(run)).rewards_C

    torch.testing.assert_close(once(), once())
    model.train()
    assert not torch.allclose(once(), once())
    for block in moe_blocks(model).values():
        block.router.mixing, block.router.shared_weight = "fixed", 1.0
    torch.testing.assert_close(once(), once(), msg="the shared expert drops nothing")


def test_random_routing_is_one_expert_in_training_and_the_mean_of_all_in_evaluation(
    tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]
) -> None:
    torch.manual_seed(0)
    training = route_at_random(3000, 4, training=True, device=torch.device("cpu"))
    assert training.chosen_TK.shape == (3000, 1)
    assert training.selected_TE.float().mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.05)
    assert (training.weights_TE.sum(dim=1) + training.shared_T == 1).all()
    evaluation = route_at_random(5, 4, training=False, device=torch.device("cpu"))
    assert (evaluation.weights_TE == 0.25).all()
    groups = random_groups(4)
    model = mixture(tiny, spread=0.3, mixing="random", route_by="token")
    assert not any("router" in name for name, _ in model.named_parameters()), "a random router has nothing to learn"
    assert rewards(tiny, model, groups) == rewards(tiny, model, groups)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equal_experts_at_random_are_the_dense_model(mode: str, tiny: ModuleType, random_groups: Callable[..., list[EncodedGroup]]) -> None:
    run = random_groups(5)
    dense, model = tiny.classifier("llama").eval(), tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=5, n_active=2, mixing="random"))
    model.train(mode == "train")
    with torch.no_grad():
        found, wanted = packed_rewards(model, pack(run)).rewards_C, packed_rewards(dense, pack(run)).rewards_C
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
