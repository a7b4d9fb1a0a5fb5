"""The loss of a step against a computation written out group by group."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rewardproof.config import parse
from rewardproof.data.packing import PackedBatch, pack
from rewardproof.errors import ConfigError
from rewardproof.losses import decoupled, hinge, normalised
from rewardproof.models.packed import PackedRewards
from rewardproof.models.routing import Routing, route
from rewardproof.training.batches import TrainingSet
from rewardproof.training.objective import WITHOUT_MARGIN, Loss, StepTotals, check_loss, pair_loss, step_loss

STATES = torch.zeros(1, 1)
ZERO = {"reward_l2": 0.0, "centering": 0.0, "router_balance": 0.0}
SETTINGS = {
    "plain": Loss(**ZERO),
    "margin": Loss(**ZERO, margin="data"),
    "one margin": Loss(**ZERO, margin=0.4),
    "smoothing": Loss(**ZERO, label_smoothing=0.2),
    "both": Loss(**ZERO, label_smoothing=0.2, margin="data"),
    "l2": Loss(**{**ZERO, "reward_l2": 0.3}),
    "centering": Loss(**{**ZERO, "centering": 0.3}),
    "balance": Loss(**{**ZERO, "router_balance": 0.7}),
    "switch": Loss(**{**ZERO, "router_balance": 0.7}, balance="switch"),
    "everything": Loss(label_smoothing=0.1, margin="data", reward_l2=0.2, centering=0.1, router_balance=0.5),
}


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def squared_variation(usage: np.ndarray) -> float:
    return float(usage.var(ddof=1) / (usage.mean() ** 2 + 1e-10))


def balance(routing: Routing, form: str) -> float:
    probabilities = routing.probabilities_TE.numpy().astype(np.float64)
    selected = np.zeros_like(probabilities)
    for token, chosen in enumerate(routing.chosen_TK.tolist()):
        selected[token, chosen] = 1
    if form == "cv2":
        return squared_variation((probabilities * selected).sum(axis=0)) + squared_variation(selected.sum(axis=0))
    return probabilities.shape[1] * float((selected.sum(axis=0) / selected.sum() * probabilities.mean(axis=0)).sum())


def written_out(rewards: list[float], batch: PackedBatch, settings: Loss, routings: tuple[Routing, ...]) -> float:
    total, first = 0.0, 0
    for size, pairs in zip(batch.conversations_per_group, batch.pairs, strict=True):
        of_group = 0.0
        for winner, loser, margin, _ in pairs:
            chosen, rejected = rewards[first + winner], rewards[first + loser]
            demanded = {"data": margin or 0.0, "none": 0.0}.get(settings.margin, settings.margin)
            s = settings.label_smoothing
            of_group -= (1 - s) * log_sigmoid(chosen - rejected - demanded) + s * log_sigmoid(rejected - chosen - demanded)
            of_group += settings.reward_l2 / 2 * (chosen**2 + rejected**2) + settings.centering * (chosen + rejected) ** 2
        total += of_group / len(pairs)
        total += settings.router_balance * sum(balance(routing, settings.balance) for routing in routings)
        first += size
    return total


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_step_loss_is_the_sum_over_groups(name: str, seed: int, random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(5, seed=seed).groups
    batch = pack([entry.group for entry in entries], [entry.pairs for entry in entries])
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(sum(batch.conversations_per_group), generator=generator) * 2
    routings = tuple(route(torch.randn(20, 4, generator=generator), 2, mixing="s_max", shared_weight=0.5) for _ in range(3))
    assert {len(pairs) for pairs in batch.pairs} == {1, 2, 3}, "the sample must hold groups with several pairs"
    loss = step_loss(PackedRewards(rewards, routings, STATES), batch, SETTINGS[name], StepTotals())
    assert float(loss) == pytest.approx(written_out(rewards.tolist(), batch, SETTINGS[name], routings), rel=1e-5)
    if name != "plain":
        assert float(loss) != pytest.approx(written_out(rewards.tolist(), batch, SETTINGS["plain"], routings), rel=1e-3)


def squared_gap(chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    return (chosen - rejected - margin - 1).square()


def test_a_function_of_the_users_own_is_the_loss_of_a_pair(random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(5).groups
    batch = pack([entry.group for entry in entries], [entry.pairs for entry in entries])
    rewards = torch.randn(sum(batch.conversations_per_group), generator=torch.Generator().manual_seed(0))
    loss = step_loss(PackedRewards(rewards, (), STATES), batch, Loss(**ZERO, pair=f"{__name__}:squared_gap"), StepTotals())
    expected, first = 0.0, 0
    for size, pairs in zip(batch.conversations_per_group, batch.pairs, strict=True):
        gaps = [float(rewards[first + pair.winner] - rewards[first + pair.loser]) - 1 for pair in pairs]
        expected += sum(gap**2 for gap in gaps) / len(gaps)
        first += size
    assert float(loss) == pytest.approx(expected, rel=1e-5)


PAIR_SETTINGS = {
    "hinge": (Loss(**ZERO, pair="hinge", margin=0.25), lambda c, r, _: hinge(c, r, margin_B=0.25)),
    "hinge by data": (Loss(**ZERO, pair="hinge", margin="data"), lambda c, r, m: hinge(c, r, margin_B=m)),
    "normalised": (Loss(**ZERO, pair="normalised", temperature=0.5), lambda c, r, _: normalised(c, r, temperature=0.5)),
    "decoupled": (Loss(**ZERO, pair="decoupled"), lambda c, r, _: decoupled(c, r)),
    "doubted hinge": (
        Loss(**ZERO, pair="hinge", margin=1.0, label_smoothing=0.3),
        lambda c, r, _: 0.7 * hinge(c, r, margin_B=1.0) + 0.3 * hinge(r, c, margin_B=1.0),
    ),
}


@pytest.mark.parametrize("name", PAIR_SETTINGS)
def test_every_pair_loss_is_averaged_over_a_groups_pairs_and_summed_over_groups(name: str, random_set: Callable[..., TrainingSet]) -> None:
    settings, of_pairs = PAIR_SETTINGS[name]
    check_loss(settings, zero_head=False)
    entries = random_set(5).groups
    batch = pack([entry.group for entry in entries], [entry.pairs for entry in entries])
    rewards = torch.randn(sum(batch.conversations_per_group), generator=torch.Generator().manual_seed(0))
    expected, first = 0.0, 0
    for size, pairs in zip(batch.conversations_per_group, batch.pairs, strict=True):
        chosen = torch.stack([rewards[first + pair.winner] for pair in pairs])
        rejected = torch.stack([rewards[first + pair.loser] for pair in pairs])
        expected += float(of_pairs(chosen, rejected, torch.tensor([pair.margin or 0.0 for pair in pairs])))
        first += size
    assert float(step_loss(PackedRewards(rewards, (), STATES), batch, settings, StepTotals())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WITHOUT_MARGIN)
def test_a_margin_is_refused_where_it_would_mean_nothing(name: str) -> None:
    for margin in ("data", 0.5):
        with pytest.raises(ConfigError, match=f"loss.margin={margin} with loss.pair={name}, expected none"):
            check_loss(Loss(pair=name, margin=margin), zero_head=False)
    check_loss(Loss(pair=name, margin=0.0), zero_head=False)


def test_a_margin_is_none_the_datas_or_a_number() -> None:
    assert [parse(Loss, {"margin": value}).margin for value in ("none", "data", 0.5, 2)] == ["none", "data", 0.5, 2.0]
    for value in ("dta", -1, True, math.inf):
        with pytest.raises(ConfigError, match=r"Bad value for 'margin': got .*expected none, data or a number that is not negative"):
            parse(Loss, {"margin": value})


def test_a_hinge_learns_from_zero_only_with_a_margin() -> None:
    check_loss(Loss(pair="hinge", margin=1.0), zero_head=True)
    with pytest.raises(ConfigError, match=r"loss.pair=hinge with head.init=zero, .*give the hinge a margin \(loss.margin=1\)"):
        check_loss(Loss(pair="hinge"), zero_head=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bradley", "did you mean 'bradley_terry'"),
        ("no_such_module:loss", "No module named"),
        (f"{__name__}:nothing", "no attribute 'nothing'"),
    ],
)
def test_a_loss_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pair_loss(name)


def test_a_pair_s_own_doubt_comes_before_that_of_all(random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(4, sizes=(2,)).groups
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(0))

    def loss(doubts: list[float], smoothing: float) -> float:
        pairs = [(entry.pairs[0]._replace(doubt=doubt),) for entry, doubt in zip(entries, doubts, strict=True)]
        batch = pack([entry.group for entry in entries], pairs)
        return float(step_loss(PackedRewards(rewards, (), STATES), batch, Loss(**ZERO, label_smoothing=smoothing), StepTotals()))

    assert loss([0.2] * 4, 0.0) == pytest.approx(loss([0.0] * 4, 0.2))
    assert loss([0.2] * 4, 0.4) == pytest.approx(loss([0.0] * 4, 0.2))
    flipped = -sum(log_sigmoid(float(rewards[2 * number + 1] - rewards[2 * number])) for number in range(4))
    assert loss([1.0] * 4, 0.0) == pytest.approx(flipped, rel=1e-5)


def test_default_weights_are_the_brief_s() -> None:
    assert (Loss().reward_l2, Loss().router_balance, Loss().label_smoothing, Loss().margin) == (1e-3, 0.01, 0.0, "none")


def test_a_dense_model_has_no_balance_loss(random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(3).groups
    batch = pack([entry.group for entry in entries], [entry.pairs for entry in entries])
    rewards = torch.randn(sum(batch.conversations_per_group))
    heavy, none = (
        step_loss(PackedRewards(rewards, (), STATES), batch, Loss(router_balance=weight), StepTotals()) for weight in (100.0, 0.0)
    )
    assert torch.equal(heavy, none)


def test_totals_are_counts_of_pairs_and_answers(random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(4, sizes=(2,)).groups
    batch = pack([entry.group for entry in entries], [entry.pairs for entry in entries])
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0, 2.0, 2.0, 5.0, 1.0])
    totals = StepTotals()
    routing = route(torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]]), 1, mixing="s_max", shared_weight=0.5)
    step_loss(PackedRewards(rewards, (routing,), STATES), batch, Loss(), totals)
    assert (totals.groups, totals.pairs) == (4, 4)
    metrics = totals.metrics()
    assert metrics["pair/accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert metrics["reward/gap"] == pytest.approx((1 - 3 + 0 + 4) / 4)
    assert metrics["reward/mean"] == pytest.approx(14 / 8)
    assert metrics["reward/std"] == pytest.approx(float(np.std(rewards.numpy(), ddof=1)))
    lengths = [
        len(tokens) - start for entry in entries for tokens, start in zip(entry.group.conversations, entry.group.answer_starts, strict=True)
    ]
    assert totals.lengths == lengths
    assert metrics["reward/length_correlation"] == pytest.approx(float(np.corrcoef(rewards.numpy(), lengths)[0, 1]), abs=1e-5)
    assert metrics["router/shared_weight"] == pytest.approx(float(routing.shared_T.mean()))
    assert metrics["router/load_max"] == pytest.approx(0.5)
    p = routing.probabilities_TE
    assert metrics["router/entropy"] == pytest.approx(float(-(p * p.log()).sum(dim=1).mean()), abs=1e-6)


def test_metrics_of_constant_rewards_are_finite() -> None:
    totals = StepTotals(groups=1, pairs=1, correct=0.5, rewards=[1.0, 1.0], lengths=[3, 4])
    assert all(math.isfinite(value) for value in totals.metrics().values())
