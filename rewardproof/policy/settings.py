"""How a policy is optimised: what every way has, and the `optimise:` section of a recipe, on policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.config import Section
from rewardproof.errors import ConfigError
from rewardproof.losses import Aggregate
from rewardproof.policy.estimators import Estimator
from rewardproof.policy.kl_penalty import KLPenalty
from rewardproof.policy.redistribution import Redistribution, refuse_unsafe
from rewardproof.policy.sampling import Sampling

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Optimisation(Section):
    """What every way to optimise a policy has: its updates, what trains, and how answers are sampled."""

    steps: Annotated[int, Field(ge=0)] = 100
    """Updates of the run."""
    learning_rate: NotNegative = 1e-5
    """Of the policy."""
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """How the rates go over the run."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the rates rise to their values."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: NotNegative = 0.0
    """Of AdamW."""
    max_grad_norm: NotNegative = 1.0
    """Longest gradient; 0 for any."""
    layers: str = "all"
    """Layers of the policy that train: `all`, or `top:K`."""
    lora: dict[str, Any] = {}
    """Settings for peft's `LoraConfig`; empty trains the weights themselves."""
    max_new_tokens: Count = 64
    """Tokens after which an answer is cut."""
    temperature: Positive = 1.0
    """At which answers are sampled, and at which log-probabilities are meant."""
    rows: Count = 384
    """Answers sampled at once; bounds memory."""

    @property
    def section(self) -> str:
        """What recipes call it."""
        return "optimise"

    def sampling(self, seed: int) -> Sampling:
        """How answers are drawn."""
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed, max_rows=self.rows)


class OnPolicy(Optimisation):
    """One on-policy run: answers are sampled anew for each update."""

    estimator: Estimator = "rloo"
    """`ppo`: advantages against a learned value of every token; `rloo`: an answer against the mean of the others to its prompt; `grpo`: the
    same over the prompt's standard deviation."""
    prompts_per_step: Count = 16
    """Prompts of an update, over all processes."""
    answers: Count = 4
    """Answers sampled to each prompt."""
    epochs: Count = 1
    """Times that an update goes over its answers."""
    minibatches: Count = 1
    """Optimiser steps in each of them."""
    value_learning_rate: NotNegative = 1e-3
    """Of the value heads."""
    clip: Positive = 0.2
    """Width of the clipped ratio."""
    whole_answers: bool = False
    """One ratio for an answer instead of one a token."""
    aggregate: Aggregate = "token"
    """How tokens' losses become one: `token` weighs all tokens alike, `answer` all answers, `sum` adds an answer's tokens up."""
    kl: KLPenalty = KLPenalty()
    """What keeps the policy near its reference."""
    token_weight: NotNegative = 0.0
    """RLOO and GRPO: of a token's own reward, less the mean over its answer, beside the answer's whole one."""
    scaled: bool = True
    """GRPO: divide by the prompt's standard deviation."""
    scale_epsilon: Positive = 1e-4
    """GRPO: added to that standard deviation, in those of the initial policy's rewards: scores that saturate make groups without spread."""
    discount: Share = 1.0
    """PPO: of later rewards."""
    trace: Share = 0.95
    """PPO: the λ of the advantage estimates."""
    whiten: bool = True
    """PPO: advantages of a batch get mean 0 and standard deviation 1."""
    whiten_streams: bool = False
    """PPO: the same for each stream's own advantages, before they are weighed; its unit and its size then count for nothing."""
    value_clip: Positive = 0.2
    """PPO: how far values may move in an update, in rewards' units: their spread, or the scorer's with `constrained.units=own`."""
    value_coefficient: NotNegative = 0.1
    """PPO: weight of the values' loss."""
    penalty_value_coefficient: NotNegative = 0.1
    """PPO: the same for the values of the divergence, where it is a stream of rewards."""
    cut_penalty: NotNegative = 0.0
    """Taken from the (first) reward of an answer that was cut, in its standard deviations."""
    reward_limit: NotNegative = 0.0
    """Largest absolute reward, in its standard deviations; 0 for any."""
    redistribute: Redistribution = Redistribution()
    """Whether rewards are spread over an answer's tokens."""

    @property
    def penalised(self) -> bool:
        """Whether the divergence is a stream of rewards."""
        return self.kl.place == "reward" and self.kl.coefficient > 0

    def value_heads(self, streams: int) -> int:
        """Value heads that a policy needs for so many streams of rewards."""
        return streams + self.penalised if self.estimator == "ppo" else 0

    def value_coefficients(self, heads: int) -> tuple[float, ...]:
        """Weight of each value head's loss, the divergence's last."""
        own = max(0, heads - self.penalised)
        return (self.value_coefficient,) * own + (self.penalty_value_coefficient,) * (heads - own)


def check(settings: OnPolicy) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    if settings.estimator != "ppo" and settings.answers < 2:
        raise ConfigError(
            f"answers={settings.answers} with estimator={settings.estimator}: expected 2 or more, since it compares answers to one prompt; "
            "raise it, or take estimator=ppo."
        )
    if settings.whole_answers and settings.aggregate != "answer":
        raise ConfigError(
            f"aggregate={settings.aggregate} with one ratio for a whole answer, expected aggregate=answer: the ratio would count once a "
            "token, and long answers for more than they are; change one of them."
        )
    if settings.whole_answers and (settings.estimator == "ppo" or settings.token_weight):
        raise ConfigError(
            "whole_answers with advantages of single tokens (estimator=ppo, or token_weight), expected one ratio a token: with one for the "
            "whole answer, every token's advantage would move all tokens alike. Drop whole_answers."
        )
    if settings.estimator == "ppo" and settings.token_weight:
        raise ConfigError(
            f"token_weight={settings.token_weight:g} with estimator=ppo, expected 0: its advantages are those of tokens anyway, and "
            "nothing would read the weight. Drop it; redistribute.share says how much of a reward is the tokens'."
        )
    if settings.kl.place == "loss" and settings.kl.estimate == "k1":
        raise ConfigError(
            "kl.estimate=k1 in the loss, expected k2 or k3: on fresh samples the gradient of k1 is 0 on average: noise, and no penalty. "
            "Write kl.estimate=k2, or kl.place=reward."
        )
    refuse_unsafe(settings.redistribute, estimator=settings.estimator, discount=settings.discount)
    if settings.kl.target and not settings.kl.coefficient:
        raise ConfigError("kl.target with kl.coefficient=0, expected a weight above 0 to steer; write kl.coefficient=0.05.")
    refuse_dropout(settings)


def refuse_dropout(settings: Optimisation) -> None:
    """Refuse adapters that drop out.

    Raises:
        ConfigError: Names the key.
    """
    if settings.lora.get("lora_dropout"):
        raise ConfigError(
            f"lora.lora_dropout={settings.lora['lora_dropout']}, expected none: with dropout a policy is not the one that "
            "is sampled from and compared with its reference. Drop it."
        )
