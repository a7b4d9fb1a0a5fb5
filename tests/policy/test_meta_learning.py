"""MetaRM: the step is taken where the model was, along the gradient of where it would have been; and it comes before every round."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.data import Group, Message
from rewardproof.errors import ConfigError
from rewardproof.losses import bradley_terry, pairwise_spread
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.learning import LearningRewards
from rewardproof.policy.meta_learning import MetaLearner, MetaLearning, ahead, check_meta
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Prompt, Rollouts
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.policy.trained_reward import TrainedReward, Turns
from rewardproof.scoring import Scale
from rewardproof.training.batches import TrainingSet
from tests.policy.taking_up import assert_same_updates, take_up

PROMPTS = tuple(f"w{number} w{number + 1}" for number in range(5, 17))
SMALL: dict[str, Any] = {"learning_rate": 1e-2, "steps": 2, "prompts": 3, "groups": 4, "data": ("x",), "eta": 0.1}
Sets = Callable[..., TrainingSet]


def learner_of(tiny: ModuleType, preferences: TrainingSet, *, budget: int = 0, **settings: Any) -> MetaLearner:
    made = MetaLearning(**SMALL | settings)
    model = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer(), tokens_per_batch=budget)
    trained = TrainedReward(model, made, name="rm", key="metarm")
    return MetaLearner(trained, made, Turns(preferences, size=made.groups, seed=0), answers=3)


def loop_of(tiny: ModuleType, learner: MetaLearner, **optimise: Any) -> OnPolicyLoop:
    chosen: dict[str, Any] = {
        "estimator": "rloo", "max_new_tokens": 6, "prompts_per_step": 4, "answers": 3, "learning_rate": 1e-2, "steps": 6, **optimise,
    }  # fmt: skip
    scored = ScoredAnswers({"rm": learner.trained.model}, {"rm": Scale(0.0, 0.5)})
    tokenizer, policy = tiny.word_tokenizer(), Policy(tiny.causal("gpt_neox"))
    prompts = [Prompt.of(Group((Message("user", text),), ()), tokenizer) for text in PROMPTS]
    source, run = LearningRewards(scored, {"rm": learner}), OnPolicy(**chosen)
    return OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, run, Passes("fp32", 512), seed=0)


def samples_of(learner: MetaLearner, count: int = 3) -> Any:
    answers = tuple((Message("assistant", text),) for text in ("w3", "w4 w5", "w6 w7 w8"))
    return learner.trained.model.encode([Group((Message("user", f"w{number}"),), answers) for number in range(count)])[0]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


# One step.


def test_equals_plain_bradley_terry_training_bitwise_when_eta_is_0(tiny: ModuleType, random_set: Sets) -> None:
    preferences = random_set(9, sizes=(2,))
    learner = learner_of(tiny, preferences, eta=0.0, max_grad_norm=1.0)
    plain = copy.deepcopy(learner.trained)
    optimizer = torch.optim.AdamW(plain.parameters, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    for number in range(5):
        chosen = learner.preferences.take(number)
        for one in plain.passes([entry.group for entry in chosen], [entry.pairs for entry in chosen]):
            (bradley_terry(*one.rewards_C.view(-1, 2).unbind(dim=1), margin_B=0.0, reduction="sum") / 4).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        told = learner.step(samples_of(learner), number)
        assert told["moved"] == 0
        assert told["spread"] > 0
    assert same(weights(plain.model.model), learner.trained.model.model)


def test_eta_makes_another_step(tiny: ModuleType, random_set: Sets) -> None:
    found = []
    for eta in (0.0, 0.1, 0.5):
        learner = learner_of(tiny, random_set(9), eta=eta)
        learner.step(samples_of(learner), 0)
        found.append(weights(learner.trained.model.model)["score.weight"])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_a_step_is_the_written_out_first_order_step(tiny: ModuleType, random_set: Sets) -> None:
    """Gradient at θ', applied to θ; no second derivative."""
    learner = learner_of(tiny, random_set(4, sizes=(2,)), eta=0.3, max_grad_norm=0.0, form="sigmoid", epsilon=0.0)
    samples, chosen = samples_of(learner), learner.preferences.take(0)
    there, theta = copy.deepcopy(learner.trained), weights(learner.trained.model.model)
    (one,) = there.passes(samples)
    gradient = torch.autograd.grad(pairwise_spread(one.rewards_C.view(-1, 3), form="sigmoid", epsilon=0.0), there.parameters)
    length = torch.cat([part.flatten() for part in gradient]).norm()
    with torch.no_grad():
        for parameter, part in zip(there.parameters, gradient, strict=True):
            parameter += 0.3 * part / length
    (two,) = there.passes([entry.group for entry in chosen], [entry.pairs for entry in chosen])
    loss = bradley_terry(*two.rewards_C.view(-1, 2).unbind(dim=1))
    expected = torch.autograd.grad(loss, there.parameters)
    taken: list[torch.Tensor] = []
    learner.trained.steps.take = lambda: (taken.extend(one.grad.clone() for one in learner.trained.parameters), 0.0)[1]  # pyright: ignore
    told = learner.step(samples, 0)
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert told["moved"] == pytest.approx(0.3, rel=1e-5)
    for ours, theirs in zip(taken, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    assert same(theta, learner.trained.model.model), "the step itself was left out here"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_theta_is_restored_exactly(dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(torch.randn(7, 3).mul(10.0**power).to(dtype)) for power in (-6, 0, 5)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    with ahead(parameters, 0.7, normalised=False):
        assert not torch.equal(parameters[1], before[1])
        assert all(parameter.grad is None for parameter in parameters)
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))


def test_theta_is_restored_where_learning_breaks_off() -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))
    parameter.grad, before = torch.ones(3), parameter.detach().clone()
    with pytest.raises(KeyboardInterrupt), ahead([parameter], 0.1, normalised=True):
        raise KeyboardInterrupt
    assert torch.equal(parameter, before)


def test_optimiser_state_follows_theta_alone(tiny: ModuleType, random_set: Sets) -> None:
    """Neither the move nor J's gradient reaches momentum: its first moment is the step's gradient alone."""
    learner = learner_of(tiny, random_set(9), eta=0.5, max_grad_norm=0.0)
    taken: list[torch.Tensor] = []
    optimizer = learner.trained.steps.optimizer
    step = optimizer.step
    optimizer.step = lambda: (taken.extend(one.grad.clone() for one in learner.trained.parameters), step())[1]  # pyright: ignore
    learner.step(samples_of(learner), 0)
    for parameter, gradient in zip(learner.trained.parameters, taken, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], 0.1 * gradient)


@pytest.mark.parametrize("normalised", [True, False])
def test_eta_times_the_gradient_is_normalised_or_not(normalised: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([300.0, 400.0])
    with ahead([parameter], 0.01, normalised=normalised) as moved:
        assert moved == pytest.approx(0.01 if normalised else 5.0)
        assert parameter.detach().norm().item() == pytest.approx(moved)


def test_answers_that_are_all_equal_move_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.zeros(2)
    with ahead([parameter], 0.1, normalised=True) as moved:
        assert moved == 0
        assert torch.equal(parameter, torch.ones(2))


def test_streams_are_summed_to_the_same_step(tiny: ModuleType, random_set: Sets) -> None:
    found = []
    for budget in (4096, 30):
        learner = learner_of(tiny, random_set(9), budget=budget)
        told = learner.step(samples_of(learner), 0)
        found.append((told, weights(learner.trained.model.model)))
    (one, left), (other, right) = found
    assert one == pytest.approx(other, rel=1e-3)
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-4, rtol=1e-2)


def test_the_move_makes_answers_easier_to_tell_apart(tiny: ModuleType, random_set: Sets) -> None:
    learner = learner_of(tiny, random_set(4), eta=0.05)
    samples = samples_of(learner)
    before = learner._spread(samples, 3)
    with ahead(learner.trained.parameters, 0.05, normalised=True), torch.no_grad():
        after = learner._spread(samples, 3)
    assert after > before


# Rounds.


@pytest.mark.parametrize(("rounds", "begin"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (4, [0, 2, 3, 5]), (6, list(range(6)))])
def test_rounds_begin_evenly(rounds: int, begin: list[int], tiny: ModuleType, random_set: Sets) -> None:
    learner = learner_of(tiny, random_set(4), rounds=rounds)
    found = {step: learner.begins(Moment(step, 6, list)) for step in range(6)}
    assert [step for step, number in found.items() if number is not None] == begin
    assert [found[step] for step in begin] == list(range(rounds))


def test_refreshes_from_the_policy_of_that_moment_and_before_its_answers_are_judged(tiny: ModuleType, random_set: Sets) -> None:
    learner = learner_of(tiny, random_set(9), rounds=3)
    loop = loop_of(tiny, learner)
    events: list[Any] = []
    further, rewards, step = loop._further, loop.source.rewards, learner.step

    def sampled(count: int) -> Rollouts:
        found = further(count)
        events.append(("sampled", count, all(torch.equal(*pair) for pair in zip(*both(loop), strict=True)), found.groups))
        return found

    def judged(rollouts: Rollouts, moment: Moment) -> torch.Tensor:
        found = rewards(rollouts, moment)
        events.append(("judged", moment.step))
        return found

    loop._further, loop.source.rewards = sampled, judged
    learner.step = lambda samples, number: (events.append(("step", number)), step(samples, number))[1]
    told = [loop.update() for _ in range(4)]
    assert [event[:2] for event in events] == [
        ("sampled", 6), ("step", 0), ("step", 1), ("judged", 0), ("judged", 1), ("sampled", 6), ("step", 2), ("step", 3), ("judged", 2),
        ("judged", 3),
    ]  # fmt: skip
    samples = [event for event in events if event[0] == "sampled"]
    assert all(event[2] for event in samples), "the sampler has the policy's weights"
    assert len({one.prompt_key for one in samples[0][3]}) == 6
    assert samples[0][3][0].answers != samples[1][3][0].answers
    assert [one["metarm/refreshes"] for one in told] == [1, 0, 1, 0]
    assert {"metarm/loss", "metarm/spread", "metarm/spread_after", "metarm/accuracy", "metarm/round"} <= told[0].keys()
    assert "metarm/loss" not in told[1]


def both(loop: OnPolicyLoop) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return list(loop.sampler.model.parameters()), list(loop.policy.model.parameters())


def test_between_refreshes_nothing_of_it_moves(tiny: ModuleType, random_set: Sets) -> None:
    learner = learner_of(tiny, random_set(9))
    loop = loop_of(tiny, learner)
    loop.update()
    before = weights(learner.trained.model.model)
    loop.update()
    assert same(before, learner.trained.model.model)
    assert not same(before, learner.trained.given.model)


def test_a_state_taken_up_goes_on_to_the_same_bits(tiny: ModuleType, random_set: Sets) -> None:
    whole, parts = (loop_of(tiny, learner_of(tiny, random_set(9), rounds=3)) for _ in range(2))
    for _ in range(3):
        whole.update()
    take_up(parts, whole)
    assert_same_updates(whole, parts, count=3)


# What is refused.


def test_what_cannot_mean_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Got metarm without data, expected preferences"):
        check_meta(MetaLearning(), OnPolicy())
    with pytest.raises(ConfigError, match=r"optimise.answers=1 with metarm: expected 2 or more"):
        check_meta(MetaLearning(data=("x",)), OnPolicy(estimator="ppo", answers=1))
    with pytest.raises(ConfigError, match=r"metarm.rounds=5 with optimise.steps=4: expected at most as many rounds as updates"):
        check_meta(MetaLearning(data=("x",), rounds=5), OnPolicy(steps=4))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"metarm.prompts=8 and groups=32 on 3 processes: expected multiples"):
        check_meta(MetaLearning(data=("x",)), OnPolicy())
