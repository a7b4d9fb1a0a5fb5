"""Router losses: zero where routing is even, unmoved by padding, and the smooth load against simulation."""

import pytest
import torch

from rewardproof.errors import ConfigError, DataError
from rewardproof.losses import importance_load_balance, smooth_load, squared_variation, switch_balance


def routing(n_tokens: int = 12, n_experts: int = 5, k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.randn(n_tokens, n_experts, generator=generator, dtype=torch.float64).softmax(-1)
    return probabilities, torch.zeros_like(probabilities).scatter(1, probabilities.topk(k).indices, 1.0).bool()


def test_squared_variation_is_the_definition() -> None:
    usage = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(squared_variation(usage), usage.var() / (usage.mean() ** 2 + 1e-10))
    assert squared_variation(torch.tensor([4.0])) == 0.0


def test_importance_and_load_written_out() -> None:
    probabilities, selected = routing()
    sums = [sum(probabilities[t, i].item() for t in range(12) if selected[t, i]) for i in range(5)]
    importance = torch.tensor(sums, dtype=torch.float64)
    load = selected.double().sum(0)
    torch.testing.assert_close(importance_load_balance(probabilities, selected), squared_variation(importance) + squared_variation(load))


@pytest.mark.parametrize("loss", [importance_load_balance, switch_balance])
def test_tokens_without_weight_change_nothing(loss) -> None:
    probabilities, selected = routing()
    pads = torch.tensor([[0.96, 0.01, 0.01, 0.01, 0.01]], dtype=torch.float64).expand(30, -1)
    weight = torch.cat([torch.zeros(15), torch.ones(12), torch.zeros(15)])
    padded = torch.cat([pads[:15], probabilities, pads[15:]])
    chosen = torch.cat([pads[:15] > 0.5, selected, pads[15:] > 0.5])
    torch.testing.assert_close(loss(padded, chosen, token_weight_T=weight), loss(probabilities, selected))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_perfectly_even_routing_has_balance_one_and_zero(k: int) -> None:
    probabilities = torch.full((4, 4), 0.25, dtype=torch.float64)
    selected = torch.stack([torch.roll(torch.arange(4) < k, t) for t in range(4)])
    torch.testing.assert_close(switch_balance(probabilities, selected), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(importance_load_balance(probabilities, selected), torch.tensor(0.0, dtype=torch.float64))


def test_one_expert_taking_all_is_the_worst_case_and_no_tokens_is_zero() -> None:
    one_hot = torch.eye(4)[:1].expand(6, -1)
    assert switch_balance(one_hot, one_hot) == 4.0
    assert switch_balance(one_hot, one_hot, token_weight_T=torch.zeros(6)) == 0.0


def test_the_hard_load_has_no_gradient_but_the_mass_has() -> None:
    probabilities, selected = routing()
    probabilities.requires_grad_()
    (switch_balance(probabilities, selected) + importance_load_balance(probabilities, selected)).backward()
    assert probabilities.grad is not None
    assert probabilities.grad.abs().sum() > 0


def test_smooth_load_is_the_chance_to_stay_in_the_top_k() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    std = torch.rand(1, 5, generator=generator, dtype=torch.float64) + 0.5
    noisy = logits + std * torch.randn(1, 5, generator=generator, dtype=torch.float64)
    smooth = smooth_load(logits, noisy, std, k=2)
    for expert in range(5):
        again = noisy.repeat(40_000, 1)
        again[:, expert] = logits[0, expert] + std[0, expert] * torch.randn(40_000, generator=generator, dtype=torch.float64)
        frequency = (again.topk(2).indices == expert).any(1).double().mean()
        torch.testing.assert_close(smooth[0, expert], frequency, atol=0.012, rtol=0)


def test_smooth_load_reaches_the_loss_with_a_gradient() -> None:
    probabilities, selected = routing()
    logits = probabilities.log().requires_grad_()
    load = smooth_load(logits, logits.detach() + 0.1, torch.ones_like(logits), k=2)
    importance_load_balance(probabilities, selected, load_TE=load).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_mistakes_stop_with_a_sentence() -> None:
    probabilities, selected = routing()
    with pytest.raises(ConfigError, match="expected 1 <= k < 5"):
        smooth_load(probabilities, probabilities, probabilities, k=5)
    with pytest.raises(DataError, match="probabilities and selected have shapes"):
        switch_balance(probabilities, selected[:3])
    with pytest.raises(DataError, match="token weights and tokens have shapes"):
        switch_balance(probabilities, selected, token_weight_T=torch.ones(3))
    with pytest.raises(DataError, match="load and selected"):
        importance_load_balance(probabilities, selected, load_TE=torch.ones(3))
