"""What a step minimises: Bradley-Terry over a group's ordered pairs, reward regularisers, router balance."""

# C conversations of a stream, P pairs of a group, T tokens, E routed experts.
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from rewardproof.config import Section, named_function, nearest_hint
from rewardproof.data.packing import PackedBatch
from rewardproof.errors import ConfigError
from rewardproof.losses import (
    Total,
    ZeroSum,
    bradley_terry,
    centering,
    decoupled,
    hinge,
    importance_load_balance,
    normalised,
    own_part,
    reward_l2,
    switch_balance,
)
from rewardproof.models.packed import PackedRewards
from rewardproof.models.routing import Routing


def _margin(value: object) -> object:
    if value in ("none", "data") or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise ValueError("expected none, data or a number that is not negative")


Margin = Annotated[Literal["none", "data"] | float, BeforeValidator(_margin)]


class Loss(Section):
    """The training objective."""

    pair: str = "bradley_terry"
    """The loss of a pair: a name of `PAIR_LOSSES`, or `module:function` of your own, called as those are."""
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a recorded preference is wrong; a pair whose own doubt is known has that instead."""
    margin: Margin = "none"
    """`data` demands that the gap exceed the pair's own margin column, a number that every gap exceed it."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the gap of `normalised`, where the scale of rewards has no say."""
    reward_l2: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of half the rewards' squared sum a pair; it centres rewards, which pairs alone leave free."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (chosen + rejected)², TRL's form of centring."""
    bsr: Annotated[float, Field(ge=0)] = 0.0
    """Weight of batch-wise sum-to-zero regularisation, a penalty on the mean reward m of a batch of B pairs; 0 is none. It belongs to
    a training step's batch: the held-out loss leaves it out."""
    bsr_form: ZeroSum = "mean_squared"
    """`mean_squared`: B·m², the released form; `sum_squared`: the squared sum of the 2B rewards, 4B times as much."""
    bsr_scope: Literal["step", "device"] = "step"
    """The batch: `step` is the whole optimiser step, whatever the processes, accumulation and streams it is cut into; `device` is one
    process's `per_device_train_batch_size`, as released, so that the number of processes changes the penalty."""
    router_balance: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the load-balance loss, summed over layers; dense models have none."""
    balance: Literal["cv2", "switch"] = "cv2"
    """`cv2`: squared variation of importance and load (XFT); `switch`: fraction times probability (Switch Transformer)."""
    balance_over: Literal["token", "prompt"] = "token"
    """What the experts have to share evenly: tokens, or prompts, each with its answers and however long."""
    language: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a language model's loss on the preferred answers (GRM); 0 leaves it out, 0.01 is published."""
    language_beta: Annotated[float, Field(ge=0)] = 0.1
    """β of that loss, -log σ(β log π) of a whole answer; 0 takes -log π itself."""


class RoutingTotals(NamedTuple):
    """One router on one stream: mean weight of the shared expert, entropy in nats, and each routed expert's share of the choices."""

    shared: float
    entropy: float
    load: tuple[float, ...]


@dataclass(slots=True)
class StepTotals:
    """Sums over a step's groups, for the log. Every field is a plain number."""

    groups: int = 0
    pairs: int = 0
    correct: float = 0.0
    gap: float = 0.0
    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    balance: float = 0.0
    routings: list[RoutingTotals] = field(default_factory=list)
    auxiliary: dict[str, float] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Iterable[StepTotals]) -> StepTotals:
        """The totals of all parts together, for instance of several processes."""
        whole = cls()
        for part in parts:
            for entry in fields(cls):
                if entry.name != "auxiliary":
                    setattr(whole, entry.name, getattr(whole, entry.name) + getattr(part, entry.name))
            whole.add(part.auxiliary)
        return whole

    def add(self, auxiliary: Mapping[str, float]) -> None:
        """Add sums over groups that a term found."""
        for name, value in auxiliary.items():
            self.auxiliary[name] = self.auxiliary.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """The totals as the quantities of the log: accuracy and gap over pairs, reward mean and spread, length correlation, routing."""
        rewards = torch.tensor(self.rewards)
        values: dict[str, float] = {}
        if self.pairs:  # groups without pairs are there for a further term alone, and their rewards mean nothing
            values |= {
                "pair/accuracy": self.correct / self.pairs,
                "reward/gap": self.gap / self.pairs,
                "reward/mean": float(rewards.mean()),
                "reward/std": float(rewards.std()) if len(rewards) > 1 else 0.0,
                "reward/length_correlation": _correlation(rewards, torch.tensor(self.lengths, dtype=torch.float32)),
            }
        if self.routings:
            count = len(self.routings)
            loads = [sum(column) / count for column in zip(*(entry.load for entry in self.routings), strict=True)]
            values |= {
                "router/shared_weight": sum(entry.shared for entry in self.routings) / count,
                "router/entropy": sum(entry.entropy for entry in self.routings) / count,
                "router/load_max": sum(max(entry.load) for entry in self.routings) / count,
                "loss/balance": self.balance / self.groups,
            }
            values |= {f"router/load_{number}": load for number, load in enumerate(loads, start=1)}
        return values | {name: value / max(self.groups, 1) for name, value in self.auxiliary.items()}


def _correlation(left: Tensor, right: Tensor) -> float:
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack((left, right)))[0, 1])


def step_loss(output: PackedRewards, batch: PackedBatch, settings: Loss, totals: StepTotals, *, total: Total = own_part) -> Tensor:
    r"""Sum over the stream's groups of each group's loss; the caller divides by the global number of groups.

    A group's pairs are averaged, so that a ranking of n answers weighs as much as one pair:

    .. math:: \sum_g \Big( \frac{1}{|P_g|} \sum_{(w, l) \in P_g} \ell(r_w, r_l) \Big) + n_g \, \beta \sum_{\text{layers}} \mathrm{balance}

    Args:
        output: Rewards and routings of the stream.
        batch: The stream, with the ordered pairs of each group.
        settings: Weights of the terms.
        totals: Is added to, for the log.
        total: Makes the sums over all processes' streams of those over this one, for the terms that are not linear in the batch.
    """
    index = PairIndex.of(batch, output.rewards_C.device)
    winner_P, loser_P, weight_P = index.winner_P, index.loser_P, index.weight_P
    chosen_P, rejected_P = output.rewards_C[winner_P], output.rewards_C[loser_P]
    losses_P = pair_losses(output.rewards_C, index, settings)
    if settings.reward_l2:
        squares_2P = reward_l2(torch.stack((chosen_P, rejected_P)), reduction="none")
        losses_P = losses_P + settings.reward_l2 * squares_2P.mean(dim=0)
    if settings.centering:
        losses_P = losses_P + settings.centering * centering(chosen_P, rejected_P, reduction="none")
    loss = (weight_P * losses_P).sum() * math.prod(term.pairs for term in output.auxiliary)
    if output.routings and settings.router_balance:
        weight_T = 1.0 / torch.bincount(batch.group_T)[batch.group_T] if settings.balance_over == "prompt" else None
        balance = balance_loss(output.routings, settings.balance, token_weight_T=weight_T, total=total)
        loss = loss + settings.router_balance * balance * batch.n_groups
        totals.balance += float(balance.detach()) * batch.n_groups
    for term in output.auxiliary:
        loss = loss + term.loss
        totals.add(term.metrics)
    _count(output, batch, (winner_P, loser_P), totals)
    return loss


def pair_losses(rewards_C: Tensor, index: PairIndex, settings: Loss) -> Tensor:
    """The loss of every pair under its own margin and doubt, shape `(P,)`, without what holds rewards near zero."""
    demanded = 0.0 if settings.margin in ("none", "data") else float(settings.margin)
    margin_P = index.margin_P if settings.margin == "data" else torch.full_like(index.margin_P, demanded)
    doubt_P = torch.where(index.doubt_P > 0, index.doubt_P, settings.label_smoothing)
    loss = pair_loss(settings.pair, temperature=settings.temperature)
    return doubted(loss, rewards_C[index.winner_P], rewards_C[index.loser_P], margin_P, doubt_P)


def doubted(loss: PairLoss, chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, doubt_P: Tensor) -> Tensor:
    r"""The loss of pairs whose labels may be wrong, :math:`(1 - s) \ell(c, r, m) + s \, \ell(r, c, m)`, `s = 1` being a flip."""
    losses_P = loss(chosen_P, rejected_P, margin_P)
    if not bool(doubt_P.any()):
        return losses_P
    return (1 - doubt_P) * losses_P + doubt_P * loss(rejected_P, chosen_P, margin_P)


def _bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    return bradley_terry(chosen_P, rejected_P, margin_B=margin_P, reduction="none")


def _hinge(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    return hinge(chosen_P, rejected_P, margin_B=margin_P, reduction="none")


def _normalised(chosen_P: Tensor, rejected_P: Tensor, _: Tensor, *, temperature: float = 1.0) -> Tensor:
    return normalised(chosen_P, rejected_P, temperature=temperature, reduction="none")


def _decoupled(chosen_P: Tensor, rejected_P: Tensor, _: Tensor) -> Tensor:
    return decoupled(chosen_P, rejected_P, reduction="none")


PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rewards of the preferred answers, of the others, and margins in reward units, each `(P,)`, to one loss a pair, `(P,)`."""

PAIR_LOSSES: Mapping[str, PairLoss] = {
    "bradley_terry": _bradley_terry,
    "hinge": _hinge,
    "normalised": _normalised,
    "decoupled": _decoupled,
}
WITHOUT_MARGIN = ("normalised", "decoupled")
"""Losses in which a gap in reward units has no place: refused with `loss.margin`, rather than blind to it."""


def check_loss(settings: Loss, *, zero_head: bool) -> None:
    """Refuse settings of the objective under which nothing would be learned, or a setting would do nothing.

    Args:
        settings: The objective.
        zero_head: The reward head starts at zero, and so does every reward.

    Raises:
        ConfigError: Names the keys.
    """
    pair_loss(settings.pair)
    if settings.pair in WITHOUT_MARGIN and settings.margin not in ("none", 0.0):
        raise ConfigError(
            f"Got loss.margin={settings.margin} with loss.pair={settings.pair}, expected none: this loss demands no gap in reward units, "
            "so the margin would do nothing. Drop it, or use loss.pair=hinge or bradley_terry."
        )
    if settings.temperature != 1 and settings.pair != "normalised":
        raise ConfigError(
            f"Got loss.temperature={settings.temperature} with loss.pair={settings.pair}, expected loss.pair=normalised: no other loss "
            "reads it. Drop it."
        )
    if zero_head and (settings.pair == "normalised" or (settings.pair == "hinge" and settings.margin in ("none", 0.0))):
        raise ConfigError(
            f"Got loss.pair={settings.pair} with head.init=zero, expected rewards that differ from the start: where all are 0, a hinge "
            "without a margin has no gradient and would never train, and a normalised gap divides by zero. Write head.init=normal, or give "
            "the hinge a margin (loss.margin=1)."
        )


def pair_loss(name: str, *, temperature: float = 1.0) -> PairLoss:
    """The loss of that name, or one of the user's own by `module:function`.

    Args:
        name: Which.
        temperature: Of the normalised gap; the other losses have none.

    Raises:
        ConfigError: There is none.
    """
    if name == "normalised":
        return partial(_normalised, temperature=temperature)
    if name in PAIR_LOSSES:
        return PAIR_LOSSES[name]
    if ":" not in name:
        raise ConfigError(
            f"Unknown loss.pair={name!r}{nearest_hint(name, PAIR_LOSSES)}; expected one of {', '.join(PAIR_LOSSES)}, or module:function of "
            "your own. Correct it."
        )
    return named_function(name, key="loss.pair")


def balance_loss(
    routings: Sequence[Routing], form: Literal["cv2", "switch"], *, token_weight_T: Tensor | None = None, total: Total = own_part
) -> Tensor:
    """Load-balance loss summed over layers. A packed stream has no pads and a shared prompt once: unweighted, every token counts once."""
    balance = importance_load_balance if form == "cv2" else switch_balance
    losses = [balance(entry.probabilities_TE, entry.selected_TE, token_weight_T=token_weight_T, total=total) for entry in routings]
    return torch.stack(losses).sum()


class PairIndex(NamedTuple):
    """The ordered pairs of a stream: places of both answers among its conversations, weight in the group, margin and doubt."""

    winner_P: Tensor
    loser_P: Tensor
    weight_P: Tensor
    margin_P: Tensor
    doubt_P: Tensor

    @classmethod
    def of(cls, batch: PackedBatch, device: torch.device) -> PairIndex:
        """Those of a packed batch."""
        rows: list[tuple[int, int, float, float, float]] = []
        first = 0
        for size, pairs in zip(batch.conversations_per_group, batch.pairs, strict=True):
            rows += [(first + pair.winner, first + pair.loser, 1 / len(pairs), pair.margin or 0.0, pair.doubt) for pair in pairs]
            first += size
        winners, losers, *numbers = zip(*rows, strict=True) if rows else ((),) * 5
        places = [torch.tensor(column, dtype=torch.long, device=device) for column in (winners, losers)]
        return cls(*places, *(torch.tensor(column, dtype=torch.float32, device=device) for column in numbers))


def _count(output: PackedRewards, batch: PackedBatch, index: tuple[Tensor, Tensor], totals: StepTotals) -> None:
    rewards_C = output.rewards_C.detach()
    gap_P = rewards_C[index[0]] - rewards_C[index[1]]
    totals.groups += batch.n_groups
    totals.pairs += len(gap_P)
    totals.correct += float((gap_P > 0).sum() + 0.5 * (gap_P == 0).sum())
    totals.gap += float(gap_P.sum())
    totals.rewards += rewards_C.tolist()
    totals.lengths += torch.bincount(batch.target_conversation_L, minlength=len(rewards_C)).tolist()
    for routing in output.routings:
        probabilities_TE = routing.probabilities_TE.detach()
        entropy = -(probabilities_TE * probabilities_TE.clamp_min(1e-12).log()).sum(dim=1).mean()
        load_E = routing.selected_TE.float().mean(dim=0)
        load = tuple((load_E / load_E.sum()).tolist())
        totals.routings.append(RoutingTotals(float(routing.shared_T.detach().mean()), float(entropy), load))
