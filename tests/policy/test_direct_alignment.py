"""Losses of direct alignment from the log-probabilities of answers: the formulas of the papers, written out in float64 beside them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardproof.config import load_recipe, parse
from rewardproof.errors import ConfigError
from rewardproof.losses import dpo, log_ratio_gap
from rewardproof.policy.direct_alignment import DIRECT_LOSSES, DirectAlignment, baseline_losses, check_direct, preference_losses
from rewardproof.training.answer_pairs import AnswerPairs, Answers

RECIPES = ("dpo", "ipo", "slic", "dpo_length", "rpo")


def some_pairs(seed: int = 0, count: int = 7) -> AnswerPairs:
    """Answers of random log-probabilities, with a gradient."""
    draw = torch.Generator().manual_seed(seed)
    numbers = [-torch.rand(count, generator=draw, dtype=torch.float64) * 80 for _ in range(4)]
    lengths = [torch.randint(1, 60, (count,), generator=draw) for _ in range(2)]
    chosen, rejected = (one.requires_grad_() for one in numbers[:2])
    return AnswerPairs(Answers(chosen, numbers[2], lengths[0]), Answers(rejected, numbers[3], lengths[1]))


def loss_of(settings: DirectAlignment, pairs: AnswerPairs) -> Tensor:
    """Each pair's loss, the preferred answers as the baseline."""
    losses = preference_losses(settings, pairs, torch.zeros(len(pairs.chosen.log_prob_P)))
    if not settings.keeps_baseline:
        return losses
    return losses + baseline_losses(settings, pairs.chosen.log_prob_P, pairs.chosen.length_P)


def written_out(settings: DirectAlignment, chosen: float, rejected: float, refs: tuple[float, float], lengths: tuple[int, int]) -> Any:
    """Loss and its slopes in both log-probabilities, of one pair, in Python's floats."""
    u = settings.beta * ((chosen - refs[0]) - (rejected - refs[1])) + settings.length_penalty * (lengths[0] - lengths[1])
    sigmoid = 1 / (1 + math.exp(-u)) if u > -700 else 0.0
    value, slope = {
        "dpo": (max(-u, 0.0) + math.log1p(math.exp(-abs(u))), sigmoid - 1),
        "ipo": ((u - 1) ** 2, 2 * (u - 1)),
        "slic": (max(0.0, 1 - u), -1.0 if u < 1 else 0.0),
    }[settings.form]
    weight = settings.eta * settings.beta + settings.sft_weight / lengths[0]
    return value - weight * chosen, settings.beta * slope - weight, -settings.beta * slope


CHANGES: list[dict[str, Any]] = [
    {"form": "dpo"},
    {"form": "ipo"},
    {"form": "slic"},
    {"form": "dpo", "length_penalty": 0.03},
    {"form": "dpo", "length_penalty": -0.03},
    {"form": "dpo", "eta": 0.5},
    {"form": "dpo", "sft_weight": 0.2},
    {"form": "ipo", "eta": 0.1, "length_penalty": 0.01},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_losses_and_gradients_are_the_papers(changes: dict[str, Any]) -> None:
    settings, pairs = DirectAlignment(**{"beta": 0.07, **changes}), some_pairs()
    losses = loss_of(settings, pairs)
    losses.sum().backward()
    for place in range(len(losses)):
        chosen, rejected = (side.log_prob_P[place].item() for side in pairs)
        refs = tuple(side.reference_P[place].item() for side in pairs)
        lengths = tuple(int(side.length_P[place]) for side in pairs)
        value, of_chosen, of_rejected = written_out(settings, chosen, rejected, refs, lengths)  # pyright: ignore[reportArgumentType]
        assert losses[place].item() == pytest.approx(value, rel=1e-10)
        assert pairs.chosen.log_prob_P.grad is not None
        assert pairs.rejected.log_prob_P.grad is not None
        assert pairs.chosen.log_prob_P.grad[place].item() == pytest.approx(of_chosen, rel=1e-9)
        assert pairs.rejected.log_prob_P.grad[place].item() == pytest.approx(of_rejected, rel=1e-9)


def test_rpo_without_its_term_is_dpo_to_the_last_bit() -> None:
    rpo = DirectAlignment(**{**load_recipe("rpo", verb="align")["direct"], "eta": 0.0, "beta": 0.3})
    assert DirectAlignment(**load_recipe("rpo", verb="align")["direct"]).eta > 0

    def plain(pairs: AnswerPairs) -> Tensor:
        gaps = log_ratio_gap(*(side.log_prob_P for side in pairs), *(side.reference_P for side in pairs))
        return dpo(gaps, beta=0.3, reduction="none")

    found = []
    for loss in (lambda pairs: loss_of(rpo, pairs), plain):
        pairs = some_pairs()
        losses = loss(pairs)
        losses.sum().backward()
        found.append((losses.detach(), pairs.chosen.log_prob_P.grad, pairs.rejected.log_prob_P.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("beta", "eta"), [(0.01, 0.005), (0.5, 2.0)])
def test_slopes_of_rpo_where_policy_and_reference_agree(beta: float, eta: float) -> None:
    """d loss / d log π(chosen) = -β/2 - ηβ, and of the other +β/2: the weight is ηβ on the sum, neither η nor that of a mean."""
    values = torch.tensor([-20.0, -30.0], dtype=torch.float64)
    chosen, rejected = values.clone().requires_grad_(), (values - 4).requires_grad_()
    length = torch.tensor([10, 12])
    pairs = AnswerPairs(Answers(chosen, values, length), Answers(rejected, values - 4, length))
    loss_of(DirectAlignment(beta=beta, eta=eta), pairs).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full((2,), -beta / 2 - eta * beta, dtype=torch.float64))
    torch.testing.assert_close(rejected.grad, torch.full((2,), beta / 2, dtype=torch.float64))


def test_a_baseline_twice_as_long_counts_twice_in_the_sum_and_once_in_the_mean() -> None:
    log_prob, length = torch.tensor([-12.0, -24.0]), torch.tensor([6, 12])
    summed = baseline_losses(DirectAlignment(eta=0.5, beta=0.2), log_prob, length)
    averaged = baseline_losses(DirectAlignment(sft_weight=0.2), log_prob, length)
    assert summed.tolist() == pytest.approx([0.1 * 12, 0.1 * 24])
    assert averaged.tolist() == pytest.approx([0.2 * 2, 0.2 * 2])


def test_the_baselines_term_knows_no_reference() -> None:
    settings, terms = DirectAlignment(eta=0.3), []
    for shift in (0.0, 5.0):
        pairs = some_pairs()
        moved = AnswerPairs(*(side._replace(reference_P=side.reference_P + shift) for side in pairs))
        whole, plain = loss_of(settings, moved), loss_of(DirectAlignment(), moved)
        terms.append((whole - plain).detach())
    torch.testing.assert_close(*terms)


def test_summed_and_averaged_terms_are_two_options_and_not_both() -> None:
    pairs = some_pairs()
    both = [loss_of(DirectAlignment(**change), pairs).detach() for change in ({"eta": 0.2}, {"sft_weight": 0.2})]
    assert not torch.allclose(*both)
    with pytest.raises(ConfigError, match=r"direct\.eta=0\.2 and direct\.sft_weight=0\.2, expected one of them"):
        check_direct(DirectAlignment(eta=0.2, sft_weight=0.2))


@pytest.mark.parametrize("form", DIRECT_LOSSES)
def test_a_doubtful_label_counts_both_ways(form: Any) -> None:
    settings, pairs, doubt = DirectAlignment(form=form), some_pairs(), torch.full((7,), 0.25, dtype=torch.float64)
    none = torch.zeros(7)
    expected = 0.75 * preference_losses(settings, pairs, none) + 0.25 * preference_losses(settings, AnswerPairs(*pairs[::-1]), none)
    torch.testing.assert_close(preference_losses(settings, pairs, doubt), expected)


def test_recipes_are_the_published_values() -> None:
    made = {name: parse(DirectAlignment, load_recipe(name, verb="align")["direct"]) for name in RECIPES}
    assert {name: one.name for name, one in made.items()} == {name: name for name in RECIPES}
    assert all((one.groups_per_step, one.learning_rate) == (128, 5e-7) for one in made.values())
    assert [made[name].optimizer for name in RECIPES] == ["rmsprop"] * 4 + ["adamw"]
    assert (made["rpo"].beta, made["rpo"].eta, made["rpo"].schedule, made["rpo"].baseline) == (0.01, 0.005, "cosine", "chosen")
    assert DirectAlignment(sft_weight=0.2, form="slic").name == "slic_sft"


def test_updates_and_warm_up_come_from_epochs_unless_they_are_given() -> None:
    assert DirectAlignment(groups_per_step=16).updates(100) == 6
    assert DirectAlignment(groups_per_step=16, epochs=0.01).updates(100) == 1
    assert DirectAlignment(groups_per_step=16, epochs=2.5, steps=9).updates(100) == 9
    assert (DirectAlignment(warmup_share=0.1).warmup(60), DirectAlignment(warmup_steps=4).warmup(60)) == (6, 4)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"baseline": "sampled"}, r"direct\.baseline=sampled without a term of its likelihood"),
    ({"warmup_steps": 3, "warmup_share": 0.1}, r"direct\.warmup_steps=3 and direct\.warmup_share=0\.1, expected one"),
    ({"temperature": 0.7}, r"direct\.temperature=0\.7, expected 1"),
    ({"read": {"text": "raw"}}, r"direct\.read\.text=raw, expected it beside policy="),
    ({"lora": {"lora_dropout": 0.1}}, r"lora\.lora_dropout=0\.1, expected none"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_what_cannot_mean_anything_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_direct(DirectAlignment(**changes))
