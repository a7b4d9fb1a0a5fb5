"""A reward that reads the policy: the vanilla reward where it must be, the equation elsewhere, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.models.cross_attention import AttentionShape
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.rewards import Moment
from rewardproof.scoring import PolicyFeedbackReward, PolicyMoment, own_weight

POLICY_WIDTH = 12


def group(prompt: str, *answers: str) -> Group:
    return Group(prompt=(Message("user", prompt),), answers=tuple((Message("assistant", text),) for text in answers))


GROUPS = [group("w1 w2", "w3 w4 w5", "w6", "w3 w4 w5"), group("w9 w8 w7", "w1", "w2 w2 w2 w2")]


def policy_states(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, POLICY_WIDTH, generator=generator) for length in (6, 4, 6, 5, 8)]


def moment(step: int, *, steps: int = 10, states: Sequence[torch.Tensor] | None = None) -> Moment:
    return Moment(step, steps, lambda: policy_states() if states is None else states)


@dataclass
class Followers:
    """Makes rewards around fresh reward models."""

    tiny: ModuleType
    family: str = "llama"

    def model(self) -> RewardModel:
        return RewardModel(self.tiny.classifier(self.family), self.tiny.word_tokenizer())

    def __call__(self, **changes: Any) -> PolicyFeedbackReward:
        settings: dict[str, Any] = {"floor": 0.6, "seed": 0, **changes}
        return PolicyFeedbackReward(self.model(), POLICY_WIDTH, AttentionShape(width=16), **settings)


@pytest.fixture
def follower(tiny: ModuleType) -> Followers:
    return Followers(tiny)


def flat(scores: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor([value for row in scores for value in row])


def test_weight_starts_at_one_never_rises_and_ends_at_its_floor() -> None:
    for floor in (0.0, 0.6, 0.7, 1.0):
        weights = [own_weight(step, 1000, floor=floor) for step in range(1001)]
        assert weights[0] == 1.0
        assert weights[-1] == floor
        assert all(later <= earlier for earlier, later in itertools.pairwise(weights))
        assert min(weights) == floor


@pytest.mark.parametrize(("floor", "reached"), [(0.6, 0.436), (0.7, 0.369)])
def test_weight_reaches_its_floor_at_the_derived_share_of_the_run(floor: float, reached: float) -> None:
    assert reached == pytest.approx(math.acos(2 * floor - 1) / math.pi, abs=5e-4)
    steps = 10_000
    first = next(step for step in range(steps) if own_weight(step, steps, floor=floor) == floor)
    assert first / steps == pytest.approx(reached, abs=6e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_step_gives_the_vanilla_reward_bit_for_bit(follower: Followers, precision: Any) -> None:
    vanilla, reward = follower.model(), follower()
    vanilla.precision = reward.model.precision = precision
    assert reward.score(GROUPS, moment(0)) == vanilla.score(GROUPS)
    assert reward.score(GROUPS, moment(5)) != vanilla.score(GROUPS)


def test_without_a_policy_the_reward_is_the_vanilla_one_and_that_is_said_and_counted(
    follower: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    reward = follower()
    assert [reward.score(GROUPS) for _ in range(2)] == [follower.model().score(GROUPS)] * 2
    assert reward.without_policy == 10
    assert [record.message for record in caplog.records].count(
        "scoring without a policy: its states are left out, rewards are the reward model's own (w = 1)"
    ) == 1
    reward.score(GROUPS, moment(3))
    assert reward.without_policy == 10


def test_the_reward_as_given_stays_whatever_the_head_learns(follower: Followers) -> None:
    reward = follower()
    torch.nn.init.ones_(reward.head.weight)
    assert reward.as_given.score(GROUPS, moment(5)) == follower.model().score(GROUPS)
    assert reward.score(GROUPS) != follower.model().score(GROUPS)
    assert reward.model.model.get_submodule("score") is reward.head


def test_later_rewards_are_the_equation_written_out(follower: Followers) -> None:
    reward, step, steps = follower(), 3, 10
    found = flat(reward.score(GROUPS, moment(step, steps=steps)))
    weight = 0.5 * math.cos(math.pi * step / steps) + 0.5
    assert weight > 0.6
    attention, model = reward.attention.double(), reward.model.model
    rows = [tokens for one in reward.model.encode(GROUPS)[0] for tokens in one.conversations]
    for value, tokens, states in zip(found, rows, policy_states(), strict=True):
        own_D = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1].double()
        keys, values = (linear(states.double()) for linear in (attention.key, attention.value))
        read_D = attention.output((keys @ attention.query(own_D) / 16**0.5).softmax(dim=0) @ values)
        mixed_D = (1 - weight) * read_D + weight * own_D
        assert value.item() == pytest.approx((model.score.weight[0].double() @ mixed_D).item(), abs=1e-4)


def test_any_family_is_read_through_its_own_head(tiny: ModuleType, any_family: str) -> None:
    made = Followers(tiny, any_family)
    reward = made()
    assert reward.score(GROUPS, moment(0)) == made.model().score(GROUPS)
    assert flat(reward.score(GROUPS, moment(9))).isfinite().all()


def test_answers_scored_together_one_by_one_and_permuted_are_the_same(follower: Followers) -> None:
    reward, states = follower(), policy_states()
    together = flat(reward.score(GROUPS, moment(6)))
    places = [(one, index) for one in GROUPS for index in range(len(one.answers))]
    for place, (one, index) in enumerate(places):
        alone = Group(prompt=one.prompt, answers=(one.answers[index],))
        found = flat(reward.score([alone], moment(6, states=states[place : place + 1])))
        torch.testing.assert_close(found[0], together[place], atol=2e-5, rtol=0)
    order = [2, 0, 1]
    shuffled = Group(prompt=GROUPS[0].prompt, answers=tuple(GROUPS[0].answers[place] for place in order))
    found = flat(reward.score([shuffled], moment(6, states=[states[place] for place in order])))
    torch.testing.assert_close(found, together[order], atol=2e-5, rtol=0)


def test_equal_answers_differ_by_what_the_policy_thought(follower: Followers) -> None:
    first, _, third = follower().score(GROUPS, moment(6))[0]
    assert first != third
    states = policy_states()
    states[2] = states[0]
    first, _, third = follower().score(GROUPS, moment(6, states=states))[0]
    assert first == pytest.approx(third, abs=1e-5)


def test_gradient_reaches_the_four_projections_and_the_head_alone(follower: Followers) -> None:
    reward = follower()
    reward.score(GROUPS, moment(6))
    assert reward.latest is not None
    states = [one.requires_grad_(False) for one in policy_states()]
    reward.rewards(reward.latest.states_BD, states, 0.7).square().sum().backward()
    assert {name for name, one in reward.parts.named_parameters() if one.grad is not None and one.grad.abs().max() > 0} == {
        "attention.query.weight", "attention.key.weight", "attention.value.weight", "attention.output.weight", "head.weight",
    }  # fmt: skip
    moved = {name for name, one in reward.model.model.named_parameters() if one.grad is not None}
    assert moved == {"score.weight"}


def test_a_floor_of_one_never_asks_for_the_policy(follower: Followers) -> None:
    def refuse() -> list[torch.Tensor]:
        raise AssertionError("asked")

    assert follower(floor=1.0).score(GROUPS, Moment(9, 10, refuse)) == follower.model().score(GROUPS)


def test_noise_has_the_moments_of_the_states_and_depends_on_its_name_alone(follower: Followers) -> None:
    noisy = follower(feedback="noise")
    wide = [3 + 2 * torch.randn(400, POLICY_WIDTH, generator=torch.Generator().manual_seed(place)) for place in range(5)]
    found = noisy.fed(GROUPS, wide, step=4)
    for noise, states in zip(found, wide, strict=True):
        assert noise.mean().item() == pytest.approx(states.mean().item(), abs=0.1)
        assert noise.std().item() == pytest.approx(states.std().item(), rel=0.03)
        assert abs(np.corrcoef(noise.flatten().numpy(), states.flatten().numpy())[0, 1]) < 0.06
    again = noisy.fed(GROUPS[1:], wide[3:], step=4)
    assert all(torch.equal(one, other) for one, other in zip(again, found[3:], strict=True))
    assert not torch.equal(noisy.fed(GROUPS, wide, step=5)[0], found[0])
    assert follower().fed(GROUPS, wide, step=4)[0] is wide[0]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (lambda: policy_states()[:3], "Got states of 3 texts, of width 12, for 5 answers"),
        (lambda: [one[:, :5] for one in policy_states()], "of width 5, for 5 answers and a policy of width 12"),
    ],
)
def test_states_of_other_answers_are_refused(states: Callable[[], Any], message: str, follower: Followers) -> None:
    with pytest.raises(EvaluationError, match=message):
        follower().score(GROUPS, Moment(5, 10, states))


def test_what_is_no_moment_is_refused(follower: Followers) -> None:
    with pytest.raises(EvaluationError, match="Got a dict as context, expected the policy's moment"):
        follower().score(GROUPS, {"step": 3})
    assert isinstance(moment(0), PolicyMoment)


def test_heads_that_do_not_divide_the_width_are_refused(follower: Followers) -> None:
    with pytest.raises(ConfigError, match=r"attention.width=16 with attention.heads=5"):
        PolicyFeedbackReward(follower.model(), POLICY_WIDTH, AttentionShape(width=16, heads=5), floor=0.6)
