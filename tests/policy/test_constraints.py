"""Constrained rewards in the on-policy loop: the published properties, and every defect of the paper's release as a test."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.config import load_recipe, parse
from rewardproof.data.group import Group
from rewardproof.errors import CheckpointError
from rewardproof.policy import on_policy
from rewardproof.policy.constraints import (
    Constraints,
    Multipliers,
    Thresholds,
    episode_means,
)
from rewardproof.policy.estimators import by_values
from rewardproof.policy.lagrangian import ConstrainedAnswers
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.satisficing import NearThresholds
from rewardproof.policy.settings import OnPolicy
from rewardproof.scoring import Scale


def neighbour() -> ModuleType:
    """The tests of the loop, for their tiny model."""
    spec = importlib.util.spec_from_file_location("on_policy_tests", Path(__file__).parent / "test_on_policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOOP = neighbour()
WORDS = LOOP.WORDS
OPTIMISE: dict[str, Any] = {
    "estimator": "ppo", "max_new_tokens": 1, "prompts_per_step": 2, "answers": 32, "learning_rate": 4e-3, "aggregate": "sum",
    "whiten": False, "value_learning_rate": 3e-2, "value_clip": 100.0, "kl": {"coefficient": 1.0, "place": "reward"},
}  # fmt: skip
PROMPTS = [(5, 6), (7, 8, 9)]
UNIT = Scale(0.0, 1.0)


class Length:
    """How many words."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(float(len(text.split())) for text in group.answer_texts) for group in groups]


class Even:
    """Share of words that are even numbers."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        def share(text: str) -> float:
            words = text.split()
            return sum(int(word) % 2 == 0 for word in words) / max(len(words), 1)

        return [tuple(share(text) for text in group.answer_texts) for group in groups]


def tables() -> dict[str, torch.Tensor]:
    """Two rewards of single tokens that correlate."""
    draw = torch.Generator().manual_seed(1)
    first = torch.linspace(0, 1, WORDS, dtype=torch.float64)[torch.randperm(WORDS, generator=draw)]
    return {"first": first, "second": 0.5 * first + 0.5 * torch.rand(WORDS, generator=draw, dtype=torch.float64)}


def constrained(
    scorers: dict[str, Any], thresholds: dict[str, float], *, weights: Sequence[float] = (), **settings: Any
) -> ConstrainedAnswers:
    scales = dict.fromkeys(scorers, UNIT)
    scored = ScoredAnswers(scorers, scales, weights=weights)
    return ConstrainedAnswers(scored, parse(Constraints, settings), Thresholds(thresholds, scales))


def trained(
    scorers: dict[str, Any], thresholds: dict[str, float], *, steps: int, optimise: dict[str, Any] | None = None, **settings: Any
) -> tuple[OnPolicyLoop, list[dict[str, Any]]]:
    source = constrained(scorers, thresholds, **settings)
    chosen = parse(OnPolicy, {**OPTIMISE, "steps": steps, **(optimise or {})})
    loop = LOOP.loop_of(LOOP.language_model(), source, chosen, LOOP.prompts_of(*PROMPTS))
    return loop, [loop.update() for _ in range(steps)]


def expected_scores(model: Any, table: torch.Tensor) -> float:
    return float(sum(LOOP.distribution(model, prompt) @ table for prompt in PROMPTS)) / len(PROMPTS)


def test_with_thresholds_at_the_initial_values_nothing_happens() -> None:
    scorers = {name: LOOP.ByToken(table.tolist()) for name, table in tables().items()}
    model = LOOP.language_model()
    start = {name: expected_scores(model, table) for name, table in tables().items()}
    before = [LOOP.distribution(model, prompt) for prompt in PROMPTS]
    loop, metrics = trained(scorers, start, steps=40)
    assert max(abs(one[f"constraint/{name}/multiplier"]) for one in metrics for name in start) < 0.1
    after = [LOOP.distribution(loop.policy.model, prompt) for prompt in PROMPTS]
    assert max(float((one - other).abs().sum()) for one, other in zip(before, after, strict=True)) < 0.1
    assert abs(metrics[-1]["kl"]) < 0.02


@pytest.mark.parametrize("sense", ["equal", pytest.param("at_least", marks=pytest.mark.slow)])
def test_a_bandit_ends_at_the_closed_form_of_its_constraint(sense: str) -> None:
    """The policy of least divergence with a mean score of θ is π ∝ π_ref exp(λ r), λ such that the mean is θ."""
    table = tables()["first"]
    model = LOOP.language_model()
    before = [LOOP.distribution(model, prompt) for prompt in PROMPTS]
    threshold = 0.75
    assert expected_scores(model, table) < threshold - 0.1
    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        tilted = [(one.log() + middle * table).softmax(-1) for one in before]
        low, high = (middle, high) if float(sum(one @ table for one in tilted)) / 2 < threshold else (low, middle)
    loop, _ = trained(
        {"first": LOOP.ByToken(table.tolist())}, {"first": threshold}, steps=160, sense=sense,
        multipliers={"learning_rate": 0.3, "steps": 1}, optimise={"schedule": "linear", "prompts_per_step": 2},
    )  # fmt: skip
    after = [LOOP.distribution(loop.policy.model, prompt) for prompt in PROMPTS]
    assert expected_scores(loop.policy.model, table) == pytest.approx(threshold, abs=0.04)
    for one, optimum in zip(after, tilted, strict=True):
        assert float((one - optimum).abs().sum()) < 0.2


def test_values_that_must_not_exceed_a_threshold_rise_and_are_brought_back() -> None:
    """The multiplier is the integral of the excess, so that values swing about the threshold, as the paper reports of All-PPO."""
    table = tables()["first"]
    chosen: dict[str, Any] = {"kl": {"coefficient": 0.02}, "answers": 16, "learning_rate": 8e-3}
    _, metrics = trained(
        {"first": LOOP.ByToken(table.tolist())},
        {"first": 0.75},
        steps=70,
        sense="at_most",
        multipliers={"learning_rate": 1.0},
        optimise=chosen,
    )
    values = [one["constraint/first/value"] for one in metrics]
    weights = [one["constraint/first/weight"] for one in metrics]
    top = values.index(max(values))
    assert values[0] < 0.7
    assert weights[0] == 0.0, "objective 1 − σ, constraint −σ, at σ = 1/2"
    assert max(weights[:top]) > 0
    assert max(values) > 0.8
    assert min(weights[top:]) < 0
    assert min(values[top:]) < max(values) - 0.2


def test_defect_10_staying_near_a_threshold_is_another_reward_than_being_held_below_it() -> None:
    """All-PPO was not released and PPO-SAT was a reward's name; here each is a recipe, and they pay the same answers otherwise."""
    rewards = torch.tensor([0.2, 0.6, 0.9])
    table = torch.zeros(3, 2, dtype=torch.float32)
    table[:, 0] = rewards
    source = NearThresholds(_Fixed(table), Thresholds({"fixed": 0.6}, {"fixed": UNIT}))  # pyright: ignore[reportArgumentType]
    found = source.rewards(_Rows(2), Moment(0, 1, list)).sum(dim=2)[0]  # pyright: ignore[reportArgumentType]
    assert found.tolist() == pytest.approx([-0.16, 0.0, -0.09], abs=1e-6)
    two = NearThresholds(_Fixed(table, -table), Thresholds({"fixed": 0.6, "negative": 0.1}, dict.fromkeys(("fixed", "negative"), UNIT)))  # pyright: ignore[reportArgumentType]
    own = two.rewards(_Rows(2), Moment(0, 1, list)).sum(dim=2)  # pyright: ignore[reportArgumentType]
    mixed = torch.einsum("s,sb->b", torch.tensor(two.weights()), own)
    assert mixed.tolist() == pytest.approx([-((r - 0.6) ** 2) - 0.25 * (-r - 0.1) ** 2 for r in rewards.tolist()], abs=1e-6)
    told = source.learn(_Rows(2), found, Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
    assert told["constraint/fixed/value"] == pytest.approx(float(rewards.mean()))
    senses = {
        name: load_recipe(name, verb="align")["constrained"]["sense"] for name in ("mu_ppo", "xi_ppo", "all_ppo", "ppo_sat", "nm_ppo")
    }
    assert senses == {"mu_ppo": "at_least", "xi_ppo": "equal", "all_ppo": "at_most", "ppo_sat": "near", "nm_ppo": "equal"}


class _Fixed:
    """Scored answers with tables of rewards."""

    def __init__(self, *tables_BT: torch.Tensor) -> None:
        self.tables_BT = tables_BT
        self.names = ("fixed", "negative")[: len(tables_BT)]

    def rewards(self, rollouts: Any, moment: Any) -> torch.Tensor:
        return torch.stack(self.tables_BT)

    def weights(self) -> tuple[float, ...]:
        return (1.0, 0.25)[: len(self.tables_BT)]

    def learn(self, rollouts: Any, rewards_SBT: torch.Tensor, moment: Any) -> dict[str, float]:
        return {}


class _Rows:
    def __init__(self, length: int) -> None:
        self.length = length

    def at_end(self, values_B: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(len(values_B), self.length)
        table[:, -1] = values_B
        return table


SCORERS: dict[str, Any] = {"length": Length(), "even": Even()}
TEXTS: dict[str, Any] = {"max_new_tokens": 6, "answers": 3, "learning_rate": 3e-3, "epochs": 2, "aggregate": "token"}


def texts(
    order: Sequence[str], *, steps: int = 4, updates: int | None = None, **settings: Any
) -> tuple[OnPolicyLoop, list[dict[str, Any]]]:
    thresholds = {"even": 0.7, "length": 5.0}
    source = constrained({name: SCORERS[name] for name in order}, thresholds, **settings)
    chosen = parse(OnPolicy, {**OPTIMISE, **TEXTS, "steps": steps})
    loop = LOOP.loop_of(LOOP.language_model(words=40), source, chosen, LOOP.prompts_of(*PROMPTS))
    return loop, [loop.update() for _ in range(steps if updates is None else updates)]


def test_the_order_of_the_streams_says_nothing() -> None:
    """Defect 2 too: names say whose a threshold, a multiplier and a value head is, positions never."""
    one, first = texts(["length", "even"])
    other, second = texts(["even", "length"])
    for record, swapped in zip(first, second, strict=True):
        assert record.keys() == swapped.keys()
        for name in record.keys() - {"seconds"}:
            assert record[name] == pytest.approx(swapped[name], rel=1e-3, abs=1e-5), name
    assert first[-1]["constraint/length/threshold"] == 5.0
    assert first[-1]["constraint/even/threshold"] == 0.7
    for name, parameter in one.policy.model.named_parameters():
        torch.testing.assert_close(parameter, other.policy.model.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert one.policy.values is not None
    assert other.policy.values is not None
    torch.testing.assert_close(one.policy.values.weight, other.policy.values.weight[[1, 0, 2]], atol=1e-3, rtol=1e-2)


def test_defect_1_each_constraint_is_judged_by_its_own_value_head() -> None:
    """Perturbing the divergence's head leaves the constraints' advantages and targets as they are; perturbing their own does not."""
    loop, _ = texts(["length", "even"], steps=1)
    source: Any = loop.source
    source.multipliers_N.data[:] = torch.tensor([1.0, -0.5])
    rollouts = loop._sampled()
    rewards_SBT = source.rewards(rollouts, Moment(0, 1, list))
    assert loop.policy.values is not None
    assert loop.policy.values.out_features == 3

    def found(head: int | None) -> Any:
        values = [torch.full(rollouts.mask_BT.shape, 0.3) for _ in range(3)]
        if head is not None:
            values[head] = values[head] + 7.0
        weights, own = source.weights(), loop.source.weights
        loop.source.weights = lambda: [*weights[:2], 0.0]
        advantages = loop._advantages(rollouts, rewards_SBT, torch.zeros(rollouts.mask_BT.shape), values)
        loop.source.weights = own
        return advantages

    plain, divergence, length = found(None), found(2), found(0)
    assert torch.equal(plain.advantages_BT, divergence.advantages_BT)
    assert torch.equal(plain.returns_SBT[:2], divergence.returns_SBT[:2])
    assert not torch.equal(plain.advantages_BT, length.advantages_BT)
    assert torch.equal(plain.returns_SBT[1], length.returns_SBT[1])


def test_defect_1_values_that_a_step_reads_come_from_each_stream_s_own_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release read one head for all streams at rollout: here a whole step is taken, with the divergence's head moved."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(rewards_SBT: torch.Tensor, values_SBT: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        found = by_values(rewards_SBT, values_SBT, *rest, **settings)
        seen.append((values_SBT, found.returns_SBT))
        return found

    monkeypatch.setattr(on_policy, "by_values", watched)
    for moved in (0.0, 7.0):
        loop, _ = texts(["length", "even"], steps=1, updates=0)
        assert loop.policy.values is not None
        loop.policy.values.bias.data[-1] += moved
        loop.update()
    (values, returns), (other_values, other_returns) = seen
    assert torch.equal(values[:2], other_values[:2])
    assert torch.equal(returns[:2], other_returns[:2])
    torch.testing.assert_close(other_values[2].max() - values[2].max(), torch.tensor(7.0))


def test_defect_3_an_episode_is_worth_the_same_in_any_batch_and_order() -> None:
    """The release scores the corpus of all episodes finished so far."""
    loop, _ = texts(["length", "even"], steps=1)
    rollouts = loop._sampled()
    for scorer in SCORERS.values():
        whole = scorer.score(rollouts.groups)
        alone = [scorer.score([group])[0] for group in reversed(rollouts.groups)][::-1]
        assert whole == alone
    rewards_SBT = loop.source.rewards(rollouts, Moment(0, 1, list))
    expected = [[value for row in scorer.score([group]) for value in row] for scorer in SCORERS.values() for group in rollouts.groups]
    assert rewards_SBT.sum(dim=2).flatten().tolist() == pytest.approx([value for row in expected for value in row])


def test_defect_6_advantages_are_not_normalised_unless_asked() -> None:
    """At multipliers of 0 under an equality the mixed advantage is N times the divergence's own, to the last bit."""
    draw = torch.Generator().manual_seed(0)
    rewards_SBT, values_SBT = (torch.randn(3, 4, 5, generator=draw) for _ in range(2))
    mask_BT = torch.ones(4, 5, dtype=torch.bool)
    chosen: dict[str, Any] = {"discount": 0.99, "trace": 0.95, "whiten": False}
    source = constrained(SCORERS, {"length": 1.0, "even": 1.0})
    mixed = by_values(rewards_SBT, values_SBT, mask_BT, torch.tensor(source.weights()), **chosen)
    own = by_values(rewards_SBT[2:], values_SBT[2:], mask_BT, torch.ones(1), **chosen)
    assert torch.equal(mixed.advantages_BT, 2 * own.advantages_BT)
    for name in ("mu_ppo", "xi_ppo", "all_ppo", "ppo_sat", "nm_ppo"):
        settings = parse(OnPolicy, load_recipe(name, verb="align")["optimise"])
        assert (settings.whiten, settings.whiten_streams) == (False, False)


def test_normalised_streams_forget_their_units() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards_SBT, values_SBT = (torch.randn(2, 4, 5, generator=draw) for _ in range(2))
    mask_BT = torch.ones(4, 5, dtype=torch.bool)
    chosen: dict[str, Any] = {"discount": 1.0, "trace": 0.95, "whiten": False, "whiten_streams": True}
    units = torch.tensor([1.0, 10.0])[:, None, None]
    one, other = (by_values(units**k * rewards_SBT, units**k * values_SBT, mask_BT, torch.tensor([0.3, 0.7]), **chosen) for k in (0, 1))
    torch.testing.assert_close(one.advantages_BT, other.advantages_BT, atol=1e-5, rtol=1e-5)


def test_defect_8_a_reward_of_weight_zero_is_still_constrained() -> None:
    """The release needs a truthy coefficient of a reward that it does not constrain."""
    scorers = {"length": Length(), "even": Even()}
    for sense in ("at_least", "equal", "at_most"):
        source = constrained(scorers, {"length": 5.0, "even": 0.7}, weights=(0.0, 0.0), sense=sense)
        source.learn(None, torch.ones(2, 3, 4), Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
        one, other = source.multipliers_N.tolist()
        assert one != 0
        assert other != 0
        assert len(source.weights()) == 3


def test_defect_9_the_violation_is_the_mean_over_episodes_whatever_their_length() -> None:
    table_SBT = torch.zeros(1, 2, 10)
    table_SBT[0, 0, :10] = 0.1
    table_SBT[0, 1, 0] = 4.0
    assert episode_means(table_SBT).tolist() == pytest.approx([2.5])
    source = constrained({"length": Length()}, {"length": 2.0}, sense="equal", multipliers={"learning_rate": 1.0, "max_grad_norm": 0.0})
    told = source.learn(None, table_SBT, Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
    assert told["constraint/length/value"] == pytest.approx(2.5)
    assert source.multipliers_N.tolist() == pytest.approx([-0.5]), "one step against v − θ, undiscounted"


def test_thresholds_are_in_the_scorer_s_own_units() -> None:
    scale = Scale(3.0, 2.0)
    thresholds = Thresholds({"one": 7.0, "two": 3.0}, {"one": scale, "two": scale})
    assert thresholds.standardised(["two", "one"]).tolist() == [0.0, 2.0]
    told = thresholds.told(["one", "two"], torch.tensor([2.0, -1.0]))
    assert (told["constraint/one/value"], told["constraint/two/value"]) == (7.0, 1.0)


def test_low_momentum_moves_a_multiplier_back_sooner() -> None:
    def path(momentum: float) -> list[float]:
        chosen = {"momentum": momentum, "learning_rate": 0.1, "max_grad_norm": 0.0}
        source = constrained({"length": Length()}, {"length": 1.0}, multipliers=chosen)
        found = []
        for value in [0.0] * 10 + [1.5] * 10:
            source.learn(None, torch.full((1, 1, 1), value), Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
            found.append(source.multipliers_N.tolist()[0])
        return found

    low, high = path(0.1), path(0.9)
    assert low[10] < low[9]
    assert high[10] > high[9], "much momentum: it rises on although the value is met"
    assert Multipliers().momentum == 0.1


def test_multipliers_of_an_inequality_that_are_not_squashed_stay_at_zero_or_above() -> None:
    for sense, lowest in (("at_least", 0.0), ("equal", -1e9)):
        source = constrained({"length": Length()}, {"length": 1.0}, sense=sense, squash=False)
        for _ in range(5):
            source.learn(None, torch.full((1, 1, 1), 3.0), Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
        value = source.multipliers_N.tolist()[0]
        assert value >= lowest
        assert (value < 0) == (sense == "equal")


def test_multipliers_and_momentum_go_on_from_a_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    def moved(source: ConstrainedAnswers, values: Sequence[float]) -> list[float]:
        for value in values:
            source.learn(None, torch.full((2, 1, 1), value), Moment(0, 1, list))  # pyright: ignore[reportArgumentType]
        return source.multipliers_N.tolist()

    def fresh() -> ConstrainedAnswers:
        return constrained(SCORERS, {"length": 0.4, "even": 0.9})

    whole = moved(fresh(), [0.1, 0.7, 1.3, 0.2])
    first = fresh()
    moved(first, [0.1, 0.7])
    torch.save(first.state(), tmp_path / "source.pt")
    second = fresh()
    second.load_state(torch.load(tmp_path / "source.pt", weights_only=True))
    assert moved(second, [1.3, 0.2]) == whole
    other = constrained({"even": Even(), "length": Length()}, {"length": 0.4, "even": 0.9})
    with pytest.raises(CheckpointError, match="The checkpoint has multipliers of length, even, expected those of even, length"):
        other.load_state(first.state())
