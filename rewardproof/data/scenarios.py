"""Four scenarios for a reward model: prompts seen or unseen in training, by answers of sources seen or unseen.

Reference:
    Hong et al., On the Robustness of Reward Models for Language Model Alignment, arXiv:2505.07271, section 2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from rewardproof.config import Section, Strings
from rewardproof.data.group import Group
from rewardproof.data.splitting import split_by_prompt, split_key, split_position
from rewardproof.errors import ConfigError, DataError

SCENARIOS = ("in_domain", "prompt_disjoint", "response_disjoint", "mutual_disjoint")
"""Names of the scenarios, nearest to training first."""


class Scenarios(Section):
    """How data whose answers have a named source is cut by prompt and by source; the same settings cut it alike in every verb."""

    source: Strings
    """Column that names the answers' sources, a list with one name an answer; or as many columns as answers, for pairs chosen,rejected."""
    unseen: Strings
    """Sources that training never sees."""
    answers: Annotated[int, Field(ge=2)] = 2
    """Answers of a training prompt that training may use, chosen by a hash of the texts; the others are the in-domain test."""
    max_prompts: Annotated[int, Field(ge=0)] = 0
    """At most so many training prompts, chosen by a hash of their texts; 0 takes all."""


@dataclass(frozen=True, slots=True)
class ScenarioCut:
    """Data cut into what trains and four tests; no answer is in two of them.

    Attributes:
        train: Training prompts, each with the answers that may be trained on.
        in_domain: The same prompts, their other answers by the same sources.
        prompt_disjoint: Held-out prompts, answers by sources that training sees.
        response_disjoint: Training prompts, answers by sources that it does not see.
        mutual_disjoint: Held-out prompts, answers by sources that it does not see.
        counts: Prompts, answers by source, and what was left out, for the report.
    """

    train: tuple[Group, ...]
    in_domain: tuple[Group, ...]
    prompt_disjoint: tuple[Group, ...]
    response_disjoint: tuple[Group, ...]
    mutual_disjoint: tuple[Group, ...]
    counts: dict[str, Any] = field(default_factory=dict)


class _Sourced(NamedTuple):
    """A group and the source of each of its answers."""

    group: Group
    sources: tuple[str, ...]


def cut_scenarios(groups: Iterable[Group], settings: Scenarios, *, fraction: float, salt: str = "") -> ScenarioCut:
    """Cut groups by a hash of the prompt and by the source of the answers.

    A prompt that several groups share is taken once, and a group with the same answer twice is left out, both counted: its answers could
    fall on two sides.

    Args:
        groups: Groups whose answers have a named source, single answers already joined.
        settings: Which sources are unseen, and how many answers train.
        fraction: Share of prompts held out, as in `split_by_prompt`.
        salt: As in `split_by_prompt`.

    Raises:
        DataError: A group without a source for each answer.
        ConfigError: A source that no answer has, or a split that holds out nothing.
    """
    if not settings.unseen or not 0 < fraction < 1:
        raise ConfigError(
            f"Got scenarios.unseen={','.join(settings.unseen) or 'none'} with split={fraction}, expected one source or more and a fraction "
            "between 0 and 1: unseen sources and unseen prompts make the scenarios. Name sources, and write the same split (0.2 is "
            "training's default) in every verb."
        )
    found = [_Sourced(group, _sources(group, settings.source)) for group in groups]
    by_source = Counter(source for entry in found for source in entry.sources)
    unknown = [name for name in settings.unseen if name not in by_source]
    if unknown or len(by_source) == len(set(settings.unseen)):
        raise ConfigError(
            f"Got scenarios.unseen={','.join(settings.unseen)}, expected some, not all, of the sources in the data: "
            f"{', '.join(sorted(by_source))}. Training needs answers by the others; correct the names."
        )
    kept, dropped = _distinct(found)
    training, held_out = split_by_prompt([entry.group for entry in kept], fraction=fraction, salt=salt)
    chosen = sorted(training, key=lambda group: split_position(group, "scenarios"))[: settings.max_prompts or None]
    seen_prompts, unseen_prompts = ({split_key(group) for group in part} for part in (chosen, held_out))
    pieces: dict[str, list[Group]] = {name: [] for name in ("train", *SCENARIOS)}
    short: Counter[str] = Counter()
    for entry in kept:
        key = split_key(entry.group)
        for name, places in _places(entry, settings, training=key in seen_prompts, held_out=key in unseen_prompts).items():
            if len(places) > 1:
                pieces[name].append(_piece(entry, places, settings.source))
            else:
                short[name] += 1
    counts: dict[str, Any] = {
        "answers_by_source": dict(sorted(by_source.items())),
        "left_out": dict(dropped),
        "left_out_by_max_prompts": len(training) - len(chosen),
        "groups": {name: len(found) for name, found in pieces.items()},
        "fewer_than_two_answers": dict(short),
    }
    return ScenarioCut(**{name: tuple(found) for name, found in pieces.items()}, counts=counts)


def _places(entry: _Sourced, settings: Scenarios, *, training: bool, held_out: bool) -> dict[str, list[int]]:
    """Places of a group's answers by what they are for; nothing for a prompt that is on neither side."""
    unseen = [place for place, source in enumerate(entry.sources) if source in settings.unseen]
    seen = [place for place in range(len(entry.sources)) if place not in unseen]
    if training:
        texts = entry.group.answer_texts
        order = sorted(seen, key=lambda place: _answer_order(entry.group, texts[place]))
        trained = sorted(order[: settings.answers])
        return {"train": trained, "in_domain": sorted(order[settings.answers :]), "response_disjoint": unseen}
    return {"prompt_disjoint": seen, "mutual_disjoint": unseen} if held_out else {}


def _answer_order(group: Group, text: str) -> str:
    return hashlib.sha256(json.dumps(["scenarios", split_key(group), text]).encode()).hexdigest()


def _distinct(found: Sequence[_Sourced]) -> tuple[list[_Sourced], Counter[str]]:
    """Groups of different answers, one a prompt; of several the first by a hash of the answers."""
    dropped: Counter[str] = Counter()
    first: dict[str, _Sourced] = {}
    for entry in found:
        if len(set(entry.group.answer_texts)) < len(entry.group.answers):
            dropped["identical_answers"] += 1
            continue
        key = split_key(entry.group)
        dropped["duplicate_prompts"] += key in first
        first[key] = min(
            (entry, first.get(key, entry)), key=lambda one: _answer_order(one.group, json.dumps(sorted(one.group.answer_texts)))
        )
    return list(first.values()), +dropped


def _sources(group: Group, columns: Strings) -> tuple[str, ...]:
    """The source of each answer."""
    n_answers = len(group.answers)
    values = [group.meta.get(column) for column in columns]
    if len(columns) == 1 and isinstance(values[0], (list, tuple)):
        values = list(values[0])
    if len(values) == n_answers and all(isinstance(value, str) for value in values):
        return tuple(str(value) for value in values)
    raise DataError(
        f"{group.origin or group.id}: got {values!r:.120} in {','.join(columns) or 'no column'} for {n_answers} answers, expected the name "
        f"of each answer's source: scenarios are cut by it. Its columns are {', '.join(sorted(group.meta)) or 'none'}; name one that lists "
        "the sources (scenarios.source=models), or one a side (scenarios.source=chosen_model,rejected_model)."
    )


def _piece(entry: _Sourced, places: Sequence[int], columns: Strings) -> Group:
    """The group with some of its answers; a margin belongs to the pair as it was."""
    group = entry.group
    named = {columns[0]: [entry.sources[place] for place in places]} if len(columns) == 1 else {}
    return replace(
        group,
        answers=tuple(group.answers[place] for place in places),
        scores=None if group.scores is None else tuple(group.scores[place] for place in places),
        margin=group.margin if len(places) == len(group.answers) else None,
        meta={**group.meta, **named},
    )
