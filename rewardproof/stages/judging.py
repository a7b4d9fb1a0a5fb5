"""Scoring for `evaluate`: rows are streamed, and what is kept of them goes to a file chunk by chunk, so that an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rewardproof.artifacts import Progress, plain, writing
from rewardproof.data import (
    Group,
    Message,
    ReadCounts,
    Row,
    iter_rows,
    merge_single_answers,
    require_used,
    split_by_prompt,
    split_key,
    split_salt,
)
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.sharing import computed_once
from rewardproof.errors import DataError, EvaluationError
from rewardproof.evaluation import ScoredRow, scored_row
from rewardproof.scoring import ActivationRewardModel, Judge
from rewardproof.stages.evaluate_settings import Evaluate
from rewardproof.stages.training_report import CHUNK

log = logging.getLogger(__name__)
FOLDER = "judged"
"""Where a run keeps what it has judged: a file a source, a line a chunk of rows."""
LENGTHS = ("overlong_dropped", "overlong_prompt_truncated", "overlong_cut")


@dataclass(frozen=True, slots=True)
class JudgedSource:
    """One source's rows, scored, and what became of those that it held."""

    rows: list[ScoredRow]
    counts: dict[str, Any]


class KeptRows:
    """Rows judged so far: in memory, and in a file where there is a run directory."""

    def __init__(self, file: Callable[[], Path] | None = None, *, resume: bool = False) -> None:
        """Take up what an interrupted run left.

        Args:
            file: Makes the run directory where it is not there yet, and says where the rows go; nothing keeps them in memory alone.
            resume: Whether an earlier run may have left some.
        """
        self.rows: list[ScoredRow] = []
        self.groups = 0
        self.lengths: Counter[str] = Counter()
        self._file = file
        if file is not None and resume and (found := file()).exists():
            self._take_up(found)

    def add(self, groups: int, lengths: Counter[str], rows: Sequence[ScoredRow]) -> None:
        """Keep a chunk.

        Raises:
            StorageError: The disk is full.
        """
        self._count(groups, lengths, rows)
        if self._file is None:
            return
        file = self._file()
        file.parent.mkdir(exist_ok=True)
        record = {"groups": groups, "lengths": dict(lengths), "rows": [row.as_dict() for row in rows]}
        with writing(file), file.open("a") as stream:
            stream.write(json.dumps(plain(record)) + "\n")

    def _count(self, groups: int, lengths: Counter[str], rows: Sequence[ScoredRow]) -> None:
        self.rows += rows
        self.groups += groups
        self.lengths.update(lengths)

    def _take_up(self, file: Path) -> None:
        """Whole chunks alone; what a killed run wrote of the next one is cut off, and that chunk is scored in the same company again."""
        size = 0
        with file.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                self._count(record["groups"], Counter(record["lengths"]), [ScoredRow.from_dict(row) for row in record["rows"]])
                size += len(line)
        os.truncate(file, size)


def judged_source(model: Judge, config: Evaluate, source: str, kept: KeptRows, progress: Progress) -> JudgedSource:
    """Score a source's rows, those that are kept already excepted.

    Args:
        model: The judge.
        config: How the rows are read.
        source: The source.
        kept: What is known of it.
        progress: Receives how many groups are done.

    Raises:
        DataError: A row that cannot be used or is too long under `fail`; no row can be used, is held out, or fits.
    """
    counts = ReadCounts()
    groups = rows_of(config, source, counts)
    _skip_kept(source, groups, kept)
    while chunk := list(islice(groups, CHUNK)):
        found = fitting_rewards(model, config, [row.group for row in chunk])
        rows = [
            scored_row(chunk[place].group, own, format=chunk[place].format, index=kept.groups + place)
            for place, own in zip(found.places, found.rewards, strict=True)
        ]
        kept.add(len(chunk), found.lengths, rows)
        progress("scoring", kept.groups, 0)
    require_used([source], counts)
    if not kept.groups:
        raise DataError(f"{source}: split={config.split} holds out none of its {counts.used} groups; expected some. Raise split.")
    if not kept.rows:
        raise all_too_long(model, config, source, kept.groups)
    if counts.dropped:
        log.warning("%s: %s", source, counts.sentence())
    warn_of_lengths(source, kept.lengths)
    return JudgedSource(kept.rows, {"read": counts.read, **row_counts(kept.groups, dict(counts.bad), kept.lengths)})


def _skip_kept(source: str, groups: Iterator[Row], kept: KeptRows) -> None:
    """Pass over what an interrupted run has judged.

    Raises:
        EvaluationError: It judged other rows than those.
    """
    prompts = {row.index: row.prompt for row in kept.rows}
    passed = 0
    for row in islice(groups, kept.groups):
        key = split_key(row.group)
        if prompts.get(passed, key) != key:
            break
        passed += 1
    if passed < kept.groups:
        raise EvaluationError(
            f"{source}: row {passed + 1} is another than the interrupted run judged there, expected the same data: rewards would stand "
            "beside other rows. Restore it, or pass --overwrite to start again."
        )


def rows_of(config: Evaluate, source: str, counts: ReadCounts) -> Iterator[Row]:
    """A source's rows, those with single answers joined by their prompts at the end, and of a split those that it holds out."""
    singles: list[Group] = []
    for row in _held_out(config, iter_rows(source, **reading(config), counts=counts)):
        if len(row.group.answers) == 1 and row.group.prompt_text.strip():
            singles.append(row.group)
        else:
            yield row
    for group in merge_single_answers(singles):
        yield Row({}, group, "")


def reading(config: Evaluate) -> dict[str, Any]:
    """How rows are read."""
    return {"format": config.format, "on_bad": config.on_bad, "purpose": "judge", "text": config.text}


def _held_out(config: Evaluate, rows: Iterator[Row]) -> Iterator[Row]:
    salt = split_salt(config.split_seed)
    for row in rows:
        if not config.split or split_by_prompt([row.group], fraction=config.split, salt=salt)[1]:
            yield row


class Fitting(NamedTuple):
    """Groups that fit, as places among those given, their rewards, and what became of long ones."""

    places: list[int]
    rewards: list[tuple[float, ...]]
    lengths: Counter[str]


def fitting_rewards(model: Judge, config: Evaluate, groups: Sequence[Group]) -> Fitting:
    """Score groups together, as they are to be asked."""
    asked = [as_asked(group, config.as_published.system) for group in groups]
    encoded, lengths = model.encode(asked, max_length=config.max_length, overlong=config.overlong)
    places = [entry.index for entry in encoded]
    return Fitting(places, rewards_of(model, encoded, origins=[groups[place].origin for place in places]), lengths)


def rewards_of(model: Judge, encoded: Sequence[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
    """Rewards of encoded groups, in order; what they share is computed once: benchmarks repeat prompts and answers from row to row.

    Args:
        model: The judge.
        encoded: The groups.
        origins: What errors call each of them.

    Raises:
        EvaluationError: A reward is not finite.
    """
    if isinstance(model, ActivationRewardModel) and model.relative:
        return model.score_encoded(encoded, origins=origins)  # an answer is judged by those beside it
    try:
        return computed_once(encoded, model.score_encoded)
    except EvaluationError:
        return model.score_encoded(encoded, origins=origins)  # which says where it is


def as_asked(group: Group, system: str) -> Group:
    """The group as the model reads it: behind a system prompt where one is asked for and the group has none."""
    if not system or (group.prompt and group.prompt[0].role == "system"):
        return group
    return replace(group, prompt=(Message("system", system), *group.prompt))


def all_too_long(model: Judge, config: Evaluate, source: str, groups: int) -> DataError:
    """The error of data of which nothing fits."""
    return DataError(
        f"{source}: all {groups} groups are longer than {config.max_length or model.longest} tokens and were dropped; expected at "
        "least one that fits, because accuracy needs pairs. Raise max_length, or pass overlong=truncate_prompt."
    )


def warn_of_lengths(source: str, lengths: Counter[str]) -> None:
    """Say what became of long groups."""
    if lengths:
        log.warning("%s: %s", source, ", ".join(f"{count} × {what}" for what, count in lengths.items()))


def row_counts(used: int, dropped: dict[str, int], lengths: Counter[str]) -> dict[str, Any]:
    """What became of groups, for the report."""
    left_out, shortened, cut = (lengths[name] for name in LENGTHS)
    return {
        "used": used - left_out,
        "dropped": dropped | ({"overlong": left_out} if left_out else {}),
        "prompt_truncated": shortened,
        **({"cut": cut} if cut else {}),
    }
