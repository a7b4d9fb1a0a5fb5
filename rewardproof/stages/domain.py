"""DogeRM as a step: a reward model merged with the language model of a domain, λ given or chosen by accuracy on validation preferences.

Reference:
    Lin et al., DogeRM, arXiv:2407.01470.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Progress
from rewardproof.config import Floats, Section, Strings
from rewardproof.errors import ConfigError
from rewardproof.merging.domain import Matching, Shares, Tokens, likeness, match_entries, match_tokens, merged_entries, shares
from rewardproof.models.domain_model import DomainModel, domain_structure, load_domain_model, name_of, other_settings
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import layers_in_common
from rewardproof.stages.domain_choice import judge
from rewardproof.training.batches import TrainingSet
from rewardproof.training.fit import Compute
from rewardproof.training.preparation import Validate
from rewardproof.training.processes import agreed

SWEEP = tuple(number / 20 for number in range(21))
"""0 to 1 in steps of 0.05, as published."""
UNLIKE = 0.5
"""Cosine of two models' weights below which they are no fine-tunings of one base."""
log = logging.getLogger(__name__)


class Domain(Section):
    """The language model of a domain that a trained reward model is averaged with (DogeRM)."""

    model: str = ""
    """The language model, fine-tuned on the domain from the base of the reward model: a directory or a hub id. It has to be given."""
    weight: Annotated[float, Field(ge=0, le=1)] | Literal["choose"] = "choose"
    """Its weight λ, or `choose`: that of `weights` with the highest accuracy on validation preferences, the smaller of equals."""
    weights: Floats = SWEEP
    """What `choose` tries."""
    reward_weight: Annotated[float, Field(ge=0)] | Literal["rest"] = "rest"
    """Weight of the reward model: the `rest`, 1 − λ, or a number that does not depend on λ."""
    data: Strings = ()
    """Validation preferences of the domain. Without them `choose` keeps `held_out` of the training prompts for that."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the training prompts kept for validation: neither trained on nor among the evaluation data."""
    categories: Strings = ()
    """Validate on the groups of these categories alone, the domain's own; empty takes all."""

    @property
    def validate_on(self) -> Validate | None:
        """What λ is chosen on; nothing where it is given and no data beside it."""
        if self.weight != "choose" and not self.data:
            return None
        return Validate(self.data, self.held_out, self.categories, "domain.data" if self.data else "domain.held_out")


def check_domain(settings: Domain) -> None:
    """Refuse settings that cannot mean anything, and warn of a weight chosen off the domain, before any work is done.

    Raises:
        ConfigError: Names the key.
    """
    if not settings.model:
        raise ConfigError(
            "Missing domain.model: a language model fine-tuned on the domain is what the reward model is merged with, and none is the "
            "default; give its directory or hub id as domain.model=…"
        )
    wrong = [weight for weight in settings.weights if not 0 <= weight <= 1]
    if wrong or not settings.weights or len(set(settings.weights)) < len(settings.weights):
        raise ConfigError(
            f"Got weights={','.join(map(str, settings.weights))}, expected one or more different numbers from 0 (the reward model alone) "
            "to 1: each is a merge to try; correct them."
        )
    if settings.weight != "choose" and settings.weights != SWEEP:
        raise ConfigError(
            f"Got weight={settings.weight} and weights={','.join(map(str, settings.weights))}, expected one of them: a weight that is "
            "given is not chosen. Drop one."
        )
    if settings.weight == "choose" and not (settings.data or settings.categories):
        log.warning(
            "domain.weight=choose without domain.data or domain.categories: the weight is chosen on preferences of all kinds, which may "
            "leave the domain out; name the domain's own"
        )


def require_one_base(model: PreTrainedModel, spec: str) -> None:
    """Refuse, before any training, a language model that the trained reward model could not be merged with.

    Raises:
        CheckpointError: It does not exist.
        ModelError: It is a reward model, or of another architecture than `model`.
    """
    _matching(model, domain_structure(spec))


@dataclass(frozen=True, slots=True)
class DomainMerge:
    """A reward model and a language model, entry matched with entry, and the model that their blends are written into.

    Attributes:
        reward: The reward model.
        domain: The language model.
        blended: Holds the last blend written; the reward model itself where only one is made.
        matching: Which entries belong together.
        tokens: Which rows of the embeddings belong together.
        differing: Settings in which the models differ and the reward model's are kept.
        likeness: How alike their weights were before anything was written.
    """

    reward: PreTrainedModel
    domain: DomainModel
    blended: PreTrainedModel
    matching: Matching
    tokens: Tokens
    differing: dict[str, tuple[Any, Any]]
    likeness: dict[str, float]

    def write(self, weights: Shares) -> None:
        """Make `blended` the merge with these weights."""
        target = self.blended.state_dict()
        with torch.no_grad():
            for name, tensor in merged_entries(self.reward.state_dict(), self.domain.state, self.matching, self.tokens, weights):
                target[name].copy_(tensor)


def matched(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: str, *, several: bool, add_tokens: bool = False
) -> DomainMerge:
    """Load a language model and match it with a reward model.

    Args:
        model: The reward model, dense.
        tokenizer: Its tokenizer; given the language model's own tokens where `add_tokens` asks for that.
        spec: The language model.
        several: Whether several blends will be written, for which the reward model has to be kept; else it becomes the one blend.
        add_tokens: Take up tokens that only the language model has; they are left out otherwise.

    Raises:
        ModelError: The two are not of one base: entries, shapes or settings differ, or no token is in both.
    """
    domain = load_domain_model(spec)
    differing, matching = _matching(model, domain)
    own, theirs = tokenizer.get_vocab(), domain.vocabulary
    rows = len(model.state_dict()[matching.embedding]), len(domain.state[matching.pairs[matching.embedding]])
    new = {token: row for token, row in theirs.items() if token not in own and row < rows[1]} if add_tokens else {}
    if new:
        tokenizer.add_tokens(domain.added_tokens(new))  # pyright: ignore[reportArgumentType]
    grown = tokenizer.get_vocab()
    tokens = match_tokens(own, theirs, n_rows=rows, added={token: grown[token] for token in new})
    alike = likeness(model.state_dict(), domain.state, matching, tokens)
    if alike.cosine < UNLIKE:
        log.warning(
            "%s: the cosine of its weights and the reward model's is %.2f; fine-tunings of one base are near 1, and the average of others "
            "is noise",
            spec,
            alike.cosine,
        )
    blended = copy.deepcopy(model) if several else model
    if tokens.n_rows > rows[0]:
        blended.resize_token_embeddings(tokens.n_rows, mean_resizing=False)
    told = {name: round(value, 9) for name, value in alike._asdict().items()}  # the last digits are the order in which torch added up
    return DomainMerge(model, domain, blended, matching, tokens, differing, told)


def _matching(model: PreTrainedModel, domain: DomainModel) -> tuple[dict[str, tuple[Any, Any]], Matching]:
    differing = other_settings(model.config, domain.config)
    embedding = f"{name_of(model, model.get_input_embeddings())}.weight"
    return differing, match_entries(model.state_dict(), domain.state, head="score", lm_head=domain.lm_head, embedding=embedding)


@dataclass(frozen=True, slots=True)
class Merged:
    """A reward model merged with its domain's language model.

    Attributes:
        model: The merged model.
        summary: Weights, curve, and what became of every entry and token, for the report.
        rewards: Its rewards of the validation answers; empty without validation.
    """

    model: PreTrainedModel
    summary: dict[str, Any]
    rewards: list[tuple[float, ...]]


def merge_with_domain(
    merge: DomainMerge,
    settings: Domain,
    *,
    validation: TrainingSet,
    tokenizer: PreTrainedTokenizerBase,
    compute: Compute,
    progress: Progress,
) -> Merged:
    """Write the blend with the weight that is given, or with the best of those to try.

    Args:
        merge: The two models, matched.
        settings: Which weights.
        validation: Preferences that decide; may be empty where the weight is given.
        tokenizer: The reward model's.
        compute: Precision and budgets.
        progress: Receives progress.
    """
    tried = settings.weights if settings.weight == "choose" else (settings.weight,)
    own = None if settings.reward_weight == "rest" else settings.reward_weight
    blends = [shares(weight, own) for weight in tried]
    judged = judge(blends, merge.write, _scorer(merge, tokenizer, compute), validation, progress) if len(validation) else None
    best = agreed(judged.best) if judged else 0  # processes may differ in a last bit, and must not deliver different models
    weights = blends[best]
    merge.write(weights)
    summary = {
        "model": merge.domain.spec,
        "weight": weights.domain,
        "reward_weight": weights.reward,
        "chosen": settings.weight == "choose",
        "validation": judged.summary(best) if judged else None,
        "averaged": len(merge.matching.pairs),
        "kept": merge.matching.kept,
        "dropped": merge.matching.dropped,
        "tokens": merge.tokens.counts,
        "differing": merge.differing,
        "likeness": merge.likeness,
    }
    return Merged(merge.blended, summary, judged.rewards[best] if judged else [])


def _scorer(merge: DomainMerge, tokenizer: PreTrainedTokenizerBase, compute: Compute) -> RewardModel:
    """The blended model ready to score; layers in which the two models are equal run once, whatever the weights."""
    assert merge.blended is not merge.reward, "a blend that is judged is not the only one: the reward model has to be kept"
    scorer = RewardModel(
        merge.blended, tokenizer, precision=compute.precision, tokens_per_batch=compute.tokens_per_batch, backend=compute.attention
    )
    merge.write(shares(1.0))
    return scorer.share_trunk(layers_in_common([merge.reward, merge.blended]), limit_gb=compute.trunk_cache_gb)
