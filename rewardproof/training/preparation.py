"""From sources to training sets: read, split by prompt, add label noise, order pairs, tokenise; every row that falls away is counted."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rewardproof.config import Range, Section, Strings
from rewardproof.data import (
    Group,
    Pair,
    ReadCounts,
    Scenarios,
    StrengthTreatment,
    Treated,
    cut_scenarios,
    merge_single_answers,
    ordered_pairs,
    prompt_overlap,
    read_groups,
    split_by_prompt,
    split_key,
    split_position,
    split_salt,
    strengths_of,
    with_label_noise,
    without_prompts_of,
)
from rewardproof.data.checks import Purpose
from rewardproof.data.encoding import EncodedGroup, Overlong, Reads, as_read, encode_groups, with_queries
from rewardproof.data.references import labelled, with_references
from rewardproof.data.rules import Rule, checker_of
from rewardproof.errors import ConfigError, DataError
from rewardproof.training.batches import TrainingGroup, TrainingSet, keep_paired

log = logging.getLogger(__name__)


class Read(Section):
    """How preference data is read."""

    format: str = "auto"
    """Name of the row format, or `auto` to detect it from each file's first row."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "fail"
    """At a bad row: stop and name it; drop and count rows that are readable but no preference (ties, empty or equal answers, two turns
    in a row) and stop at damaged ones; or drop and count all."""
    overlong: Overlong = "fail"
    """What happens at a conversation longer than `max_length`: stop, drop the group, or shorten its prompt from the beginning."""
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a training preference is flipped; the same pairs flip whatever the training seed."""
    noise_seed: int = 0
    """Seed of the flips."""
    strength: StrengthTreatment = StrengthTreatment()
    """What the preference strength of training rows does to their labels and margins; of the noisy label where there is label noise."""
    pairs_per_group: Annotated[int, Field(ge=0)] = 0
    """At most so many ordered pairs a training group, chosen by a hash of the texts; 0 takes all."""
    share: Range = (0.0, 1.0)
    """Range of training prompts taken at all, by a hash of their text in [0, 1): disjoint ranges keep a search apart from its study."""
    max_groups: Annotated[int, Field(ge=0)] = 0
    """At most so many training groups, chosen by a hash of the texts; 0 takes all."""
    max_held_out: Annotated[int, Field(ge=0)] = 0
    """At most so many held-out groups, chosen alike; 0 takes all."""


def refuse_ignored_margins(read: Read, *, key: str, advice: str = "") -> None:
    """Refuse a treatment by strength that sets margins, where the loss reads none.

    Args:
        read: How rows are read.
        key: What the settings call it.
        advice: What else could be done, up to `or`.

    Raises:
        ConfigError: Names the key.
    """
    if read.strength.margins:
        raise ConfigError(
            f"{key}.strength.treatment={read.strength.treatment} where the loss reads no margins: those that it sets would be ignored; "
            f"{advice}take a treatment without margins."
        )


@dataclass(slots=True)
class Prepared:
    """Training data, ready.

    Attributes:
        train: What the model trains on.
        merge_fit: Kept from the experts, for learning merge coefficients; empty where nothing is learned.
        merge_stop: Kept from both, for stopping that in time.
        held_out: Groups for evaluation, as text; those that fit the length limit.
        held_out_tokens: The same groups, encoded.
        held_out_set: The same as ordered pairs in tokens, for the accuracy during training.
        training: The training groups as text; what an encoded training group's `index` points into.
        training_tokens: Those that fit the length limit, encoded with all their answers.
        rows: Counts for the report.
        validation: What a setting of the finished model is chosen on; empty where nothing is chosen.
    """

    train: TrainingSet
    merge_fit: TrainingSet
    merge_stop: TrainingSet
    held_out: tuple[Group, ...]
    held_out_tokens: tuple[EncodedGroup, ...]
    held_out_set: TrainingSet
    training: tuple[Group, ...] = ()
    training_tokens: tuple[EncodedGroup, ...] = ()
    rows: dict[str, Any] = field(default_factory=dict)
    validation: TrainingSet = field(default_factory=lambda: TrainingSet([]))

    @property
    def held_out_has_order(self) -> bool:
        """Whether the data orders any two held-out answers; a rule may certify all answers to a prompt alike."""
        return any(len(set(group.scores or ())) > 1 for group in self.held_out)


@dataclass(frozen=True, slots=True)
class Validate:
    """What a setting of the finished model is to be chosen on: no prompt of it is trained on, and none is among the evaluation data.

    Attributes:
        data: Sources; where none is given a fraction of the training prompts is kept.
        held_out: That fraction.
        categories: Only groups of these categories; empty takes all.
        key: What the settings call it, for messages.
    """

    data: Strings
    held_out: float
    categories: Strings
    key: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What to prepare.

    Attributes:
        data: Training sources.
        eval_data: Evaluation sources; where none is given a fraction of the training prompts is held out.
        split: That fraction.
        merge_held_out: Fraction of the remaining prompts kept for the merge coefficients.
        read: How rows are read.
        max_length: Longest conversation, in tokens.
        split_seed: Which of the possible splits.
        validate: What to choose a setting of the finished model on, or nothing.
        scenarios: How the data is cut by the answers' sources as well; held-out prompts then keep the answers of seen sources.
        reads: How much of a conversation is encoded.
        queries: Whether encoded groups also hold what the user said alone.
        rule: Labels the answers right or wrong, in place of what the data prefers; nothing where it is the data's preferences that count.
    """

    data: Strings
    eval_data: Strings
    split: float
    merge_held_out: float
    read: Read
    max_length: int
    split_seed: int = 0
    validate: Validate | None = None
    scenarios: Scenarios | None = None
    reads: Reads = "conversation"
    queries: bool = False
    rule: Rule | None = None


def prepare(sources: Sources, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Read, split and tokenise.

    Raises:
        DataError: A bad or over-long row under `fail`, or no ordered pair is left.
    """
    read = sources.read
    rows: dict[str, Any] = {}
    groups = _read_named(sources, sources.data, "train_sources", rows)
    low, high = read.share
    if (low, high) != (0.0, 1.0):
        inside = tuple(group for group in groups if low <= split_position(group, "share") < high)
        rows["left_out_by_share"] = len(groups) - len(inside)
        groups = inside
    if sources.scenarios is not None:
        cut = cut_scenarios(groups, sources.scenarios, fraction=sources.split, salt=split_salt(sources.split_seed))
        rows["scenarios"] = cut.counts
        training, held_out = list(cut.train), cut.prompt_disjoint
    elif sources.eval_data:
        held_out = _read_named(sources, sources.eval_data, "eval_sources", rows)
        training = list(groups)
    else:
        kept, held = split_by_prompt(groups, fraction=sources.split, salt=split_salt(sources.split_seed))
        training, held_out = list(kept), tuple(held)
    rows["prompts_shared_by_train_and_eval"] = prompt_overlap(training, held_out)
    if rows["prompts_shared_by_train_and_eval"]:
        log.warning("%s prompts are in both the training and the evaluation data", rows["prompts_shared_by_train_and_eval"])
    for name, limit, groups in (("max_groups", read.max_groups, training), ("max_held_out", read.max_held_out, held_out)):
        if limit and len(groups) > limit:
            rows[f"left_out_by_{name}"] = len(groups) - limit
    training, held_out = _some(training, read.max_groups), tuple(_some(held_out, read.max_held_out))
    training, validating = _kept_for_validation(sources, training, held_out, rows)
    treated = _treated(training, read)
    training, merging = split_by_prompt(training, fraction=sources.merge_held_out, salt=split_salt(sources.split_seed, "merge"))
    fit_groups, stop_groups = split_by_prompt(merging, fraction=0.4, salt=split_salt(sources.split_seed, "merge-stop"))
    falls: Counter[str] = Counter()
    tokens = _Tokens(tokenizer, sources, falls, treated)
    training_tokens = tokens.encoded(training)
    sets = {
        "train": tokens.ordered(training, training_tokens, noisy=True),
        "merge_fit": tokens.ordered(fit_groups, tokens.encoded(fit_groups), noisy=True),
        "merge_stop": tokens.ordered(stop_groups, tokens.encoded(stop_groups), noisy=True),
    }
    if sources.validate:  # rows from elsewhere have labels of their own, which get no noise
        sets["validation"] = tokens.ordered(validating, tokens.encoded(validating), noisy=not sources.validate.data)
        _refuse_without_order([sources.validate.key], validating, sets["validation"])
    held_out_tokens = tokens.encoded(held_out)
    sets["held_out_set"] = tokens.ordered(held_out, held_out_tokens, noisy=False)
    _refuse_without_order(sources.data, training, sets["train"])
    if held_out:
        _refuse_without_order(sources.eval_data or sources.data, held_out, sets["held_out_set"])
    if sources.merge_held_out and not (len(sets["merge_fit"]) and len(sets["merge_stop"])):
        raise DataError(
            f"{', '.join(sources.data)}: merge.held_out={sources.merge_held_out} of {len(training) + len(merging)} training groups leaves "
            f"{len(sets['merge_fit'])} to learn the coefficients on and {len(sets['merge_stop'])} to stop them by, expected at least one "
            "each; raise merge.held_out, or write merge.method=routing_mass, which learns nothing."
        )
    rows |= {name: len(found) for name, found in sets.items()} | {"fell_away": dict(falls), "label_noise": read.label_noise}
    rows |= {"strength": treated.summary()} if treated else {}
    kept_groups = tuple(held_out[entry.index] for entry in held_out_tokens)
    return Prepared(
        **sets,
        held_out=kept_groups,
        held_out_tokens=tuple(held_out_tokens),
        training=tuple(training),
        training_tokens=tuple(training_tokens),
        rows=rows,
    )


def _kept_for_validation(
    sources: Sources, training: list[Group], held_out: Sequence[Group], rows: dict[str, Any]
) -> tuple[list[Group], list[Group]]:
    """What is left to train on, and what a setting is chosen on."""
    wanted = sources.validate
    if wanted is None:
        return training, []
    candidates: Sequence[Group] = training
    if wanted.data:
        candidates, counts = _read(wanted.data, sources.read)
        apart = without_prompts_of(candidates, [*training, *held_out])
        rows["validation_sources"] = _counts(counts) | {"of_prompts_in_train_or_eval": len(candidates) - len(apart)}
        candidates = apart
    inside = [group for group in candidates if not wanted.categories or group.category in wanted.categories]
    if not inside:
        known = ", ".join(sorted({group.category for group in candidates if group.category})) or "none"
        raise DataError(
            f"{wanted.key}: none of {len(candidates)} groups to choose on has a category of {', '.join(wanted.categories) or 'any kind'}, "
            f"expected some; the categories there are: {known}. Correct the categories, or name validation data with other prompts than "
            "training and evaluation have."
        )
    if wanted.data:
        return training, inside
    chosen = split_by_prompt(inside, fraction=wanted.held_out, salt=split_salt(sources.split_seed, "validation"))[1]
    if not chosen or len(chosen) == len(training):
        raise DataError(
            f"{wanted.key}={wanted.held_out} of {len(inside)} groups keeps {len(chosen)} to choose on and leaves "
            f"{len(training) - len(chosen)} to train on, expected at least one each; change it, or name validation data."
        )
    return without_prompts_of(training, chosen), chosen


def _refuse_without_order(names: Sequence[str], groups: Sequence[Group], found: TrainingSet) -> None:
    if not len(found):
        raise DataError(
            f"{', '.join(names)}: {len(groups)} groups but no two answers that the data orders, expected pairs or scores; "
            "check the format (read.format=), and that scores differ."
        )


def _read_named(sources: Sources, names: Sequence[str], name: str, rows: dict[str, Any]) -> tuple[Group, ...]:
    """Groups of the named sources, labelled where there is a rule; what became of their rows is written into `rows`."""
    groups, counts = _read(names, sources.read, purpose="train" if sources.rule is None else "score")
    rows[name] = _counts(counts)
    if sources.rule is None:
        return groups
    checker = checker_of(sources.rule)
    found = with_references(groups, sources.rule, checker)
    told = labelled(found.groups, checker)
    rows[name] |= {"rule": dict(found.counts + told.counts)}
    if not told.groups:
        raise DataError(
            f"{', '.join(names)}: the rule {sources.rule.name} certifies none of the answers to {len(groups)} prompts, expected some right "
            f"and some wrong ones ({dict(found.counts + told.counts)}); a verifier learns nothing without. Name another rule, or data with "
            "references."
        )
    return tuple(told.groups)


def _read(names: Sequence[str], read: Read, *, purpose: Purpose = "train") -> tuple[tuple[Group, ...], ReadCounts]:
    found = read_groups(names, format=read.format, on_bad=read.on_bad, purpose=purpose, text=read.text)
    if found.counts.dropped:
        log.warning("%s: %s", ", ".join(names), found.counts.sentence())
    return tuple(merge_single_answers(found.groups)), found.counts


def _some(groups: Sequence[Group], limit: int) -> list[Group]:
    """At most so many groups by a hash of their texts, of as many prompts as there are, order kept; all where the limit is 0."""
    if not limit or len(groups) <= limit:
        return list(groups)
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for index in sorted(range(len(groups)), key=lambda index: _text_order(groups[index])):
        turns.append((seen[groups[index].prompt_key], index))
        seen[groups[index].prompt_key] += 1
    # A stable sort: every prompt's first group, then every prompt's second, each in the order of the hash.
    chosen = {index for _, index in sorted(turns, key=lambda turn: turn[0])[:limit]}
    return [group for index, group in enumerate(groups) if index in chosen]


def _text_order(group: Group) -> tuple[str, str]:
    """By a hash of the prompt; groups of one prompt, or of none, by a hash of their answers."""
    return group.prompt_key, hashlib.sha256(repr(sorted(group.answer_texts)).encode()).hexdigest()


def _counts(counts: ReadCounts) -> dict[str, Any]:
    return {"read": counts.read, "used": counts.used, "dropped": dict(counts.bad)}


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Groups to tokens and pairs under one set of rules; what falls away is counted in `falls`."""

    tokenizer: PreTrainedTokenizerBase
    sources: Sources
    falls: Counter[str]
    treated: Treated | None

    def encoded(self, groups: Sequence[Group]) -> list[EncodedGroup]:
        read = [as_read(group, self.sources.reads) for group in groups]
        encoded, counts = encode_groups(read, self.tokenizer, max_length=self.sources.max_length, overlong=self.sources.read.overlong)
        self.falls.update(counts)
        return with_queries(groups, encoded, self.tokenizer) if self.sources.queries else encoded

    def ordered(self, groups: Sequence[Group], encoded: Sequence[EncodedGroup], *, noisy: bool) -> TrainingSet:
        if self.sources.rule is not None:
            return TrainingSet([self._labelled(groups[entry.index], entry) for entry in encoded])
        read = self.sources.read
        kept = []
        for entry in encoded:
            group = groups[entry.index]
            pairs = ordered_pairs(group, limit=read.pairs_per_group)
            if not pairs:
                self.falls["without_an_order"] += 1
                continue
            if noisy and read.label_noise:
                flipped = with_label_noise(group, pairs, rate=read.label_noise, seed=read.noise_seed)
                self.falls["flipped_pairs"] += sum(before.winner != after.winner for before, after in zip(pairs, flipped, strict=True))
                pairs = flipped
            if noisy and self.treated:
                pairs = self.treated.pairs(pairs, strengths_of(group, pairs))
            kept.append(keep_paired(entry, pairs, key=split_key(group)))
        return TrainingSet(kept)

    def _labelled(self, group: Group, entry: EncodedGroup) -> TrainingGroup:
        """All answers with their labels; their pairs, where there are any, are counted and not learned from."""
        pairs = ordered_pairs(group, limit=self.sources.read.pairs_per_group)
        return TrainingGroup(replace(entry, labels=group.scores or ()), pairs, split_key(group))


def noisy_pairs(group: Group, read: Read) -> tuple[Pair, ...]:
    """A training group's ordered pairs, under the settings' limit and label noise."""
    return with_label_noise(group, ordered_pairs(group, limit=read.pairs_per_group), rate=read.label_noise, seed=read.noise_seed)


def _treated(training: Sequence[Group], read: Read) -> Treated | None:
    """The treatment by strength, its cuts and unit those of all training pairs; nothing where there is none."""
    if read.strength.treatment == "none":
        return None
    pairs = ((group, noisy_pairs(group, read)) for group in training)
    strengths = [strength for group, found in pairs if found for strength in strengths_of(group, found)]
    return Treated.measured(read.strength, strengths) if strengths else None
