"""How a policy is optimised: the `optimise:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.config import Section
from rewardproof.losses import Aggregate
from rewardproof.policy.estimators import Estimator
from rewardproof.policy.kl_penalty import KLPenalty

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class OnPolicy(Section):
    """One on-policy run."""

    estimator: Estimator = "rloo"
    """`ppo`: advantages against a learned value of every token; `rloo`: an answer against the mean of the others to its prompt; `grpo`: the
    same over the prompt's standard deviation."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Updates: answers are sampled anew for each."""
    prompts_per_step: Count = 16
    """Prompts of an update, over all processes."""
    answers: Count = 4
    """Answers sampled to each prompt."""
    epochs: Count = 1
    """Times that an update goes over its answers."""
    minibatches: Count = 1
    """Optimiser steps in each of them."""
    learning_rate: NotNegative = 1e-5
    """Of the policy."""
    value_learning_rate: NotNegative = 1e-3
    """Of the value heads."""
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
    clip: Positive = 0.2
    """Width of the clipped ratio."""
    whole_answers: bool = False
    """One ratio for an answer instead of one a token."""
    aggregate: Aggregate = "token"
    """How tokens' losses become one: `token` weighs all tokens alike, `answer` all answers, `sum` adds an answer's tokens up."""
    kl: KLPenalty = KLPenalty()
    """What keeps the policy near its reference."""
    scaled: bool = True
    """GRPO: divide by the prompt's standard deviation."""
    discount: Share = 1.0
    """PPO: of later rewards."""
    trace: Share = 0.95
    """PPO: the λ of the advantage estimates."""
    whiten: bool = True
    """PPO: advantages of a batch get mean 0 and standard deviation 1."""
    value_clip: Positive = 0.2
    """PPO: how far values may move in an update, in standard deviations of the reward."""
    value_coefficient: NotNegative = 0.1
    """PPO: weight of the values' loss."""
    max_new_tokens: Count = 64
    """Tokens after which an answer is cut."""
    temperature: Positive = 1.0
    """At which answers are sampled, and at which log-probabilities are meant."""
    cut_penalty: NotNegative = 0.0
    """Taken from the reward of an answer that was cut, in standard deviations of the reward."""
    reward_limit: NotNegative = 0.0
    """Largest absolute reward, in its standard deviations; 0 for any."""
    layers: str = "all"
    """Layers of the policy that train: `all`, or `top:K`."""
    lora: dict[str, Any] = {}
    """Settings for peft's `LoraConfig`; empty trains the weights themselves."""

    @property
    def penalised(self) -> bool:
        """Whether the divergence is a stream of rewards."""
        return self.kl.place == "reward" and self.kl.coefficient > 0

    def value_heads(self, streams: int) -> int:
        """Value heads that a policy needs for so many streams of rewards."""
        return streams + self.penalised if self.estimator == "ppo" else 0
