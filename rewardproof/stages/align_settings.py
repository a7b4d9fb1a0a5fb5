"""How often a policy run is judged, and how its work is laid on the machine: the `evaluate:` and `compute:` sections of its recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewardproof.config import Section
from rewardproof.models.precision import Precision


class Evaluations(Section):
    """How often, and on how much, the policy is judged."""

    every: Annotated[int, Field(ge=1)] = 10
    """Updates between two evaluations; the first is before any, the last after all."""
    prompts: Annotated[int, Field(ge=2)] = 32
    """Prompts, chosen by a hash of their text."""
    answers: Annotated[int, Field(ge=1)] = 4
    """Answers to each."""
    exact: bool = True
    """Measure the divergence over the whole vocabulary at every token of an answer: the same mean as the log-ratio of the answer, with far
    less noise, for one more pass of the heads."""
    states: bool = False
    """Keep the mean of the policy's final hidden states over each answer, and compare hacked answers with normal ones by them."""


class PolicyCompute(Section):
    """How the work is laid on the machine."""

    precision: Precision = "auto"
    """Of the policy's passes and of the reward models."""
    tokens_per_batch: Annotated[int, Field(ge=1)] = 4096
    """Token budget of one pass of the policy."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the saved weights."""
    save_every: Annotated[int, Field(ge=1)] = 20
    """Updates between two checkpoints."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """With `direct`: disk for the activations of frozen layers on the preferences; 0 runs the frozen layers at every step."""
