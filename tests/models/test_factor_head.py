"""The head of factors: the algorithm written out again, what samples and what does not, what dies and what gradients reach."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.data.group import Group, Message
from rewardproof.data.packing import pack
from rewardproof.errors import ConfigError, ModelError
from rewardproof.losses import weibull_gamma_kl
from rewardproof.models.cost import products_per_token
from rewardproof.models.factor_head import (
    FLOOR,
    FactorHead,
    Factors,
    dead_factors,
    factor_head_of,
    factors_in_effect,
    install_factors,
    travelled,
)
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from tests.models import tiny

D, K = 16, 24
STATES = torch.randn(5, D, generator=torch.Generator().manual_seed(1))


def head_of(*, seed: int = 0, **settings: object) -> FactorHead:
    torch.manual_seed(seed)
    return FactorHead(D, Factors.model_validate({"n_factors": K, **settings})).eval()


def model_with_factors(family: str = "llama", **settings: object) -> PreTrainedModel:
    model = tiny.classifier(family)
    install_factors(model, Factors.model_validate({"n_factors": K, **settings}), seed=3)
    return model.eval()


def mlp(network: nn.Module, states: Tensor) -> Tensor:
    """Linear, ReLU, linear, by the matrices."""
    weights = dict(network.named_parameters())
    return (states @ weights["0.weight"].T + weights["0.bias"]).clamp_min(0) @ weights["2.weight"].T + weights["2.bias"]


def test_the_reward_in_evaluation_is_the_mean_of_theta_times_phi_plus_b() -> None:
    head = head_of()
    with torch.no_grad():
        head.bias.fill_(0.3)
        head.dictionary.weight[::3] *= -1
        expected = mlp(head.theta_mean, STATES).clamp_min(0) @ head.dictionary.weight.clamp_min(0) + 0.3
        found = head(STATES)
    assert found.shape == (5, 1)
    torch.testing.assert_close(found[:, 0], expected)


@pytest.mark.parametrize("settings", [{}, {"layer": "linear"}, {"dictionary_init": "release"}, {"dictionary_activation": "softplus"}])
def test_rewards_are_never_negative_and_b_starts_at_zero(settings: dict[str, object]) -> None:
    head = head_of(**settings)
    states = 10 * torch.randn(400, D, generator=torch.Generator().manual_seed(2))
    assert head.bias.tolist() == [0]
    with torch.no_grad():
        for training in (False, True):
            assert (head.train(training)(states) >= 0).all()
        head.bias.fill_(-5.0)
        torch.testing.assert_close(head.eval()(torch.zeros(1, D)) * 0, torch.zeros(1, 1))
        assert (head(states) >= 0).all()


def test_the_sampled_reward_is_the_algorithm_written_out() -> None:
    head = head_of(dropout=0.0).train()
    torch.manual_seed(5)
    found = head(STATES)[:, 0]
    torch.manual_seed(5)
    noise_theta, noise_phi = torch.rand(5, K), torch.rand(K)
    z = mlp(head.theta_mean, STATES).clamp_min(0).clamp(1e-6, 1e4)
    k = F.softplus(mlp(head.theta_shape, STATES)).clamp(1e-6, 1e4) + 1
    theta = z / torch.lgamma(1 + 1 / k).exp() * (-(1 - noise_theta).clamp_min(1e-10).log()) ** (1 / k)
    zw = head.dictionary.weight.clamp_min(0)
    kw = F.softplus(mlp(head.phi_shape, zw[:, None]))[:, 0].clamp(1e-6, 1e4) + 1
    phi = zw.clamp(1e-6, 1e4) / torch.lgamma(1 + 1 / kw).exp() * (-(1 - noise_phi).clamp_min(1e-10).log()) ** (1 / kw)
    torch.testing.assert_close(found, theta @ phi + head.bias)


def test_the_mean_of_1e5_training_samples_of_theta_is_z_within_1_percent() -> None:
    head = head_of(dropout=0.0).train()
    with torch.no_grad():
        theta = head.theta(STATES[:1])
        generator, total = torch.Generator().manual_seed(0), torch.zeros(1, K)
        for _ in range(100):
            total += theta._replace(scale=theta.scale.expand(1000, K), shape=theta.shape.expand(1000, K)).sample(generator).sum(dim=0)
        alive = theta.mean > 1e-3
    assert alive.sum() > 5
    torch.testing.assert_close((total / 1e5)[alive], theta.mean[alive], rtol=0.01, atol=0)
    torch.testing.assert_close(theta.mean, head.eval().activations(STATES[:1]).clamp_min(FLOOR))


def nearly_certain(network: nn.Module) -> None:
    """Make every shape that a network gives so large that samples are the mean."""
    assert isinstance(network, nn.Sequential)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1e4)


def test_one_sample_of_phi_a_forward_is_shared_by_all_answers() -> None:
    head = head_of(dropout=0.0).train()
    nearly_certain(head.theta_shape)
    same = STATES[:1].expand(4, D)
    first, second = head(same)[:, 0], head(same)[:, 0]
    torch.testing.assert_close(first, first[:1].expand(4), rtol=1e-2, atol=0)
    assert abs(first.tolist()[0] - second.tolist()[0]) > 0.03 * first.tolist()[0], "the next forward draws another"
    nearly_certain(head.phi_shape)
    torch.testing.assert_close(head(same), head.eval()(same), rtol=2e-2, atol=0)


def test_gradients_reach_mlp_k_only_through_the_samples_and_the_divergence() -> None:
    head = head_of(dropout=0.0)
    head(STATES).sum().backward()
    shapes = [*head.theta_shape.parameters(), *head.phi_shape.parameters()]
    assert all(parameter.grad is None for parameter in shapes)
    assert all(parameter.grad is not None for parameter in head.theta_mean.parameters())
    head.train()(STATES).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in shapes)
    head.zero_grad()
    theta = head.theta(STATES)
    weibull_gamma_kl(theta.shape, theta.scale).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.theta_shape.parameters())


def test_a_dead_factor_costs_about_13_nats_and_has_no_gradient() -> None:
    head = head_of(dropout=0.0).train()
    last = head.theta_mean.get_submodule("2")
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[0], last.bias[0] = 0.0, -1.0
        head.dictionary.weight[1] = -0.1
    theta, phi = head.theta(STATES), head.phi()
    assert weibull_gamma_kl(theta.shape, theta.scale)[:, 0].min() > 12.5
    assert weibull_gamma_kl(theta.shape, theta.scale)[:, 0].max() < 13.7
    assert 12.5 < weibull_gamma_kl(phi.shape, phi.scale).tolist()[1] < 13.7
    (head(STATES).sum() + weibull_gamma_kl(theta.shape, theta.scale).sum() + weibull_gamma_kl(phi.shape, phi.scale).sum()).backward()
    assert last.bias.grad is not None
    assert head.dictionary.weight.grad is not None
    assert float(last.bias.grad[0]) == float(head.dictionary.weight.grad[1]) == 0
    dead = dead_factors(head.activations(STATES).detach(), head.dictionary().detach())
    assert dead[:2].all()


def test_the_release_starts_half_of_phi_dead_and_the_default_none_of_it() -> None:
    for settings, low, high in (
        ({"dictionary_init": "release"}, 0.4, 0.6),
        ({}, 0.0, 0.0),
        ({"dictionary_activation": "softplus"}, 0.0, 0.0),
        ({"dictionary_init": "release", "dictionary_activation": "softplus"}, 0.0, 0.0),
    ):
        head = head_of(**{"n_factors": 512, **settings})
        share = float((head.dictionary() <= FLOOR).float().mean())
        assert low <= share <= high, settings
    assert head_of(n_factors=512, dictionary_init="release").dictionary().detach().max() <= 512**-0.5
    plain, soft = head_of(n_factors=512), head_of(n_factors=512, dictionary_activation="softplus")
    torch.testing.assert_close(soft.dictionary(), plain.dictionary(), atol=2e-6, rtol=1e-3, msg="the activation does not move the start")
    assert float(plain.dictionary().detach().square().mean()) == pytest.approx(1 / 512, rel=0.2)


def test_the_linear_layer_has_one_shape_a_position() -> None:
    head = head_of(layer="linear").train()
    assert isinstance(head.theta_mean, nn.Linear)
    theta = head.theta(STATES)
    assert theta.shape.shape == (5, 1)
    assert theta.scale.shape == (5, K)
    assert head(STATES).shape == (5, 1)
    with torch.no_grad():
        expected = head.theta_mean(STATES).clamp_min(0) @ head.dictionary.weight.clamp_min(0)
        torch.testing.assert_close(head.eval()(STATES)[:, 0], expected)


def test_published_size_has_the_published_number_of_parameters() -> None:
    for width, millions in ((2048, 6.3), (4096, 10.5)):
        with torch.device("meta"):
            head = FactorHead(width, Factors())
        assert sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_autocast_is_off_inside_the_head() -> None:
    head = head_of()
    with torch.no_grad():
        expected = head(STATES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(head(STATES), expected)
            theta, phi = head.train().theta(STATES), head.phi()
    assert {part.dtype for part in (*theta, *phi)} == {torch.float32}


def test_dropout_works_on_the_states_in_training_alone() -> None:
    head = head_of(dropout=0.5).train()
    torch.manual_seed(0)
    first, second = head.theta(STATES).mean, head.theta(STATES).mean
    assert not torch.equal(first, second)
    head.eval()
    assert torch.equal(head(STATES), head(STATES))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_it_replaces_the_head_of_a_stock_model(family: str) -> None:
    """Packed rewards are those of the model's own forward, one conversation at a time, whatever its last token is."""
    model, groups = model_with_factors(family), tiny.random_groups(4)
    with torch.no_grad():
        torch.testing.assert_close(packed_rewards(model, pack(groups)).rewards_C, tiny.stock_rewards(model, groups), atol=2e-5, rtol=1e-5)
        assert (packed_rewards(model, pack(groups)).rewards_C >= 0).all()


def test_the_last_token_is_found_by_position_and_pads_on_either_side_change_nothing() -> None:
    """The release takes `attention_mask.sum() - 1`, which is the last token under right padding alone."""
    model = model_with_factors()
    model.config.pad_token_id = 0
    tokens = [5, 9, 0, 7, 33]
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([tokens])).logits[0, 0]
        for ids, mask in (([*tokens, 0, 0], [1] * 5 + [0] * 2), ([0, 0, *tokens], [0] * 2 + [1] * 5)):
            found = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits[0, 0]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        whole = packed_rewards(model, pack([group.select([0]) for group in tiny.random_groups(3)]))
    torch.testing.assert_close(whole.rewards_C, tiny.stock_rewards(model, [g.select([0]) for g in tiny.random_groups(3)]))


def text_groups(count: int = 4) -> list[Group]:
    return [
        Group((Message("user", f"w{number} w5"),), tuple((Message("assistant", f"w{number + place} w{7 * place}"),) for place in range(3)))
        for number in range(count)
    ]


def test_scoring_never_samples_even_where_the_model_was_left_in_training() -> None:
    model = RewardModel(model_with_factors(), tiny.word_tokenizer())
    expected = model.score(text_groups())
    model.model.train()
    assert model.score(text_groups()) == expected == model.score(text_groups())


def test_uncertainty_is_the_spread_of_rewards_over_draws() -> None:
    model = RewardModel(model_with_factors(), tiny.word_tokenizer())
    groups, head = text_groups(), factor_head_of(model.model)
    found = torch.tensor(model.uncertainty(groups, samples=4000))
    assert found.shape == (4, 3)
    states = torch.cat(model.states(model.encode(groups)[0]))
    with torch.no_grad():
        theta, phi = head.theta(states), head.phi()

        def variance(mean: Tensor, shape: Tensor) -> Tensor:
            first, second = torch.lgamma(1 + 1 / shape).exp(), torch.lgamma(1 + 2 / shape).exp()
            return mean.square() * (second / first.square() - 1)

        of_theta, of_phi = variance(theta.mean, theta.shape), variance(phi.mean, phi.shape)
        exact = (of_theta * (of_phi + phi.mean.square()) + theta.mean.square() * of_phi).sum(dim=-1).sqrt()
    torch.testing.assert_close(found.flatten(), exact, rtol=0.05, atol=0, msg="the variance of a sum of independent products")
    assert model.uncertainty(groups, samples=5) == model.uncertainty(groups, samples=5)
    assert model.uncertainty(groups, samples=5) != model.uncertainty(groups, samples=5, seed=1)
    assert model.uncertainty([]) == []
    nearly_certain(head.theta_shape)
    nearly_certain(head.phi_shape)
    assert torch.tensor(model.uncertainty(groups)).max() < 0.01 * exact.min()


def test_what_the_head_reads_is_the_state_at_the_last_token() -> None:
    model = RewardModel(model_with_factors(), tiny.word_tokenizer(), tokens_per_batch=12)
    encoded = model.encode(text_groups())[0]
    for group, states_ND in zip(encoded, model.states(encoded), strict=True):
        for tokens, state_D in zip(group.conversations, states_ND, strict=True):
            with torch.no_grad():
                expected = model.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
            torch.testing.assert_close(state_D, expected, atol=2e-5, rtol=0)


def test_a_linear_head_has_no_uncertainty() -> None:
    model = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer())
    with pytest.raises(ModelError, match=r"has a linear reward head, expected one of factors: .*Train one with recipe bnrm"):
        model.uncertainty(text_groups())
    with pytest.raises(ModelError, match="has no reward head, expected one of factors"):
        factor_head_of(tiny.causal("llama"))


def test_one_draw_has_no_spread() -> None:
    with pytest.raises(ConfigError, match=r"samples=1, expected 2 or more: .*Write samples=64"):
        RewardModel(model_with_factors(), tiny.word_tokenizer()).uncertainty(text_groups(), samples=1)


def test_a_head_is_drawn_by_its_seed_and_leaves_the_global_generator_alone() -> None:
    first = tiny.classifier("llama")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    install_factors(first, Factors(n_factors=K), seed=3)
    assert torch.equal(torch.rand(1), expected)
    again, other = model_with_factors(), copy.deepcopy(first)
    install_factors(other, Factors(n_factors=K), seed=4)
    for name, tensor in first.score.state_dict().items():
        assert torch.equal(again.score.state_dict()[name], tensor)
    assert not torch.equal(other.score.state_dict()["theta_mean.0.weight"], first.score.state_dict()["theta_mean.0.weight"])


def test_the_cost_of_a_token_leaves_heads_out() -> None:
    assert products_per_token(model_with_factors()) == products_per_token(tiny.classifier("llama"))


def test_factors_in_effect_and_the_way_that_phi_has_gone() -> None:
    active, even = torch.ones(3, 4), torch.ones(4)
    assert factors_in_effect(active, even) == pytest.approx(4)
    assert factors_in_effect(active, torch.tensor([2.0, 0, 0, 0])) == pytest.approx(1)
    assert factors_in_effect(active, torch.tensor([1.0, 1.0, 0, 0])) == pytest.approx(2)
    assert factors_in_effect(active, 0 * even) == 0
    assert travelled(even, even) == 0
    assert travelled(1.5 * even, even) == pytest.approx(0.5)
    assert travelled(even, 0 * even) == 0


def test_sharing_a_trunk_changes_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    model = RewardModel(model_with_factors(), tiny.word_tokenizer())
    expected = model.score(text_groups())
    torch.testing.assert_close(model.share_trunk(2, limit_gb=1).score(text_groups()), expected, atol=2e-6, rtol=0)
    linear = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer()).share_trunk(2, limit_gb=1)
    linear.score(text_groups())
    assert len(list((tmp_path / "trunk").iterdir())) == 1, "both heads read one store"
