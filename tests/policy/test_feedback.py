"""A reward model that learns with the policy it reads: what moves, from what, and that it goes on where it was stopped."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError, TrainingError
from rewardproof.losses import bradley_terry, group_entropy
from rewardproof.models.cross_attention import AttentionShape
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.feedback import FeedbackLearner, FeedbackLearning, PolicyFeedback, check_feedback
from rewardproof.policy.learning import LearningRewards
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Prompt, Rollouts
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.scoring import PolicyFeedbackReward, Scale
from tests.policy.taking_up import assert_same_updates, take_up

PROJECTIONS = {f"attention.{name}.weight" for name in ("query", "key", "value", "output")}
PROMPTS = ("w5 w6", "w7 w8 w9", "w4", "w3 w3 w3", "w9 w2")
FAST: dict[str, Any] = {"learning_rate": 1e-2, "groups": 0}


def loop_of(tiny: ModuleType, learning: dict[str, Any], optimise: dict[str, Any] | None = None, **changes: Any) -> OnPolicyLoop:
    """Four prompts of a tiny policy against a tiny reward model of another family."""
    made = {"floor": 0.6, "feedback": "policy", "tokens_per_batch": 512, "init": "xavier", **changes}
    chosen: dict[str, Any] = {
        "estimator": "rloo", "max_new_tokens": 6, "prompts_per_step": 4, "answers": 4, "learning_rate": 1e-3, "steps": 6, "epochs": 2,
    }  # fmt: skip
    settings = OnPolicy(**chosen | (optimise or {}))
    policy = Policy(tiny.causal("gpt_neox"))
    tokenizer, reward = tiny.word_tokenizer(), RewardModel(tiny.classifier("llama"), tiny.word_tokenizer())
    shape = AttentionShape(width=16, init=made["init"])
    follower = PolicyFeedbackReward(reward, policy.config.hidden_size, shape, floor=made["floor"], feedback=made["feedback"])
    scored = ScoredAnswers({"rm": follower}, {"rm": Scale(0.0, 0.5)})
    learner = FeedbackLearner("rm", follower, FeedbackLearning(**FAST | learning), answers=settings.answers, unit=0.5)
    source = LearningRewards(scored, {"rm": learner})
    prompts = [Prompt.of(Group(prompt=(Message("user", text),), answers=()), tokenizer) for text in PROMPTS]
    passes = Passes("fp32", made["tokens_per_batch"])
    return OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, settings, passes, seed=0)


def source_of(loop: OnPolicyLoop) -> LearningRewards:
    assert isinstance(loop.source, LearningRewards)
    return loop.source


def learner_of(loop: OnPolicyLoop) -> FeedbackLearner:
    learner = source_of(loop).learners["rm"]
    assert isinstance(learner, FeedbackLearner)
    return learner


def follower_of(loop: OnPolicyLoop) -> PolicyFeedbackReward:
    return learner_of(loop).follower


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


class Watched(LearningRewards):
    """Keeps what it was given, and what moved while it learnt."""

    def __init__(self, inner: LearningRewards, policy: Policy) -> None:
        super().__init__(inner.scored, inner.learners)
        self.policy = policy
        self.seen: list[tuple[Rollouts, Moment, list[torch.Tensor]]] = []
        self.moved_policy: set[str] = set()
        self.moved_model: set[str] = set()
        self.moved_parts: set[str] = set()

    def rewards(self, rollouts: Rollouts, moment: Moment) -> torch.Tensor:
        self.seen.append((rollouts, moment, list(moment.policy_states())))
        return super().rewards(rollouts, moment)

    def learn(self, rollouts: Rollouts, rewards_SBT: torch.Tensor, moment: Moment) -> Any:
        self.seen.append((rollouts, moment, list(moment.policy_states())))
        one = self.learners["rm"].follower  # pyright: ignore[reportAttributeAccessIssue]
        before = weights(self.policy), weights(one.model.model), weights(one.parts)
        told = super().learn(rollouts, rewards_SBT, moment)
        self.moved_policy |= moved(before[0], self.policy)
        self.moved_model |= moved(before[1], one.model.model)
        self.moved_parts |= moved(before[2], one.parts)
        return told


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
@pytest.mark.parametrize(("trains", "expected"), [("all", PROJECTIONS | {"head.weight"}), ("head", {"head.weight"}), ("none", set())])
def test_only_the_named_parameters_change(estimator: str, trains: str, expected: set[str], tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"trains": trains}, {"estimator": estimator})
    watched = loop.source = Watched(source_of(loop), loop.policy)
    told = [loop.update() for _ in range(4)]
    assert watched.moved_parts == expected
    assert watched.moved_model == {"score.weight"} & {name.replace("head", "score") for name in expected}
    assert watched.moved_policy == set()
    assert ("feedback/loss" in told[0]) == (trains != "none")
    assert [one["feedback/weight"] for one in told] == [follower_of(loop).weight(step, 6) for step in range(4)]


def test_first_step_learns_the_head_alone_since_the_policy_has_no_weight_yet(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {})
    watched = loop.source = Watched(source_of(loop), loop.policy)
    loop.update()
    assert watched.moved_parts == {"head.weight"}


@pytest.mark.parametrize("states", ["last_epoch", "sampled"])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_step_is_the_written_out_loss_of_its_groups(groups: int, states: str, tiny: ModuleType) -> None:
    """Each with its own answers' states: those of the last epoch, or those of sampling; the last step takes what is left."""
    learning = {"alpha": 0.3, "max_grad_norm": 0.0, "epsilon": 0.05, "groups": groups, "states": states}
    loop = loop_of(tiny, learning, {"learning_rate": 3e-2})
    loop.update()
    one, source = follower_of(loop), source_of(loop)
    watched = loop.source = Watched(source, loop.policy)
    found: list[list[torch.Tensor]] = []
    assert learner_of(loop).steps is not None
    optimizer = learner_of(loop).steps.optimizer
    optimizer.step = lambda: found.append([part.grad.clone() for part in one.parts.parameters() if part.grad is not None])  # pyright: ignore
    loop.update()
    assert one.latest is not None
    (_, moment, sampled), (_, _, later) = watched.seen
    weight = one.weight(moment.step, moment.steps)
    assert weight < 1
    assert not torch.allclose(sampled[0], later[0], atol=1e-3)
    rewards = one.rewards(one.latest.states_BD, sampled if states == "sampled" else later, weight).view(4, 4)
    judged = one.latest.rewards_B.view(4, 4).tolist()
    parts = {0: [[0, 1, 2, 3]], 1: [[0], [1], [2], [3]], 3: [[0, 1, 2], [3]]}[groups]
    assert len(found) == len(parts)
    for gradients, part in zip(found, parts, strict=True):
        loss = torch.zeros(())
        for place in part:
            row, annotated = rewards[place], judged[place]
            best, worst = annotated.index(max(annotated)), annotated.index(min(annotated))
            loss = loss + 0.7 * bradley_terry(row[best : best + 1], row[worst : worst + 1]) / len(part)
            loss = loss + 0.3 * group_entropy(row[None], epsilon=0.05 * 0.5)[0] / len(part)
        expected = torch.autograd.grad(loss, list(one.parts.parameters()), retain_graph=True)
        assert len(gradients) == len(expected) == 5
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_states_are_those_of_sampling_when_judged_and_of_the_last_epoch_when_learning(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {}, {"learning_rate": 3e-2, "prompts_per_step": 2})
    watched = loop.source = Watched(source_of(loop), loop.policy)
    first = copy.deepcopy(loop.policy)
    snapshots: list[Policy] = []
    step = loop.optimizer.step
    loop.optimizer.step = lambda: (snapshots.append(copy.deepcopy(loop.policy)), step())[1]
    loop.update()
    (rollouts, _, judged), (_, _, learnt) = watched.seen
    rows = [tokens for group in rollouts.encoded for tokens in group.conversations]
    for tokens, then, later in zip(rows, judged, learnt, strict=True):
        for policy, states in ((first, then), (snapshots[-1], later)):
            alone = policy.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
            torch.testing.assert_close(states, alone, atol=2e-5, rtol=1e-4)
        assert not then.requires_grad
        assert not later.requires_grad
    assert not torch.allclose(judged[0], learnt[0], atol=1e-3)


@pytest.mark.parametrize("states", ["last_epoch", "sampled"])
def test_states_cost_no_pass_of_the_policy_and_no_second_one_of_the_reward_model(
    states: str, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(tiny, {"states": states})
    calls = {"policy": 0, "reward": 0}
    follower_of(loop).model.model.base_model.register_forward_hook(lambda *_: calls.update(reward=calls["reward"] + 1))
    loop.policy.model.base_model.register_forward_hook(lambda *_: calls.update(policy=calls["policy"] + 1))
    loop.update()
    loop.update()
    # A pass of the policy when sampled and one an epoch; one of the reward model, whatever is learnt from it.
    assert calls == {"policy": 2 * (1 + 2), "reward": 2}


def test_large_groups_are_cut_and_the_states_stay_in_order(tiny: ModuleType) -> None:
    whole, cut = loop_of(tiny, {}), loop_of(tiny, {}, tokens_per_batch=14)
    for _ in range(3):
        one, other = whole.update(), cut.update()
        for name in one.keys() - {"seconds"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    for name, value in follower_of(whole).parts.named_parameters():
        torch.testing.assert_close(value, follower_of(cut).parts.get_parameter(name), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"feedback": "noise"}])
def test_a_state_taken_up_goes_on_to_the_same_bits(changes: dict[str, Any], tiny: ModuleType) -> None:
    whole, parts = loop_of(tiny, {"groups": 1}, **changes), loop_of(tiny, {"groups": 1}, **changes)
    for _ in range(2):
        whole.update()
    take_up(parts, whole)
    assert_same_updates(whole, parts, count=2)
    assert not moved(weights(follower_of(whole).parts), follower_of(parts).parts)


def test_learning_raises_the_pair_that_it_learns_from(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"alpha": 0.0, "passes": 30, "learning_rate": 3e-2}, {"learning_rate": 0.0})
    still = loop_of(tiny, {"alpha": 0.0, "learning_rate": 0.0}, {"learning_rate": 0.0})
    assert loop.update()["feedback/bradley_terry"] < still.update()["feedback/bradley_terry"]


def test_entropy_alone_falls_as_it_is_descended(tiny: ModuleType) -> None:
    found = []
    for passes in (1, 40):
        loop = loop_of(tiny, {"alpha": 1.0, "passes": passes, "learning_rate": 1e-2}, {"learning_rate": 0.0})
        found.append(loop.update()["feedback/entropy"])
    assert found[1] < found[0]


@pytest.mark.parametrize("pair", ["annotation", "recomputed"])
def test_scores_that_choose_the_pair_can_be_chosen(pair: str, tiny: ModuleType) -> None:
    learner = learner_of(loop_of(tiny, {"pair": pair, "alpha": 0.0}))
    annotated = torch.tensor([[0.0, 1.0, 2.0]])
    recomputed = torch.tensor([[3.0, 1.0, 0.5]], requires_grad=True)
    losses, told = learner._losses(recomputed, annotated, unit=1.0)
    gap = {"annotation": 0.5 - 3.0, "recomputed": 3.0 - 0.5}[pair]
    assert losses.item() == pytest.approx(-torch.nn.functional.logsigmoid(torch.tensor(gap)).item())
    assert told["pairs"] == 1


def test_order_of_a_groups_answers_does_not_matter(tiny: ModuleType) -> None:
    learner = learner_of(loop_of(tiny, {}))
    rewards = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 4, 0, 2])
    one, other = (learner._losses(table, table, unit=1.0)[0] for table in (rewards, rewards[:, order]))
    torch.testing.assert_close(one, other)


def test_equal_rewards_have_no_pair_no_gradient_and_are_counted(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"weight_decay": 0.0})
    torch.nn.init.zeros_(follower_of(loop).head.weight)
    before = weights(follower_of(loop).parts)
    told = [loop.update() for _ in range(2)]
    assert [one["feedback/groups_without_a_pair"] for one in told] == [4, 4]
    assert [one["feedback/bradley_terry"] for one in told] == [0, 0]
    assert told[1]["feedback/gradient_norm"] == 0
    assert told[1]["feedback/entropy"] == pytest.approx(torch.tensor(4.0).log().item())
    assert not moved(before, follower_of(loop).parts)


def test_two_answers_are_refused_for_the_entropy_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"optimise.answers=2 with feedback.learning.alpha=0.3: .* has no gradient"):
        check_feedback(PolicyFeedback(), OnPolicy(answers=2))
    check_feedback(PolicyFeedback(learning=FeedbackLearning(alpha=0.0)), OnPolicy(answers=2))
    check_feedback(PolicyFeedback(learning=FeedbackLearning(trains="none")), OnPolicy(answers=2))


def test_one_answer_has_no_pair() -> None:
    with pytest.raises(ConfigError, match=r"optimise.answers=1 with feedback.learning: expected 2 or more"):
        check_feedback(PolicyFeedback(), OnPolicy(estimator="ppo", answers=1))


def test_prompts_that_processes_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"feedback.learning.groups=1 on 2 processes: expected a multiple"):
        check_feedback(PolicyFeedback(), OnPolicy(answers=4))
    check_feedback(PolicyFeedback(learning=FeedbackLearning(groups=4)), OnPolicy(answers=4))


def test_attention_to_a_policy_that_is_never_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"feedback\.floor=1 .* write feedback\.learning\.trains=head"):
        check_feedback(PolicyFeedback(floor=1.0), OnPolicy(answers=4))
    check_feedback(PolicyFeedback(floor=1.0, learning=FeedbackLearning(trains="head")), OnPolicy(answers=4))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {})
    loop.update()
    before = weights(follower_of(loop).parts)
    follower_of(loop).fed = lambda groups, states, step: [torch.full_like(one, float("nan")) for one in states]
    scored = source_of(loop).scored.rewards
    source_of(loop).scored.rewards = lambda rollouts, moment: scored(rollouts, Moment(0, 6, moment.policy_states))
    with pytest.raises(TrainingError, match="reward model rm broke down as it learnt: its gradient has length nan"):
        loop.update()
    assert not moved(before, follower_of(loop).parts)


def test_several_rewards_learn_apart(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {})
    one = learner_of(loop)
    reward = RewardModel(tiny.classifier("qwen3", seed=1), tiny.word_tokenizer())
    other = PolicyFeedbackReward(reward, loop.policy.config.hidden_size, AttentionShape(width=8), floor=0.6)
    followers = {"rm": follower_of(loop), "other": other}
    scored = ScoredAnswers(followers, {name: Scale(0.0, 1.0) for name in followers}, weights=[1.0, 0.5])
    learners = {name: FeedbackLearner(name, follower, one.settings, answers=4, unit=1.0) for name, follower in followers.items()}
    loop.source = LearningRewards(scored, learners)
    told = [loop.update() for _ in range(2)][-1]
    assert loop.source.names == ("rm", "other")
    assert told["feedback/rm/loss"] != told["feedback/other/loss"]
    assert {"feedback/rm/weight", "feedback/other/weight", "reward/rm", "reward/other"} <= told.keys()


def test_head_alone_at_a_floor_of_one_reads_no_policy(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"trains": "head"}, floor=1.0)
    assert not loop.source.reads_states
    told = [loop.update() for _ in range(3)]
    assert loop.kept == []
    assert all(one["feedback/weight"] == 1 for one in told)
    assert told[2]["feedback/loss"] != told[0]["feedback/loss"]
