"""A training run that corrects its reward model (REFORM): train, search it for failures, train again with them among the data.

Reference:
    REFORM, arXiv:2507.06419.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress
from rewardproof.data import Group, ordered_pairs, split_key
from rewardproof.data.encoding import encode_groups
from rewardproof.errors import ConfigError
from rewardproof.evaluation import pair_accuracy
from rewardproof.evaluation.audit import make_case
from rewardproof.evaluation.failures import SearchedPair, lowest_losses
from rewardproof.evaluation.robustness import SUITES, Outcomes, compared, outcomes
from rewardproof.models.checkpoints import causal_config
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import Section, Table, format_gain, format_interval
from rewardproof.stages.audit_scoring import measure_of, scored_cases
from rewardproof.stages.failure_search import Discovery, Found, check_discovery, find_failures
from rewardproof.stages.member_context import Member, MemberContext
from rewardproof.stages.members import train_member
from rewardproof.stages.search import write_failures
from rewardproof.stages.search_page import search_sections
from rewardproof.stages.training_report import scored
from rewardproof.statistics import Interval
from rewardproof.training.batches import TrainingSet, keep_paired
from rewardproof.training.preparation import Prepared
from rewardproof.training.processes import wait

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

log = logging.getLogger(__name__)


class Reform(Discovery):
    """How a reward model is corrected by its own failures."""

    retrain: Literal["from_start", "fine_tune"] = "from_start"
    """`from_start` trains a second model on data and failures as the first was trained; `fine_tune` goes on with the first."""
    perturbed: Annotated[int, Field(ge=0)] = 200
    """Held-out prompts whose answers are perturbed to measure robustness before and after, the first by a hash of their text."""


def check_reform(config: Train) -> None:
    """Refuse what a correction cannot be combined with, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    reform = config.reform
    if reform is None:
        return
    others = {
        "rule": config.rule is not None,
        "capabilities": config.capabilities is not None,
        "ensemble": config.ensemble is not None,
        "members": config.members != 1,
        "reuse": bool(config.reuse),
        "upcycle and no merge": config.upcycle is not None and config.merge is None,
    }
    if found := [name for name, there in others.items() if there]:
        raise ConfigError(
            f"Got `reform` with {', '.join(found)}, expected a recipe that trains one dense model by preferences: it is searched for "
            "failures and trained again. Drop one of them, or search the finished models (rewardproof search)."
        )
    if reform.retrain == "fine_tune" and (config.upcycle is not None or config.factors is not None):
        raise ConfigError(
            "Got reform.retrain=fine_tune with `upcycle` or `factors`, expected a dense model with a linear head to go on with: the others "
            "start anew. Write reform.retrain=from_start."
        )
    settings = _settings(config, reform)
    check_discovery(settings, section="reform.")
    for spec in filter(None, (reform.aligned, reform.flipped)):
        causal_config(spec)


def _settings(config: Train, reform: Reform) -> Reform:
    """With the language model that training starts from in the place of policies that are not given."""
    return reform.model_copy(update={"aligned": reform.aligned or config.model, "flipped": reform.flipped or config.model})


def train_corrected(context: MemberContext) -> Member:
    """Train a model, find failures of it, train the corrected one; both are kept in `OUT/members`, the failures in `OUT/failures.jsonl`.

    Returns:
        The corrected model, with the search and both models' robustness in its summary.
    """
    config = context.config
    assert config.reform is not None
    settings = _settings(config, config.reform)
    for name in ("aligned", "flipped"):
        if not getattr(config.reform, name):
            log.warning("reform.%s is not given: the language model that training starts from writes in its place, of no class", name)
    context = replace(context, config=config.model_copy(update={"members": 2}))
    found, before, pairs = _searched(_named(context, "first model"), settings)
    write_failures(context.directory, found, settings)
    prepared, counts = _augmented(context, found.preferences(settings.pairing))
    second = replace(_named(context, "corrected model"), prepared=prepared)
    if settings.retrain == "fine_tune":
        first = str(context.folder(0) / "model")
        head = config.head.model_copy(update={"init": "keep"})
        second = replace(second, config=second.config.model_copy(update={"model": first, "head": head}))
    member = train_member(second, 1)
    corrected = context.reward_model(member.model)
    after = _judged(second, corrected, settings.perturbed)
    member.summary["reform"] = {
        "pairs": pairs,
        **found.summary(seed=config.seed),
        **counts,
        "corrected": _corrected(corrected, found, second.progress),
        "accuracy": {"before": before.accuracy, "after": after.accuracy},
        "robustness": compared(before.outcomes, after.outcomes, seed=config.seed),
        "perturbed_too_long": after.too_long,
    }
    return member


def _searched(context: MemberContext, settings: Reform) -> tuple[Found, _Judged, int]:
    """The first model's failures, what it is worth, and how many pairs it was trained on; of the model itself nothing stays in memory."""
    config = context.config
    judge = context.reward_model(train_member(context, 0).model)
    wait()
    pairs, gaps = _training_pairs(context.prepared, judge, context.progress)
    chosen = [pairs[place] for place in lowest_losses(gaps, settings.share)]
    found = find_failures(judge, chosen, settings, precision=config.compute.precision, seed=config.seed, progress=context.progress)
    return found, _judged(context, judge, settings.perturbed), len(pairs)


def _named(context: MemberContext, name: str) -> MemberContext:
    """The context, its progress told of one of the two models."""
    show = context.progress

    def progress(what: str, done: int, total: int) -> None:
        show(f"{name}: {what}", done, total)

    return replace(context, progress=progress)


def _training_pairs(prepared: Prepared, judge: RewardModel, progress: Progress) -> tuple[list[SearchedPair], list[float]]:
    """The pairs that the model was trained on, as text and with the labels that it saw, and its gaps."""
    pairs: list[SearchedPair] = []
    gaps: list[float] = []
    whole = {entry.index: entry.conversations for entry in prepared.training_tokens}
    entries = [entry for entry in prepared.train.groups if prepared.training[entry.group.index].prompt]
    for entry, rewards in zip(entries, scored(judge, [entry.group for entry in entries], progress), strict=True):
        group, conversations = prepared.training[entry.group.index], whole[entry.group.index]
        places = [conversations.index(tokens) for tokens in entry.group.conversations]
        for pair in entry.pairs:
            pairs.append(SearchedPair(group, places[pair.winner], places[pair.loser]))
            gaps.append(rewards[pair.winner] - rewards[pair.loser])
    return pairs, gaps


def _augmented(context: MemberContext, made: Sequence[Group]) -> tuple[Prepared, dict[str, int]]:
    """The training data with the failures' preferences; those that are too long are left out where over-long data is refused."""
    prepared, config = context.prepared, context.config
    overlong = "drop" if config.read.overlong == "fail" else config.read.overlong
    encoded, falls = encode_groups(made, context.tokenizer, max_length=config.max_length, overlong=overlong)
    first = len(prepared.training)
    placed = [replace(entry, index=first + entry.index) for entry in encoded]
    entries = [keep_paired(entry, ordered_pairs(made[entry.index - first]), key=split_key(made[entry.index - first])) for entry in placed]
    added = replace(
        prepared,
        train=TrainingSet([*prepared.train.groups, *entries]),
        training=(*prepared.training, *made),
        training_tokens=(*prepared.training_tokens, *placed),
    )
    return added, {"preferences": len(entries), **falls}


@dataclass(frozen=True, slots=True)
class _Judged:
    """A model's accuracy on held-out preferences, and how it orders their pairs with an answer perturbed."""

    accuracy: dict[str, Any] | None
    outcomes: Outcomes
    too_long: int = 0


def _judged(context: MemberContext, model: RewardModel, perturbed: int) -> _Judged:
    prepared = context.prepared
    if not prepared.held_out_has_order:
        return _Judged(None, outcomes([]))
    rewards = scored(model, prepared.held_out_tokens, context.progress)
    accuracy = pair_accuracy(prepared.held_out, rewards).overall.as_dict()
    groups = sorted(prepared.held_out, key=lambda group: group.prompt_key)[:perturbed]
    measure, cases = measure_of(model), []
    for number, group in enumerate(groups):
        case = make_case(number, group, "", tuple(SUITES.values()), measure=measure)
        cases += [case.scores(rows) for rows in scored_cases(model, [case]) if rows is not None]
        context.progress("perturbed answers", number + 1, len(groups))
    return _Judged(accuracy, outcomes(cases), len(groups) - len(cases))


def _corrected(model: RewardModel, found: Found, progress: Progress) -> dict[str, Any] | None:
    """How many of the first model's failures are on the right side now; it was trained on them."""
    if not found.failures:
        return None
    rewards = scored(model, [failure.written.judged() for failure in found.failures], progress)
    still = [replace(failure, rewards=(row[0], row[1], row[2])).width > 0 for failure, row in zip(found.failures, rewards, strict=True)]
    return {"failures": len(still), "still": sum(still)}


def reform_headline(summary: Mapping[str, Any]) -> str:
    """What a correction learned from, before what else a headline says; nothing where there was none."""
    if "reform" not in summary:
        return ""
    found = summary["reform"]
    return f"{found['preferences']} failures learned from (found for {found['searched_pairs']} pairs), "


def reform_sections(summary: Mapping[str, Any]) -> list[Section]:
    """Sections on a correction, from what `train_corrected` reported."""
    corrected, accuracy = summary["corrected"], summary["accuracy"]
    told = [f"{summary['preferences']} preferences were added to the training data."]
    if corrected is not None:
        told.append(f"Of {corrected['failures']} failures, all trained on, {corrected['still']} are still on the wrong side.")
    if accuracy["before"] is not None:
        before, after = (format_interval(Interval(**accuracy[when])) for when in ("before", "after"))
        told.append(f"Held-out pair accuracy is {before} before and {after} after.")
    rows = tuple(
        (name, *(format_interval(Interval(**row[when])) for when in ("before", "after")), format_gain(Interval(**row["gain"])))
        for name, row in summary["robustness"].items()
    )
    measured = "Held-out pairs, one of their answers perturbed: which way, and whether the preferred one or the other."
    robust = Section("Robustness", (measured,), Table(("pairs", "accuracy before", "after", "gain"), rows))
    return [*search_sections(summary), Section("Correction", told), *([robust] if rows else [])]
