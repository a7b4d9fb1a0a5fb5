"""Upcycling: the function is preserved, the mixing follows the brief's equations, the experts agree with a loop over stock blocks."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForSequenceClassification, PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.experts import DeltaExperts, FullExperts, UpcycledSparseMoeBlock, feed_forward
from rewardproof.models.families import family_of
from rewardproof.models.packed import packed_rewards
from rewardproof.models.routing import Routing, route
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from tests.models import tiny

N = 4
HIDDEN = tiny.COMMON["hidden_size"]
dense_classifier = functools.cache(tiny.classifier)


def mixture(family: str, *, router_scale: float = 1.0, **settings: object) -> PreTrainedModel:
    """An upcycled copy of a family's tiny model with routers far from uniform."""
    model = copy.deepcopy(dense_classifier(family))
    upcycle(model, Upcycle(**{"n_experts": N, "n_active": 3, **settings}))
    with torch.no_grad():
        for block in moe_blocks(model).values():
            block.router.weight.normal_(std=router_scale * HIDDEN**-0.5, generator=torch.Generator().manual_seed(5))
    return model


def move_apart(block: UpcycledSparseMoeBlock, *, scale: float = 0.1) -> None:
    """Make every expert different from every other."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in block.experts.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("experts", ["full", "lora:2"])
@pytest.mark.parametrize("mixing", ["s_max", "fixed"])
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_upcycling_preserves_the_function(family: str, mixing: str, experts: str) -> None:
    dense = dense_classifier(family)
    batch = pack(tiny.random_groups(2))
    with torch.no_grad():
        before = packed_rewards(dense, batch).rewards_C
        for n_active, router_scale in itertools.product((2, 3, N), (0.05, 4.0)):
            model = mixture(family, router_scale=router_scale, n_active=n_active, mixing=mixing, experts=experts)
            for training in (True, False):
                output = packed_rewards(model.train(training), batch)
                torch.testing.assert_close(output.rewards_C, before, atol=1e-5, rtol=0)
                assert len(output.routings) == 3
                for routing in output.routings:
                    assert routing.probabilities_TE.dtype == torch.float32
                    assert len(routing.shared_T) == batch.n_tokens
                    _check_weights(routing, n_active=n_active)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_neither_rewards_nor_routing(side: str) -> None:
    """By the stock forward of rows, as consumers of an unmerged mixture run it."""
    model = mixture("llama", router_scale=4.0)
    for block in moe_blocks(model).values():
        move_apart(block)
    model.config.pad_token_id = 0
    texts = [[5, 6, 7, 8, 9, 10, 11], [6, 9, 5], [12, 7]]
    width = max(map(len, texts))
    rows = [[0] * (width - len(text)) + text if side == "left" else text + [0] * (width - len(text)) for text in texts]
    ids = torch.tensor(rows)
    selected: list[Tensor] = []
    block = next(iter(moe_blocks(model).values()))
    block.router.register_forward_hook(lambda _, inputs, output: selected.append(inputs[0].detach().reshape(-1, HIDDEN)))
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 0]
        (padded,) = selected
        for place, text in enumerate(texts):
            selected.clear()
            alone = model(input_ids=torch.tensor([text])).logits[0, 0]
            torch.testing.assert_close(together[place], alone, atol=1e-5, rtol=1e-4)
            own = padded.view(len(texts), width, HIDDEN)[place][ids[place] != 0]
            torch.testing.assert_close(own, selected[0], atol=1e-5, rtol=1e-4)


def _check_weights(routing: Routing, *, n_active: int) -> None:
    torch.testing.assert_close(routing.shared_T + routing.weights_TE.sum(-1), torch.ones_like(routing.shared_T), atol=2e-6, rtol=0)
    assert (routing.shared_T > 0).all()
    assert (routing.selected_TE.sum(-1) == n_active - 1).all(), "the chosen experts are distinct"
    torch.testing.assert_close(routing.weights_TE[~routing.selected_TE], torch.zeros(int((~routing.selected_TE).sum())))


def test_a_mixture_that_does_not_sum_to_one_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("llama")
    batch = pack(tiny.random_groups(2))
    for block in moe_blocks(model).values():
        block.router.register_forward_hook(lambda _m, _i, routing: routing._replace(shared_T=routing.shared_T + 0.01))
    with torch.no_grad():
        assert (packed_rewards(model, batch).rewards_C - packed_rewards(dense_classifier("llama"), batch).rewards_C).abs().max() > 1e-3


def brute_force_weights(logits: list[float], k: int, mixing: str, c: float) -> list[float]:
    """The brief's equations for one token, in double precision; the shared expert's weight first."""
    exponentials = [math.exp(z) for z in logits]
    p = [value / sum(exponentials) for value in exponentials]
    chosen = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    weights = [0.0] * (len(p) + 1)
    if mixing == "s_max":
        s_max = max(p)
        weights[0] = 1 - s_max
        for i in chosen:
            weights[i + 1] = s_max * math.exp(p[i]) / sum(math.exp(p[j]) for j in chosen)
    else:
        weights[0] = c
        for i in chosen:
            weights[i + 1] = (1 - c) * p[i] / sum(p[j] for j in chosen)
    return weights


def all_weights(routing: Routing) -> Tensor:
    return torch.cat((routing.shared_T[:, None], routing.weights_TE), dim=1)


@pytest.mark.parametrize("mixing", ["s_max", "fixed"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_mixing_follows_the_equations(mixing: str, k: int) -> None:
    logits_TE = 2 * torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    expected = torch.tensor([brute_force_weights(row, k, mixing, 0.3) for row in logits_TE.tolist()], dtype=torch.float64)
    exact = all_weights(route(logits_TE, k, mixing=mixing, shared_weight=0.3))  # type: ignore[arg-type]
    torch.testing.assert_close(exact, expected, atol=1e-13, rtol=0)
    single = all_weights(route(logits_TE.float(), k, mixing=mixing, shared_weight=0.3))  # type: ignore[arg-type]
    torch.testing.assert_close(single, expected.float(), atol=2e-6, rtol=0)


def test_a_uniform_router_leaves_the_shared_expert_what_the_brief_says() -> None:
    for n, expected in ((4, 0.67), (8, 0.86), (16, 0.93)):
        routing = route(torch.zeros(3, n - 1), 2, mixing="s_max", shared_weight=0.5)
        torch.testing.assert_close(routing.shared_T, torch.full((3,), expected), atol=5e-3, rtol=0)


def _loop_over_stock_blocks(model: PreTrainedModel, layer: int, hidden_TD: Tensor) -> Tensor:
    """Every expert as a stock block of the family, every expert on every token, weights from the equations in double precision."""
    family = family_of(model)
    block = moe_blocks(model)[layer]
    logits = (hidden_TD.double() @ block.router.weight.double().T).tolist()
    weights = torch.tensor(
        [brute_force_weights(row, block.router.n_routed, block.router.mixing, block.router.shared_weight) for row in logits]
    )
    output_TD = torch.zeros_like(hidden_TD)
    for number in range(block.experts.n_experts):
        stock = copy.deepcopy(family.layer_list(dense_classifier(_name_of(model)))[layer].get_submodule("mlp"))
        family.write(stock, block.experts.expert(number))
        output_TD += weights[:, number, None].float() * stock(hidden_TD)
    return output_TD


def _name_of(model: PreTrainedModel) -> str:
    return "llama_biased" if getattr(model.config, "mlp_bias", False) else model.config.model_type.removesuffix("_text")


@pytest.mark.parametrize("experts", ["full", "lora:2"])
@pytest.mark.parametrize("mixing", ["s_max", "fixed"])
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_distinct_experts_equal_a_loop_over_stock_blocks(family: str, mixing: str, experts: str) -> None:
    model = mixture(family, mixing=mixing, experts=experts, shared_weight=0.3)
    block = moe_blocks(model)[1]
    move_apart(block)
    hidden_TD = torch.randn(25, HIDDEN, generator=torch.Generator().manual_seed(0))
    dense = family_of(model).layer_list(dense_classifier(family))[1].get_submodule("mlp")
    with torch.no_grad():
        got = block(hidden_TD.reshape(5, 5, HIDDEN))
        assert got.shape == (5, 5, HIDDEN)
        torch.testing.assert_close(got.reshape(25, HIDDEN), _loop_over_stock_blocks(model, 1, hidden_TD), atol=2e-5, rtol=1e-5)
        assert (got.reshape(25, HIDDEN) - dense(hidden_TD)).abs().max() > 1e-2


@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_reading_and_writing_a_block_are_inverse(family: str) -> None:
    model = copy.deepcopy(dense_classifier(family))
    layers = family_of(model).layer_list(model)
    before = {name: tensor.clone() for name, tensor in layers[0].get_submodule("mlp").state_dict().items()}
    family_of(model).write(layers[1].get_submodule("mlp"), family_of(model).read(layers[0].get_submodule("mlp")))
    after = layers[1].get_submodule("mlp").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _routing(n_tokens: int, *, k: int = 2, logits_TE: Tensor | None = None) -> Routing:
    logits = torch.randn(n_tokens, N - 1, generator=torch.Generator().manual_seed(1)) if logits_TE is None else logits_TE
    return route(logits, k, mixing="s_max", shared_weight=0.5)


@pytest.mark.parametrize("family", ["llama", "llama_biased", "gpt_neox"])
def test_delta_experts_equal_full_experts_of_the_same_matrices(family: str) -> None:
    model = mixture(family, experts="lora:2")
    block = moe_blocks(model)[0]
    move_apart(block)
    delta = block.experts
    assert isinstance(delta, DeltaExperts)
    full = FullExperts(delta.expert(0), N)
    hidden_TD = torch.randn(30, HIDDEN, generator=torch.Generator().manual_seed(0))

    for name, parameter in full.named_parameters():
        parameter.data.copy_(delta.stack(name))

    def run(experts: FullExperts | DeltaExperts) -> tuple[Tensor, list[Tensor]]:
        hidden, logits = hidden_TD.clone().requires_grad_(), torch.linspace(-1, 2, 90).sin().reshape(30, 3).requires_grad_()
        output = experts(hidden, _routing(30, logits_TE=logits), block.activation)
        return output, list(torch.autograd.grad((output**2).sum(), [hidden, logits, *experts.parameters()]))

    lean, lean_gradients = run(delta)
    dear, dear_gradients = run(full)
    torch.testing.assert_close(lean, dear, atol=3e-6, rtol=3e-6)
    stacks = [delta.stack(name) for name, _ in full.named_parameters()]
    chained = torch.autograd.grad(stacks, list(delta.parameters()), grad_outputs=dear_gradients[2:])
    for one, other in zip(lean_gradients, [*dear_gradients[:2], *chained], strict=True):
        assert other.norm() > 0
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("experts", ["full", "lora:2"])
def test_gradients_of_unselected_experts_are_zero(experts: str) -> None:
    block = moe_blocks(mixture("llama_biased", experts=experts, n_active=2))[0]
    move_apart(block)
    hidden_TD = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(2))
    chosen = int(block.router(hidden_TD).chosen_TK[0, 0])
    block(hidden_TD).square().sum().backward()
    others = [number for number in range(N - 1) if number != chosen]
    for name, parameter in block.experts.named_parameters():
        if experts == "full":
            assert (parameter.grad[1:][others] == 0).all(), name
            assert parameter.grad[0].norm() > 0
            assert parameter.grad[1:][chosen].norm() > 0
        elif name.endswith(("_a", "_b")):
            assert (parameter.grad[others] == 0).all(), name
            assert parameter.grad[chosen].norm() > 0
        else:
            assert parameter.grad.norm() > 0


def _router_gradient(*, apart: bool, **settings: object) -> Tensor:
    block = moe_blocks(mixture("llama", **settings))[0]
    if apart:
        move_apart(block)
    hidden_TD = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(2))
    block(hidden_TD).square().mean().backward()
    return block.router.weight.grad


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("s_max alone", {"mixing": "s_max", "n_active": 2}),
        ("the split alone", {"mixing": "fixed", "n_active": 3}),
        ("both", {"mixing": "s_max", "n_active": 3}),
    ],
)
def test_the_router_learns_once_experts_differ(path: str, settings: dict[str, object]) -> None:
    apart, equal = _router_gradient(apart=True, **settings), _router_gradient(apart=False, **settings)
    assert apart.norm() > 1e-4, path
    assert equal.norm() < 1e-5 * apart.norm(), "with equal experts the task cannot move the router"


def test_a_fixed_share_and_one_routed_expert_never_move_the_router() -> None:
    trap = _router_gradient(apart=True, mixing="fixed", n_active=2)
    assert trap.norm() < 1e-6 * _router_gradient(apart=True, mixing="fixed", n_active=3).norm(), "the one weight is always one"


@pytest.mark.parametrize("mixing", ["s_max", "fixed"])
def test_gradients_of_the_mixing_are_those_of_the_equations(mixing: str) -> None:
    logits = torch.tensor([[0.3, -0.7, 1.1, 0.2]], dtype=torch.float64)
    values = torch.tensor([0.5, -1.0, 2.0, 0.7, -0.3], dtype=torch.float64)

    def brute(row: list[float]) -> float:
        return sum(weight * value for weight, value in zip(brute_force_weights(row, 2, mixing, 0.3), values.tolist(), strict=True))

    variable = logits.clone().requires_grad_()
    (all_weights(route(variable, 2, mixing=mixing, shared_weight=0.3)) @ values).sum().backward()  # type: ignore[arg-type]
    for place in range(4):
        up, down = logits[0].tolist(), logits[0].tolist()
        up[place] += 1e-5
        down[place] -= 1e-5
        assert float(variable.grad[0, place]) == pytest.approx((brute(up) - brute(down)) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("family", ["llama", "llama_biased", "gpt2"])
@pytest.mark.parametrize("kind", ["full", "lora:2"])
def test_a_block_equals_the_sum_over_tokens_and_experts_one_by_one(family: str, kind: str) -> None:
    block = moe_blocks(mixture(family, experts=kind))[0]
    move_apart(block)
    hidden_TD = torch.randn(12, HIDDEN, generator=torch.Generator().manual_seed(0))
    routing = _routing(12)
    with torch.no_grad():
        rows = []
        for token in range(12):
            row = routing.shared_T[token] * feed_forward(hidden_TD[token], block.experts.expert(0), block.activation)
            for weight, number in zip(routing.weights_TK[token], routing.chosen_TK[token].tolist(), strict=True):
                row = row + weight * feed_forward(hidden_TD[token], block.experts.expert(number + 1), block.activation)
            rows.append(row)
        torch.testing.assert_close(block.experts(hidden_TD, routing, block.activation), torch.stack(rows), atol=2e-5, rtol=1e-4)


def test_the_router_computes_in_fp32_under_autocast() -> None:
    block = moe_blocks(mixture("llama"))[0]
    hidden_TD = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = block.router(hidden_TD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(all_weights(block.router(hidden_TD)), all_weights(plain), atol=0, rtol=0)


def test_the_seed_fixes_the_router_and_leaves_the_global_generator_alone() -> None:
    routers = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(dense_classifier("llama"))
        torch.manual_seed(9)
        upcycle(model, Upcycle(n_experts=3, n_active=2), seed=seed)
        after = torch.rand(1)
        torch.manual_seed(9)
        assert torch.equal(after, torch.rand(1))
        routers.append(moe_blocks(model)[0].router.weight.detach())
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])
    assert 0.01 < float(routers[0].std()) < 0.03, "a zero router would send every token to the same experts"


def test_only_the_named_layers_become_mixtures() -> None:
    model = copy.deepcopy(dense_classifier("qwen2"))
    upcycle(model, Upcycle(n_experts=3, n_active=2, layers="top:2"))
    assert list(moe_blocks(model)) == [1, 2]
    model = copy.deepcopy(dense_classifier("qwen2"))
    upcycle(model, Upcycle(n_experts=3, n_active=2, layers="all"), layers=range(2, 3))
    assert list(moe_blocks(model)) == [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_experts": 1}, r"upcycle\.n_experts=1: a mixture needs a shared expert and at least one routed expert; write n_experts=2"),
        ({"n_experts": 2, "n_active": 2}, r"n_experts=2 with mixing=s_max gives the shared expert a weight of zero.*mixing=fixed"),
        ({"n_experts": 4, "n_active": 5}, r"upcycle\.n_active=5: expected 2 to n_experts=4, the shared expert included"),
        ({"n_experts": 4, "n_active": 1}, r"upcycle\.n_active=1: expected 2 to n_experts=4"),
        ({"shared_weight": 1.5}, r"upcycle\.shared_weight=1\.5: expected a weight between 0 and 1"),
        ({"experts": "lora:0"}, r"upcycle\.experts='lora:0': expected `full` or `lora:R`"),
        ({"experts": "half"}, r"upcycle\.experts='half': expected `full` or `lora:R`"),
        ({"layers": "top:9"}, r"layers='top:9': expected `all` or `top:K` with K from 0 to 3"),
        ({"layers": "bottom:1"}, r"layers='bottom:1': expected `all` or `top:K`"),
        ({"layers": "top:0"}, r"upcycle\.layers='top:0' names no layer that trains; expected at least one"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    model = copy.deepcopy(dense_classifier("llama"))
    with pytest.raises(ConfigError, match=message):
        upcycle(model, Upcycle(**settings))
    assert not moe_blocks(model)


def test_two_experts_with_a_fixed_share_are_allowed() -> None:
    assert moe_blocks(mixture("llama", n_experts=2, n_active=2, mixing="fixed"))


def test_upcycling_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="holds experts already, expected a dense one; merge it first"):
        upcycle(mixture("llama"), Upcycle())


def test_an_unknown_family_is_named() -> None:
    model = BloomForSequenceClassification(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1, num_labels=1))
    with pytest.raises(ModelError, match=r"feed-forward blocks of a 'bloom' model: models/families\.py has no entry for it \(known: llama"):
        upcycle(model, Upcycle())
