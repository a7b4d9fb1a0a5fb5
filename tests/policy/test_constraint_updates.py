"""One step under constraints, by hand: what each value head learns, how multipliers move, and that whose a number is goes by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewardproof.config import load_recipe, parse
from rewardproof.losses import Sense
from rewardproof.policy import on_policy
from rewardproof.policy.estimators import by_values
from rewardproof.policy.rewards import Moment
from rewardproof.policy.settings import OnPolicy
from tests.policy.test_constraints import LOOP, OPTIMISE, PROMPTS, SCORERS, TEXTS, constrained

NOW = Moment(0, 1, list)
THRESHOLDS = {"length": 5.0, "even": 0.7}


def test_each_head_learns_its_own_stream_s_returns_with_its_own_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the squared error, a mean over tokens: the gradient of a head's bias is its weight times the mean of values less returns."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def watched(rewards_SBT: torch.Tensor, values_SBT: torch.Tensor, mask_BT: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        found = by_values(rewards_SBT, values_SBT, mask_BT, *rest, **settings)
        seen.append((values_SBT, found.returns_SBT, mask_BT))
        return found

    monkeypatch.setattr(on_policy, "by_values", watched)
    source = constrained(SCORERS, THRESHOLDS)
    chosen = {**TEXTS, "steps": 1, "epochs": 1, "minibatches": 1, "max_grad_norm": 1e9}
    optimise = parse(OnPolicy, {**OPTIMISE, **chosen, "value_coefficient": 0.5, "penalty_value_coefficient": 0.2})
    loop = LOOP.loop_of(LOOP.language_model(words=40), source, optimise, LOOP.prompts_of(*PROMPTS))
    assert loop.policy.values is not None
    loop.policy.values.bias.data[:] = torch.tensor([0.4, -0.3, 0.9])
    gradients: list[torch.Tensor] = []
    bias, step = loop.policy.values.bias, loop.optimizer.step
    loop.optimizer.step = lambda: (gradients.append(bias.grad.clone()), step())[1]
    loop.update()
    ((values, returns, mask),) = seen
    expected = [
        weight * float((values[place] - returns[place])[mask].mean()) for place, weight in enumerate((0.5, 0.5, 0.2))
    ]  # fmt: skip
    assert gradients[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected}) == 3


@pytest.mark.parametrize("sense", ["at_least", "at_most"])
def test_a_reward_s_weight_goes_with_it_where_rewards_are_turned_round(sense: Sense) -> None:
    found = []
    for order, weights in ((("length", "even"), (2.0, 0.5)), (("even", "length"), (0.5, 2.0))):
        source = constrained({name: SCORERS[name] for name in order}, THRESHOLDS, weights=weights, sense=sense)
        chosen = parse(OnPolicy, {**OPTIMISE, **TEXTS, "steps": 3})
        loop = LOOP.loop_of(LOOP.language_model(words=40), source, chosen, LOOP.prompts_of(*PROMPTS))
        found.append([loop.update() for _ in range(3)])
    for record, turned in zip(*found, strict=True):
        for name in record.keys() - {"seconds"}:
            assert record[name] == pytest.approx(turned[name], rel=1e-3, abs=1e-5), name


def test_all_ppo_raises_each_reward_by_its_weight_until_its_multiplier_takes_over() -> None:
    """(N − Σ σ) α_i − σ_i for a reward, N − Σ σ for the divergence."""
    source = constrained(SCORERS, THRESHOLDS, weights=(2.0, 0.5), sense="at_most")
    source.multipliers_N.data[:] = torch.tensor([1.0, -0.5])
    held = [1 / (1 + math.exp(-value)) for value in (1.0, -0.5)]
    objective = 2 - sum(held)
    assert source.weights() == pytest.approx([2.0 * objective - held[0], 0.5 * objective - held[1], objective])


@pytest.mark.parametrize(("steps", "max_grad_norm"), [(1, 0.0), (5, 0.0), (5, 0.05)])
def test_multipliers_descend_by_momentum_a_tenth_within_the_norm(steps: int, max_grad_norm: float) -> None:
    """SGD written out: g = (v − θ) σ'(μ), cut to the norm of all of them; b = 0.1 b + g; μ = μ − rate b."""
    settings = {"learning_rate": 0.3, "steps": steps, "max_grad_norm": max_grad_norm}
    source = constrained(SCORERS, THRESHOLDS, sense="at_least", multipliers=settings)
    multipliers, speeds = [0.0, 0.0], [0.0, 0.0]
    for values in ((4.0, 0.9), (6.0, 0.2), (5.5, 0.6)):
        rewards_SBT = torch.tensor(values)[:, None, None] * torch.ones(2, 3, 1)
        source.learn(None, rewards_SBT, NOW)  # pyright: ignore[reportArgumentType]
        for _ in range(steps):
            held = [1 / (1 + math.exp(-value)) for value in multipliers]
            gradient = [
                (value - threshold) * one * (1 - one) for value, threshold, one in zip(values, THRESHOLDS.values(), held, strict=True)
            ]
            norm = math.hypot(*gradient)
            cut = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
            speeds = [0.1 * speed + cut * one for speed, one in zip(speeds, gradient, strict=True)]
            multipliers = [value - 0.3 * speed for value, speed in zip(multipliers, speeds, strict=True)]
        assert source.multipliers_N.tolist() == pytest.approx(multipliers, rel=1e-4, abs=1e-6)


def test_the_divergence_s_stream_has_the_weight_one_in_every_recipe_of_constraints() -> None:
    coefficients: dict[str, float] = {
        name: parse(OnPolicy, load_recipe(name, verb="align")["optimise"]).kl.coefficient for name in ("mu_ppo", "xi_ppo", "nm_ppo")
    }
    assert coefficients == {"mu_ppo": 1.0, "xi_ppo": 1.0, "nm_ppo": 1.0}
