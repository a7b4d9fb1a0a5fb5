"""What the head reads, taken apart: against the definitions written out, and in the report of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rewardproof.models.heads import Head
from rewardproof.models.packed import end_states
from rewardproof.training.batches import Collator, TrainingSet
from rewardproof.training.end_states import EndStates, decomposed, end_states_of
from rewardproof.training.fit import Compute
from rewardproof.training.trainer import PackedRewardModule
from tests.training.test_fit import train


def test_the_three_factors_are_those_of_the_reward() -> None:
    draw = np.random.default_rng(0)
    states, head = draw.normal(size=(20, 6)), draw.normal(size=6)
    rewards = states @ head
    found = decomposed(states, rewards, head)
    norms = np.sqrt((states**2).sum(axis=1))
    cosines = rewards / norms / np.sqrt((head**2).sum())
    assert (found.norm_mean, found.norm_variance) == pytest.approx((norms.mean(), norms.var()))
    assert (found.cosine_mean, found.cosine_variance) == pytest.approx((cosines.mean(), cosines.var()))
    assert (found.reward_mean, found.reward_variance) == pytest.approx((rewards.mean(), rewards.var()))
    assert found.reward_norm_correlation == pytest.approx(np.corrcoef(rewards, norms)[0, 1])
    assert found.reward_cosine_correlation == pytest.approx(np.corrcoef(rewards, cosines)[0, 1])
    sigma = np.sqrt(np.linalg.eigvalsh(states.T @ states))
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("head", [np.zeros(4), None])
def test_without_a_direction_there_is_no_cosine(head: Any) -> None:
    found = decomposed(np.eye(4), np.zeros(4), head)
    assert (found.cosine_mean, found.cosine_variance, found.reward_cosine_correlation) == (None, None, None)
    assert found.reward_norm_correlation is None, "constant lengths"
    assert found.effective_rank == pytest.approx(4)
    assert found.head_norm == (None if head is None else 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trap_2_a_run_logs_length_cosine_reward_and_effective_rank_together_before_and_after(
    family: str, tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    data, held_out, model = random_set(8), random_set(6, seed=1), tiny.classifier(family)
    start, records = copy.deepcopy(model), []
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2}
    compute = Compute(precision="fp32", tokens_per_batch=40)
    _, result = train(
        model, data, tmp_path, held_out=held_out, trainer=settings, layers=range(1, 3), compute=compute,
        head=Head(init="keep", learning_rate=1e-2), record=records.append, look_at_states=True,
    )  # fmt: skip
    for when, of in (("before", start), ("after", model)):
        states = np.concatenate(
            [
                end_states(of, stream.batch).detach().double().numpy()
                for stream in Collator(tokens_per_batch=1000, cache=None).streams(held_out.groups)
            ]
        )
        weight = of.score.weight.detach().double().numpy()[0]
        expected = decomposed(states, states @ weight, weight)
        for name in EndStates.__dataclass_fields__:
            assert getattr(result.states[when], name) == pytest.approx(getattr(expected, name), rel=1e-4), (when, name)
    logged = [record for record in records if "states" in record]
    assert [(record["states"], record["step"]) for record in logged] == [("before", 0), ("after", result.steps)]
    assert logged[1]["states/norm_mean"] == result.states["after"].norm_mean
    assert logged[0]["states/reward_variance"] != logged[1]["states/reward_variance"]


def test_a_run_that_does_not_ask_or_holds_nothing_out_looks_at_nothing(
    tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    for changes in ({"held_out": random_set(3)}, {"look_at_states": True}, {"look_at_states": True, "held_out": TrainingSet([])}):
        _, result = train(tiny.classifier("llama"), random_set(4), tmp_path, **changes)
        assert result.states == {}


def test_looking_leaves_the_mode_and_the_random_numbers_alone(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    module = PackedRewardModule(tiny.classifier("llama"), trunk=None).train()
    before = torch.random.get_rng_state()
    collator = Collator(tokens_per_batch=40, cache=None)
    found = end_states_of(module, random_set(6).groups, collator=collator, precision="fp32")
    assert found is not None
    assert found.n_answers == sum(len(entry.group.conversations) for entry in random_set(6).groups)
    assert module.training
    assert torch.equal(before, torch.random.get_rng_state())
