"""A verifier that learns with the policy: which pairs it learns from, what of it moves, and when nothing may."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.data import Group, Message
from rewardproof.data.encoding import encode_group
from rewardproof.data.pairs import Pair
from rewardproof.errors import TrainingError
from rewardproof.losses import bradley_terry, group_relative, verdict
from rewardproof.models.checkpoints import set_reading
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.cooper import Cooper, CooperLearner, contrast, find_pairs
from rewardproof.policy.learning import LearningRewards
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Prompt, Rollouts
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.policy.trained_reward import TrainedReward, Turns
from rewardproof.scoring import AsProbability, Scale
from rewardproof.training.batches import TrainingGroup, TrainingSet
from tests.policy.taking_up import assert_same_updates, take_up

PROMPTS = ("w5 w6", "w7 w8 w9", "w4", "w3 w3 w3", "w9 w2")


class FirstWordLow:
    """Right where the first word is of w0 … w69, wrong where it is w70 to w79, else not told."""

    def verdict(self, group: Group, answer: str) -> bool | None:
        first = answer.split()[0] if answer.split() else ""
        number = int(first[1:]) if first[1:].isdigit() else 99
        return True if number < 70 else False if number < 80 else None

    def text(self, group: Group) -> str | None:
        return None

    def broken(self, group: Group, answer: str, attempt: int) -> str:
        return f"w{70 + attempt % 10} {answer}"


class NeverRight(FirstWordLow):
    def verdict(self, group: Group, answer: str) -> bool | None:
        return False


def group(*texts: str) -> Group:
    return Group((Message("user", "w1 w2"),), tuple((Message("assistant", text),) for text in texts), reference="w3 w3")


def verifier(tiny: ModuleType, *, seed: int = 0, **settings: Any) -> TrainedReward:
    model = tiny.classifier("llama", seed=seed)
    set_reading(model, "reference")
    return TrainedReward(RewardModel(model, tiny.word_tokenizer()), Cooper(**settings), name="rm", key="cooper")


def loop_of(
    tiny: ModuleType, settings: dict[str, Any], *, checker: Any = None, replay: Turns | None = None, **optimise: Any
) -> OnPolicyLoop:
    chosen: dict[str, Any] = {
        "estimator": "grpo", "max_new_tokens": 6, "prompts_per_step": 4, "answers": 4, "learning_rate": 1e-3, "steps": 6, **optimise,
    }  # fmt: skip
    made = Cooper(**{"learning_rate": 1e-3, **settings})
    trained = verifier(tiny, **made.model_dump(exclude={"assistant", "replay"}))
    checker = FirstWordLow()
    learner = CooperLearner(trained, made, checker, checker.broken, replay, seed=3)
    scored = ScoredAnswers({"rm": AsProbability(trained.model)}, {"rm": Scale(0.0, 0.5)})
    tokenizer, policy = tiny.word_tokenizer(), Policy(tiny.causal("gpt_neox"))
    prompts = [Prompt.of(Group((Message("user", text),), (), reference="w3 w3"), tokenizer) for text in PROMPTS]
    source = LearningRewards(scored, {"rm": learner})
    run = OnPolicy(**chosen)
    return OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, run, Passes("fp32", 512), seed=0)


def learner_of(loop: OnPolicyLoop) -> CooperLearner:
    assert isinstance(loop.source, LearningRewards)
    learner = loop.source.learners["rm"]
    assert isinstance(learner, CooperLearner)
    return learner


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


# Which pairs.


def test_a_negative_is_accepted_only_if_the_rule_says_wrong_and_the_retry_cap_holds() -> None:
    tries: list[int] = []

    def breaks(_: Group, answer: str, attempt: int) -> str:
        tries.append(attempt)
        return ["", f"w99 {answer}", f"w1 {answer}", f"w75 {answer}"][attempt]  # nothing, not told, still right, wrong at last

    found = find_pairs([group("w5", "w85")], FirstWordLow(), breaks, attempts=4, seed=(0,))
    assert tries == [0, 1, 2, 3]
    assert found.groups[0].answer_texts == ("w5", "w75 w5")
    assert found.counts == {"pairs": 1, "without_positive": 0, "retries": 3, "refusals": 3, "given_up": 0}
    tries.clear()
    found = find_pairs([group("w5")], FirstWordLow(), breaks, attempts=3, seed=(0,))
    assert tries == [0, 1, 2]
    assert found.groups == []
    assert found.counts == {"pairs": 0, "without_positive": 0, "retries": 2, "refusals": 3, "given_up": 1}


def test_only_rule_positives_are_trusted() -> None:
    rollouts = [group("w85", "w75"), group("w75 w5", "w6 w7", "w85")]
    found = find_pairs(rollouts, FirstWordLow(), FirstWordLow().broken, attempts=3, seed=(0,))
    assert found.counts["without_positive"] == 1
    assert [one.answer_texts for one in found.groups] == [("w6 w7", "w70 w6 w7")]
    sampled = {text for one in rollouts for text in one.answer_texts}
    assert all(one.answer_texts[1] not in sampled for one in found.groups), "no answer of the policy is ever a negative"


def test_positives_are_drawn_by_chance_and_the_same_again() -> None:
    answers = [f"w{number}" for number in range(20)]

    def drawn(step: int) -> str:
        return find_pairs([group(*answers)], FirstWordLow(), FirstWordLow().broken, attempts=1, seed=(0, step)).groups[0].answer_texts[0]

    assert len({drawn(step) for step in range(20)}) > 5
    assert [drawn(step) for step in range(5)] == [drawn(step) for step in range(5)]


def test_where_the_break_lies_is_told() -> None:
    at_end = find_pairs([group("w5 w6"), group("w8 w9")], FirstWordLow(), lambda _, a, __: f"w70 {a[3:]}", attempts=1, seed=(0,))
    assert at_end.places == [pytest.approx(1 / 5)] * 2
    assert at_end.lengths == [pytest.approx(6 / 5)] * 2


# The loss.


@pytest.mark.parametrize("form", ["logit", "probability"])
def test_the_loss_falls_as_the_score_of_the_right_answer_rises(form: Any) -> None:
    right = torch.linspace(-20, 20, 81, dtype=torch.float64)
    losses = contrast(right, torch.zeros(81, dtype=torch.float64), form)
    assert bool((losses.diff() < 0).all())
    if form == "logit":
        torch.testing.assert_close(losses, -torch.nn.functional.logsigmoid(right))


def test_probabilities_cannot_push_the_loss_below_its_floor_and_logits_can() -> None:
    right, wrong = torch.tensor([60.0]), torch.tensor([-60.0])
    assert contrast(right, wrong, "probability").item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert contrast(right, wrong, "logit").item() < 1e-20


def test_a_group_of_saturated_scores_has_bounded_advantages() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0 - 1e-6]])
    assert group_relative(scores, epsilon=1e-2).abs().max() < 1e-3
    assert bool(torch.isfinite(group_relative(torch.ones(1, 4))).all())


def test_the_epsilon_of_grpo_is_the_settings_own(tiny: ModuleType) -> None:
    found = []
    for epsilon in (1e-4, 1e6):
        loop = loop_of(tiny, {}, scale_epsilon=epsilon)
        found.append(abs(loop.update()["gradient_norm"]))
    assert found[1] < 1e-4 * found[0]


# The step.


def test_a_step_is_the_written_out_loss_of_every_pair(tiny: ModuleType) -> None:
    trained = verifier(tiny, learning_rate=1e-2, max_grad_norm=0.0)
    learner = CooperLearner(trained, Cooper(learning_rate=1e-2, max_grad_norm=0.0), FirstWordLow(), FirstWordLow().broken)
    pairs = find_pairs([group("w5 w6"), group("w8")], FirstWordLow(), FirstWordLow().broken, attempts=1, seed=(0,))
    own, tokenizer = copy.deepcopy(trained.model.model), trained.model.tokenizer
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2, weight_decay=0.0)
    rewards = []
    for one in pairs.groups:
        (prompt,) = one.prompt
        joined = prompt._replace(content=f"{prompt.content}\n\n[Reference answer]\n{one.reference}")
        encoded = encode_group(Group((joined,), one.answers), tokenizer)
        rewards.append([own(input_ids=torch.tensor([tokens])).logits[0, 0] for tokens in encoded.conversations])
    loss = torch.stack([bradley_terry(right[None], wrong[None]) for right, wrong in rewards]).mean()
    loss.backward()
    optimizer.step()
    told = learner._step(trained.model.encode(pairs.groups)[0], 2, 0)
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, value in own.named_parameters():
        torch.testing.assert_close(trained.model.model.get_parameter(name), value, atol=2e-4, rtol=1e-2)


def test_learning_tells_the_broken_from_the_right(tiny: ModuleType) -> None:
    trained = verifier(tiny, learning_rate=3e-3)
    learner = CooperLearner(trained, Cooper(learning_rate=3e-3), FirstWordLow(), FirstWordLow().broken)
    encoded = trained.model.encode([group("w5 w6", "w70 w5 w6"), group("w8 w1", "w71 w8 w1")])[0]
    told = [learner._step(encoded, 2, step) for step in range(25)]
    assert told[-1]["loss"] < 0.1 < told[0]["loss"]
    assert told[-1]["accuracy"] == 1


def test_without_a_pair_the_reward_model_is_unchanged(tiny: ModuleType) -> None:
    """Momentum and decay would move it where a step were taken at all."""
    loop = loop_of(tiny, {"weight_decay": 0.1, "anchor": 1.0})
    learner = learner_of(loop)
    assert loop.update()["cooper/pairs"] > 0
    learner.checker = NeverRight()
    before = weights(learner.trained.model.model), copy.deepcopy(learner.trained.steps.optimizer.state_dict())
    told = loop.update()
    assert told["cooper/pairs"] == 0
    assert told["cooper/without_positive"] == 4
    assert "cooper/loss" not in told
    assert moved(before[0], learner.trained.model.model) == set()
    after = learner.trained.steps.optimizer.state_dict()["state"]
    assert all(torch.equal(after[key]["exp_avg"], value["exp_avg"]) for key, value in before[1]["state"].items())


def test_optimisers_of_policy_and_reward_model_are_disjoint(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {})
    own = {id(one) for part in learner_of(loop).trained.steps.optimizer.param_groups for one in part["params"]}
    of_policy = {id(one) for part in loop.optimizer.param_groups for one in part["params"]}
    assert own
    assert of_policy
    assert not own & of_policy
    model, seen = learner_of(loop).trained.model.model, []
    learn = learner_of(loop).learn

    def watched(rollouts: Rollouts, moment: Moment) -> Any:
        before = weights(loop.policy)
        found = learn(rollouts, moment)
        seen.append(moved(before, loop.policy))
        return found

    learner_of(loop).learn = watched
    judged = weights(model)
    loop.update()
    assert seen == [set()], "the policy does not move while the verifier learns"
    assert moved(judged, model)


def test_the_verifier_does_not_move_while_the_policy_does(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"learning_rate": 0.0})
    before = weights(learner_of(loop).trained.model.model), weights(loop.policy)
    loop.update()
    assert moved(before[0], learner_of(loop).trained.model.model) == set()
    assert moved(before[1], loop.policy)


def test_upper_layers_alone_learn_where_asked_and_what_was_given_stays(tiny: ModuleType) -> None:
    loop = loop_of(tiny, {"layers": "top:1"})
    trained = learner_of(loop).trained
    before, given = weights(trained.model.model), weights(trained.given.model)
    assert loop.update()["cooper/pairs"] > 0
    changed = moved(before, trained.model.model)
    assert changed
    assert all("layers.2." in name or name in ("model.norm.weight", "score.weight") for name in changed)
    assert moved(given, trained.given.model) == set()
    assert not moved(before, trained.given.model)
    shared = trained.model.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert trained.given.model.get_parameter("model.layers.0.self_attn.q_proj.weight") is shared


def replay_of(tiny: ModuleType) -> Turns:
    tokenizer = tiny.word_tokenizer()
    model = tiny.classifier("llama")
    set_reading(model, "reference")
    reader = RewardModel(model, tokenizer)
    groups = [group(f"w{number} w5", f"w{number} w75", "w85") for number in range(3)]
    encoded = reader.encode(groups)[0]
    labelled = [
        TrainingGroup(type(one)(one.conversations, one.shared, one.answer_starts, one.index, labels=(1.0, 0.0, 0.0)), (Pair(0, 1, None),))
        for one in encoded
    ]
    return Turns(TrainingSet(labelled), size=2, seed=0)


def test_replay_adds_the_cross_entropy_of_labelled_answers(tiny: ModuleType) -> None:
    turns, settings = replay_of(tiny), Cooper(learning_rate=0.0, max_grad_norm=0.0, replay={"weight": 2.0})
    trained = verifier(tiny, learning_rate=0.0, max_grad_norm=0.0)
    learner = CooperLearner(trained, settings, FirstWordLow(), FirstWordLow().broken, turns)
    pair = trained.model.encode([group("w5", "w75 w5")])[0]
    taken: list[torch.Tensor] = []
    trained.steps.take = lambda: (taken.extend(one.grad.clone() for one in trained.parameters), 0.0)[1]  # pyright: ignore
    told = learner._step(pair, 1, 5)
    ((right, wrong),) = (one.rewards_C for one in trained.passes(pair))
    loss = bradley_terry(right[None], wrong[None])
    expected = []
    for entry in turns.take(5):
        ((rewards),) = (one.rewards_C for one in trained.passes([entry.group]))
        expected.append(verdict(rewards, torch.tensor(entry.group.labels)))
    replayed = torch.stack(expected).mean()
    assert told["replay_loss"] == pytest.approx(replayed.item(), rel=1e-5)
    for ours, theirs in zip(taken, torch.autograd.grad(loss + 2.0 * replayed, trained.parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("form", ["logit", "probability"])
def test_a_step_is_the_written_out_loss_of_its_pairs_and_the_pull_of_its_anchor(form: str, tiny: ModuleType) -> None:
    settings: dict[str, Any] = {"learning_rate": 0.0, "max_grad_norm": 0.0, "loss": form, "anchor": 0.5}
    trained = verifier(tiny, **settings)
    learner = CooperLearner(trained, Cooper(**settings), FirstWordLow(), FirstWordLow().broken)
    for parameter in trained.parameters:
        parameter.data += 0.01
    pair = trained.model.encode([group("w5", "w75 w5")])[0]
    taken: list[torch.Tensor] = []
    trained.steps.take = lambda: (taken.extend(one.grad.clone() for one in trained.parameters), 0.0)[1]  # pyright: ignore
    told = learner._step(pair, 1, 0)
    ((right, wrong),) = (one.rewards_C for one in trained.passes(pair))
    gap = right.sigmoid() - wrong.sigmoid() if form == "probability" else right - wrong
    loss = torch.log1p(torch.exp(-gap))
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(taken, torch.autograd.grad(loss, trained.parameters), strict=True):
        torch.testing.assert_close(ours, theirs + 0.5 * 0.01, atol=1e-5, rtol=1e-3)


def test_the_policy_never_reads_the_reference(tiny: ModuleType) -> None:
    """The verifier does: it scores the same answer otherwise beside another reference."""
    one = group("w5")
    other, none = (dataclasses.replace(one, reference=reference) for reference in ("w9 w9 w9", None))
    tokenizer, model = tiny.word_tokenizer(), verifier(tiny).model
    assert Prompt.of(one, tokenizer).token_ids == Prompt.of(other, tokenizer).token_ids == Prompt.of(none, tokenizer).token_ids
    assert model.score([one]) != model.score([other])


def test_an_anchor_holds_it_where_it_began(tiny: ModuleType) -> None:
    away = {}
    for anchor in (0.0, 10.0):
        loop = loop_of(tiny, {"anchor": anchor, "learning_rate": 1e-2})
        learner = learner_of(loop)
        start = weights(learner.trained.model.model)
        for _ in range(5):
            told = loop.update()
        own = dict(learner.trained.model.model.named_parameters())
        away[anchor] = sum(float((own[name].detach() - value).square().sum()) for name, value in start.items()) ** 0.5
    assert "cooper/distance" in told
    assert away[10.0] < 0.8 * away[0.0]


def test_replay_takes_every_group_once_before_any_again(tiny: ModuleType) -> None:
    turns = replay_of(tiny)
    taken = [id(entry.group) for number in range(3) for entry in turns.take(number)]
    assert {taken.count(one) for one in taken} == {2}


def test_a_state_taken_up_goes_on_to_the_same_bits(tiny: ModuleType) -> None:
    settings = {"replay": {"weight": 0.5}, "anchor": 0.1}
    whole, parts = (loop_of(tiny, settings, replay=replay_of(tiny)) for _ in range(2))
    for _ in range(2):
        whole.update()
    take_up(parts, whole)
    assert_same_updates(whole, parts, count=2)
    assert not moved(weights(learner_of(whole).trained.model.model), learner_of(parts).trained.model.model)


def test_a_broken_answer_that_is_too_long_to_be_read_is_tried_again(tiny: ModuleType) -> None:
    model = tiny.classifier("gpt2")
    set_reading(model, "reference")
    trained = TrainedReward(RewardModel(model, tiny.word_tokenizer()), Cooper(), name="rm", key="cooper")
    learner = CooperLearner(trained, Cooper(), FirstWordLow(), lambda _, answer, attempt: "w70 " + answer * (1 if attempt else 600))
    found = find_pairs([group("w5 ")], FirstWordLow(), learner._broken, attempts=2, seed=(0,))
    assert (found.counts["pairs"], found.counts["refusals"]) == (1, 1)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(tiny: ModuleType) -> None:
    trained = verifier(tiny)
    before = weights(trained.model.model)
    for parameter in trained.parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(TrainingError, match=r"reward model rm broke down .*cooper.learning_rate is too high \(now 1e-06\)"):
        trained.steps.take()
    assert not moved(before, trained.model.model)
