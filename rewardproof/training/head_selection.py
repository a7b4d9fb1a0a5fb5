"""Which heads of an activation reward model are replaced: a Bernoulli variable a head, learned by REINFORCE, and the mask made of it."""

# M masks, L layers, H query heads.
from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewardproof.config import Section
from rewardproof.errors import ConfigError
from rewardproof.losses import mask_objective, mask_probabilities

LossOf = Callable[[int, Tensor], Tensor]
"""Losses `(M,)` of an example, by its number, under masks `(M, L, H)`."""
CheckLoss = Callable[[Tensor], Tensor]
"""Mean losses `(M,)` over examples that nothing was learned from, under masks `(M, L, H)`."""
EVERY = 50
"""Iterations between two entries of the log."""


class HeadSelection(Section):
    """How heads are selected."""

    iterations: Annotated[int, Field(ge=1)] = 600
    """Steps of REINFORCE, each on one example drawn at random."""
    samples: Annotated[int, Field(ge=2)] = 32
    """Masks drawn in a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of Adam."""
    start_logit: float = -1.0
    """Logit with which every head starts; -1 replaces 27 % of them."""
    clamp: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """Least distance of a probability from 0 and 1."""
    masks: Annotated[int, Field(ge=1)] = 3
    """Masks learned from a seed each; the reward is the mean over them."""
    final: Literal["threshold", "sampled", "top", "all"] = "threshold"
    """The mask made of the probabilities: heads above `threshold`; the best of `candidates` drawn masks by the examples kept for that; the
    `n_heads` likeliest; or every head, without any learning."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability above which `threshold` takes a head."""
    candidates: Annotated[int, Field(ge=1)] = 10
    """Masks that `sampled` draws."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability below which `sampled` takes no head at all."""
    n_heads: Annotated[int, Field(ge=0)] = 0
    """Heads that `top` takes; has to be given there."""


def check_selection(settings: HeadSelection) -> None:
    """Refuse settings that do not fit each other.

    Raises:
        ConfigError: Names the keys.
    """
    if (settings.final == "top") != bool(settings.n_heads):
        raise ConfigError(
            f"Got heads.final={settings.final} with heads.n_heads={settings.n_heads}, expected a number of heads with final=top and with "
            "nothing else: no other mask has a fixed one. Write heads.final=top heads.n_heads=20, for instance."
        )


def learned_logits(
    loss_of: LossOf,
    shape: tuple[int, int],
    n_examples: int,
    settings: HeadSelection,
    *,
    seed: int,
    record: Callable[[int, float, Tensor], None] | None = None,
) -> Tensor:
    """Logits of the heads' Bernoulli variables after REINFORCE, shape `(L, H)`, float32.

    Args:
        loss_of: Losses of an example under masks.
        shape: Layers and heads.
        n_examples: Examples there are.
        settings: Steps, masks a step, learning rate.
        seed: Of the examples' order and the masks.
        record: Receives, every `EVERY` steps, the step, its mean loss and the probabilities.
    """
    dice = torch.Generator().manual_seed(seed)
    logits_LH = torch.full(shape, settings.start_logit, requires_grad=True)
    adam = torch.optim.Adam([logits_LH], lr=settings.learning_rate)
    for step in range(1, settings.iterations + 1):
        example = int(torch.randint(n_examples, (), generator=dice))
        probabilities_LH = mask_probabilities(logits_LH.detach(), clamp=settings.clamp)
        masks_MLH = torch.bernoulli(probabilities_LH.expand(settings.samples, *shape), generator=dice).bool()
        losses_M = loss_of(example, masks_MLH)
        adam.zero_grad()
        mask_objective(logits_LH, masks_MLH, losses_M, clamp=settings.clamp).backward()
        adam.step()
        if record is not None and (step % EVERY == 0 or step == settings.iterations):
            record(step, float(losses_M.mean()), probabilities_LH)
    return logits_LH.detach()


def final_mask(logits_LH: Tensor, settings: HeadSelection, check_loss: CheckLoss, *, seed: int) -> Tensor:
    """The mask made of learned logits, true where a head is replaced, shape `(L, H)`.

    Args:
        logits_LH: What was learned.
        settings: How the mask is made.
        check_loss: Judges drawn masks on examples that the logits were not learned from.
        seed: Of drawn masks.

    Raises:
        ConfigError: `top` asks for more heads than there are.
    """
    probabilities_LH = mask_probabilities(logits_LH, clamp=settings.clamp)
    if settings.final == "all":
        return torch.ones_like(logits_LH, dtype=torch.bool)
    if settings.final == "threshold":
        return probabilities_LH > settings.threshold
    if settings.final == "top":
        if settings.n_heads > logits_LH.numel():
            raise ConfigError(
                f"Got heads.n_heads={settings.n_heads}, expected at most {logits_LH.numel()}: the model has no more heads. Lower it, or "
                "write heads.final=all."
            )
        places = logits_LH.flatten().topk(settings.n_heads).indices
        return torch.zeros(logits_LH.numel(), dtype=torch.bool).index_fill(0, places, True).view(logits_LH.shape)
    dice = torch.Generator().manual_seed(seed)
    likely_LH = torch.where(probabilities_LH < settings.floor, 0.0, probabilities_LH)
    drawn_MLH = torch.bernoulli(likely_LH.expand(settings.candidates, *logits_LH.shape), generator=dice).bool()
    return drawn_MLH[int(check_loss(drawn_MLH).argmin())]
