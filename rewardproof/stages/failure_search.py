"""The search for a reward model's failures: whose variants are written, by which policies, and what is proved of them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Progress
from rewardproof.data import Group
from rewardproof.data.encoding import as_read, encode_prompt
from rewardproof.errors import ConfigError, ModelError
from rewardproof.evaluation.failures import (
    ANY,
    CLASSES,
    FATES,
    Class,
    Failure,
    Pairing,
    SearchedPair,
    Written,
    discovery_rates,
    failing,
    fresh,
    perplexity,
    preferences,
)
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.precision import Precision, default_device, resolve_precision, weights_dtype
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.guidance import Direction, Guidance
from rewardproof.policy.reward_guide import guided_answers, refuse_unguided
from rewardproof.policy.sampling import Answer, Sampling
from rewardproof.report import format_interval

SHOWN = 6
"""Failures that a report shows."""
DIRECTIONS: dict[Class, Direction] = {"preferred": "down", "non_preferred": "up"}


class Discovery(Guidance):
    """Which pairs are searched, by which policies, and what becomes of the failures."""

    aligned: str = ""
    """Policy that writes as preferred answers are: a language model with the reward model's vocabulary, aligned with the preferences."""
    flipped: str = ""
    """Policy that writes as non-preferred answers are, trained on flipped preferences."""
    classes: Literal["both", "preferred", "non_preferred"] = "both"
    """As which of a pair's answers variants are written."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of the pairs, those with the lowest Bradley–Terry loss, which are searched."""
    variants: Annotated[int, Field(ge=1)] = 1
    """Variants of each class for a pair; more than one with `form=released`, which draws."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Tokens after which a variant is cut."""
    max_rows: Annotated[int, Field(ge=1)] = 64
    """Variants written at once; both models keep keys and values of that many."""
    pairing: Pairing = "original"
    """What failures are paired with: the pair's own other answer, each other, or both."""

    @property
    def policies(self) -> dict[Class, str]:
        """The policy of each class that is written."""
        given: dict[Class, str] = {"preferred": self.aligned, "non_preferred": self.flipped}
        return {kind: spec for kind, spec in given.items() if self.classes in (kind, "both")}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        searched: The pairs.
        variants: What was written for them.
        failures: Those that are proved.
        counts: What became of the variants, by class.
    """

    searched: list[SearchedPair]
    variants: list[Written]
    failures: list[Failure]
    counts: dict[Class, dict[str, int]]

    def headline(self, *, seed: int = 0) -> str:
        """What the search came to, in a sentence without a full stop."""
        rate = discovery_rates(self.searched, self.failures, seed=seed)[ANY]
        return f"failures found for {format_interval(rate)} of the {len(self.searched)} pairs that the model is surest of"

    def summary(self, *, seed: int = 0) -> dict[str, Any]:
        """For `report.json`."""
        rates = discovery_rates(self.searched, self.failures, seed=seed)
        return {
            "searched_pairs": len(self.searched),
            "variants": self.counts,
            "failures": len(self.failures),
            "discovery_rate": {name: rates[name].as_dict() for name in (*self.counts, ANY)},
            "perplexity": {kind: perplexity([one for one in self.variants if one.kind == kind]) for kind in self.counts},
            "perplexity_of_failures": {
                kind: perplexity([one.written for one in self.failures if one.written.kind == kind]) for kind in self.counts
            },
            "widest": [one.as_dict() for one in sorted(self.failures, key=lambda one: -one.width)[:SHOWN]],
        }

    def preferences(self, pairing: Pairing) -> list[Group]:
        """The failures as preferences to train on."""
        return preferences(self.failures, pairing)


def check_discovery(config: Discovery, *, section: str = "") -> None:
    """Refuse what cannot find anything, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    if config.variants > 1 and config.form == "argmin":
        raise ConfigError(
            f"{section}variants={config.variants} with {section}form=argmin, expected 1: the rule is deterministic and writes the same "
            f"text again. Write {section}form=released to draw several, or drop variants."
        )
    if config.pairing != "original" and config.classes != "both":
        raise ConfigError(
            f"{section}pairing={config.pairing} with {section}classes={config.classes}, expected both classes: variants of one are paired "
            f"with those of the other. Drop {section}classes, or write {section}pairing=original."
        )
    for kind, spec in config.policies.items():
        name = "aligned" if kind == "preferred" else "flipped"
        if not spec:
            raise ConfigError(
                f"Missing {section}{name}=: expected a language model that writes {kind.replace('_', '-')} answers, since variants of a "
                f"class have to come from a policy of that class. Train one (rewardproof align dpo"
                f"{' … direct.read.label_noise=1' if name == 'flipped' else ''}), or write {section}classes={_other(kind)}."
            )


def _other(kind: Class) -> Class:
    return CLASSES[1 - CLASSES.index(kind)]


def find_failures(
    judge: RewardModel,
    pairs: Sequence[SearchedPair],
    config: Discovery,
    *,
    precision: Precision = "auto",
    seed: int = 0,
    progress: Progress,
) -> Found:
    """Write variants for pairs, class by class, and keep those that are failures on the whole text.

    Args:
        judge: The reward model, dense.
        pairs: The pairs that are searched.
        config: Policies and how they are guided.
        precision: Of the policies.
        seed: Of the draws.
        progress: Receives how far it is.

    Raises:
        ModelError: A model that cannot be searched with, or a policy with another vocabulary.
        ConfigError: More candidates than there are tokens.
    """
    variants: list[Written] = []
    loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
    for kind, spec in config.policies.items():
        if spec not in loaded:
            loaded.clear()
            gc.collect()
            loaded[spec] = _policy(spec, judge, config.top_k, precision)
        variants += _written(judge, loaded[spec], pairs, kind, config, name=spec, seed=seed, progress=progress)
    return _proved(judge, list(pairs), variants, list(config.policies))


def _policy(spec: str, judge: RewardModel, top_k: int, precision: Precision) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy and its tokenizer, whose tokens have to be the reward model's."""
    device = default_device()
    model, tokenizer = load_causal(spec, dtype=weights_dtype(resolve_precision(precision, device)))
    if tokenizer.get_vocab() != judge.tokenizer.get_vocab():
        raise ModelError(
            f"{spec} has another vocabulary than the reward model ({len(tokenizer)} and {len(judge.tokenizer)} tokens), expected the same: "
            "the reward model scores the policy's tokens one by one. Name a policy of the reward model's own base."
        )
    if top_k > len(tokenizer):
        raise ConfigError(
            f"top_k={top_k}: expected at most the {len(tokenizer)} tokens of the vocabulary of {spec}, since the reward decides between "
            "that many. Lower it."
        )
    return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]


def _written(
    judge: RewardModel,
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    pairs: Sequence[SearchedPair],
    kind: Class,
    config: Discovery,
    *,
    name: str,
    seed: int,
    progress: Progress,
) -> list[Written]:
    """Variants of one class."""
    model, tokenizer = policy
    prompts = [(encode_prompt(pair.group, tokenizer), encode_prompt(as_read(pair.group, judge.reads), judge.tokenizer)) for pair in pairs]
    longest = max(len(side) for both in prompts for side in both) + config.max_new_tokens + config.top_k
    refuse_unguided(judge.model, longest, what="reward model", name="the reward model")
    refuse_unguided(model, longest, what="policy", name=name)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, seed=seed, max_rows=config.max_rows)
    direction, found = DIRECTIONS[kind], dict[int, list[Answer]]()
    for place, answers in guided_answers(model, judge.model, prompts, config, direction, sampling=sampling, answers=config.variants):
        found[place] = answers
        progress(f"searching {kind.replace('_', '-')} answers", len(found), len(pairs))
    return [
        Written(pair, kind, _text(answer, tokenizer, raw=pair.group.raw), answer.logprob, len(answer.token_ids) + answer.finished)
        for place, pair in enumerate(pairs)
        for answer in found[place]
    ]


def _text(answer: Answer, tokenizer: PreTrainedTokenizerBase, *, raw: bool) -> str:
    text = str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True))
    return text if raw else text.strip()


def _proved(judge: RewardModel, pairs: list[SearchedPair], variants: list[Written], kinds: Sequence[Class]) -> Found:
    """Finished texts scored as any other answer is, and what is wrong with them."""
    candidates, counts = fresh(variants)
    encoded, _ = judge.encode([variant.judged() for variant in candidates], overlong="drop")
    read = {entry.index for entry in encoded}
    counts.update((variant.kind, "overlong") for place, variant in enumerate(candidates) if place not in read)
    failures, judged = failing([candidates[entry.index] for entry in encoded], judge.score_encoded(encoded))
    counts.update(judged)
    return Found(pairs, variants, failures, {kind: {fate: counts[kind, fate] for fate in FATES} for kind in kinds})
