r"""Direct alignment: a policy learns from preferences themselves, with no reward model and no samples of its own.

.. math:: L = \text{mean}\; g\big(\beta \Delta + \alpha (|y_w| - |y_l|)\big) + \eta \beta \, \text{mean}(-\log \pi(y_0 | x))

with :math:`\Delta` the gap of both answers' log-ratios to the reference, sums over tokens. DPO, IPO and SLiC are forms of g; a price of
length :math:`\alpha` makes it length-regularised DPO; the second term makes it RPO.

Reference:
    Rafailov et al., Scaling Laws for Reward Model Overoptimization in Direct Alignment Algorithms, arXiv:2406.02900. Length: Park et al.,
    arXiv:2403.19159. RPO: Liu et al., arXiv:2405.16436.
"""

# P ordered pairs, G groups.
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewardproof.errors import ConfigError
from rewardproof.losses import chosen_likelihood, dpo, ipo, policy_hinge, without_length
from rewardproof.policy.settings import Count, NotNegative, Optimisation, Positive, Share, refuse_dropout
from rewardproof.training.answer_pairs import AnswerPairs, Answers, doubted, gap_of
from rewardproof.training.preparation import Read, refuse_ignored_margins

DIRECT_LOSSES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "dpo": lambda gap_P, beta: dpo(gap_P, beta=beta, reduction="none"),
    "ipo": lambda gap_P, beta: ipo(gap_P, tau=beta / 2, scale=beta**2, reduction="none"),
    "slic": lambda gap_P, beta: policy_hinge(gap_P, beta=beta, reduction="none"),
}
"""A pair's gap in nats and beta, to its loss: -log σ(u), (u - 1)², max(0, 1 - u) of u = βΔ."""


class DirectAlignment(Optimisation):
    """One run of direct alignment: the policy learns off policy, from the order of the answers that came with the training prompts."""

    form: Literal["dpo", "ipo", "slic"] = "dpo"
    """A name of `DIRECT_LOSSES`."""
    beta: Positive = 0.1
    """What makes an implicit reward of a log-ratio; the smaller, the further the policy goes."""
    length_penalty: float = 0.0
    """Price α of a token in the reward that is learnt: the loss is of βΔ + α(|y_w| - |y_l|). Below 0 the sign is the other."""
    eta: NotNegative = 0.0
    """RPO: the weight ηβ of -log π of a baseline answer, summed over its tokens."""
    sft_weight: NotNegative = 0.0
    """The other form of that term: weight of -log π of a baseline answer, averaged over its tokens, with no β. One of both at most."""
    baseline: Literal["chosen", "sampled"] = "chosen"
    """Whose likelihood that term keeps: the preferred answers', or that of one answer to each prompt, sampled from the initial policy."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Updates of the run; 0 takes as many as `epochs` asks for."""
    epochs: Positive = 1.0
    """Times that the run goes over its preferences, where `steps` does not say."""
    groups_per_step: Count = 16
    """Prompts with their answers of an update, over all processes; a prompt with several ordered pairs counts once, by their mean."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """What moves the parameters; `betas` are AdamW's alone."""
    warmup_share: Share = 0.0
    """Share of the updates over which the rate rises, where `warmup_steps` is 0."""
    max_length: Count = 2048
    """Longest conversation that is learnt from, in tokens; `read.overlong` says what becomes of longer ones."""
    read: Read = Read()
    """How preferences are read, and which of them; their `format` and `text` are the run's."""

    @property
    def section(self) -> str:
        """What recipes call it."""
        return "direct"

    @property
    def keeps_baseline(self) -> bool:
        """Whether a baseline answer's likelihood is in the loss."""
        return bool(self.eta or self.sft_weight)

    @property
    def name(self) -> str:
        """What reports call it."""
        form = f"{self.form}_length" if self.length_penalty else self.form
        return {"dpo": "rpo"}.get(form, f"{form}_rpo") if self.eta else f"{form}_sft" if self.sft_weight else form

    @property
    def weighted_name(self) -> str:
        """The name, and the weights of what is added to the loss."""
        added = {"η": self.eta, "α": self.length_penalty, "sft": self.sft_weight}
        return ", ".join([self.name, *(f"{name} {weight:g}" for name, weight in added.items() if weight)])

    def updates(self, groups: int) -> int:
        """Updates of a run on so many prompts with preferences."""
        return self.steps or max(1, int(self.epochs * groups / self.groups_per_step))

    def warmup(self, steps: int) -> int:
        """Updates over which the rate rises."""
        return self.warmup_steps or round(self.warmup_share * steps)


def check_direct(settings: DirectAlignment) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    refuse_ignored_margins(settings.read, key="direct.read")
    if settings.eta and settings.sft_weight:
        raise ConfigError(
            f"Got direct.eta={settings.eta} and direct.sft_weight={settings.sft_weight}, expected one of them: both keep the likelihood of "
            "the same answers, one by the sum over tokens times β, one by their mean, and it would count twice. Drop one."
        )
    if settings.baseline == "sampled" and not settings.keeps_baseline:
        raise ConfigError(
            "direct.baseline=sampled without a term of its likelihood, expected direct.eta or direct.sft_weight above 0: the samples would "
            "be drawn for nothing. Write direct.eta=0.005."
        )
    if settings.warmup_steps and settings.warmup_share:
        raise ConfigError(
            f"Got direct.warmup_steps={settings.warmup_steps} and direct.warmup_share={settings.warmup_share}, expected one of them: both "
            "say how long the rate rises. Drop one."
        )
    if settings.temperature != 1:
        raise ConfigError(
            f"direct.temperature={settings.temperature}, expected 1: the loss, the reference and the divergence are those of the policy as "
            "it is. Drop it."
        )
    for key in ("format", "text"):
        if getattr(settings.read, key) != getattr(Read(), key):
            raise ConfigError(
                f"direct.read.{key}={getattr(settings.read, key)}, expected it beside policy=: preferences and the prompts that are "
                f"judged come from the same rows. Write {key}={getattr(settings.read, key)}."
            )
    refuse_dropout(settings)


def preference_losses(settings: DirectAlignment, pairs: AnswerPairs, doubt_P: Tensor) -> Tensor:
    """The loss of each ordered pair, `(P,)`, without the baseline's term."""

    def form(chosen: Answers, rejected: Answers) -> Tensor:
        gap_P = gap_of(chosen, rejected)
        if settings.length_penalty:
            longer_P = chosen.length_P - rejected.length_P
            gap_P = without_length(gap_P, longer_P, alpha=settings.length_penalty, beta=settings.beta)
        return DIRECT_LOSSES[settings.form](gap_P, settings.beta)

    return doubted(form, pairs, doubt_P)


def baseline_losses(settings: DirectAlignment, log_prob_G: Tensor, length_G: Tensor) -> Tensor:
    """What the likelihood of baseline answers adds to the loss, one a given answer; it knows no reference.

    Args:
        settings: With one of both weights.
        log_prob_G: Log-probability of each answer under the policy, summed over its tokens.
        length_G: Its tokens.
    """
    if settings.eta:
        return settings.eta * settings.beta * chosen_likelihood(log_prob_G, beta=0.0, reduction="none")
    mean_G = log_prob_G / length_G.clamp_min(1)
    return settings.sft_weight * chosen_likelihood(mean_G, beta=0.0, reduction="none")


def optimizer_of(settings: DirectAlignment, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of what trains."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)
