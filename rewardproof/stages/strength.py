"""`rewardproof strength DATA OUT`: how strongly reward models that never saw a prompt prefer the answer that its row prefers.

Prompts are cut into folds by a hash of their text, anew in every round. A judge trains on all folds of its round but one and judges the
pairs of that one, so that every pair is judged once a round. Rows go out as they came, with the mean and the standard deviation of the
judges' gaps added.

Reference:
    Wang et al., Secrets of RLHF in Large Language Models, Part II, arXiv:2401.06080, eq. 4; cross-fitted, which the paper is not.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import Progress, Report, RunDirectory, finished_report, refuse_inputs_inside, silent, writing
from rewardproof.config import Section, apply_overrides, load_recipe, parse
from rewardproof.data import Group, Pair, ReadCounts, Row, iter_rows, key_position, ordered_pairs, split_key, split_salt, with_label_noise
from rewardproof.data.encoding import EncodedGroup, encode_groups
from rewardproof.data.strength import SPREAD, STRENGTH
from rewardproof.errors import CheckpointError, ConfigError, DataError
from rewardproof.models.checkpoints import load_tokenizer
from rewardproof.models.trunk import group_key
from rewardproof.scoring import Scale
from rewardproof.stages.delivery import REFERENCE_GROUPS
from rewardproof.stages.member_context import MemberContext
from rewardproof.stages.members import train_member
from rewardproof.stages.row_file import RowFile, as_line
from rewardproof.stages.strength_report import JudgedPair, write_strength_report
from rewardproof.stages.train import Train, prepared_for
from rewardproof.stages.train import check_settings as check_train
from rewardproof.stages.training_report import CHUNK, scored
from rewardproof.statistics.checks import FloatArray
from rewardproof.training.batches import TrainingSet
from rewardproof.training.preparation import Prepared


class Strength(Section):
    """Preference strength of every pair of the rows."""

    members: Annotated[int, Field(ge=2)] = 10
    """Reward models trained in all, a multiple of `folds`; a pair is judged by `members / folds` of them."""
    folds: Annotated[int, Field(ge=2)] = 2
    """Parts into which each round cuts the prompts; a model trains on all parts but one and judges that one."""
    gold: str = ""
    """A column with a second judgement, one number an answer; the report then says how often it agrees with the rows' own."""
    train: Train
    """How each model is trained: settings of `train`. The prompts that its `split` (or `eval_data`) holds out train none of the models;
    their answers give each model its unit."""


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A row with an order.

    Attributes:
        number: Its place among the usable rows of the sources.
        entry: Its tokens.
        key: By which its prompt falls into a fold.
        pairs: Its ordered pairs, as the row records them.
        flipped: Whether the judges' label noise turns each of them round.
        gold: How far the second judgement agrees with each: 1, 0.5 for a tie, 0; empty where there is none.
        gaps: Of each judge so far, the pairs' gaps in the judge's own unit.
    """

    number: int
    entry: EncodedGroup
    key: str
    pairs: tuple[Pair, ...]
    flipped: tuple[bool, ...]
    gold: tuple[float, ...]
    gaps: list[FloatArray] = field(default_factory=list)


def settings_of(data: str, overrides: Sequence[str]) -> Strength:
    """The settings that a command line means: keys of the verb's own, `recipe`, and keys of `train`.

    Raises:
        ConfigError: A key that neither knows, or a bad value.
    """
    names = {*Strength.model_fields, "recipe"} - {"train"}
    ours = [override for override in overrides if override.partition("=")[0] in names]
    own = apply_overrides({"recipe": "dense"}, ours)
    recipe = {**load_recipe(str(own.pop("recipe"))), "data": data}
    train = parse(Train, apply_overrides(recipe, [override for override in overrides if override not in ours]))
    return parse(Strength, {**own, "train": train})


def check_settings(config: Strength) -> None:
    """Refuse what gives no strength, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    train = config.train
    if config.members % config.folds or config.members < 2 * config.folds:
        raise ConfigError(
            f"members={config.members} with folds={config.folds}: expected a multiple of folds, at least {2 * config.folds}: every round "
            "takes one model a fold, and a spread needs two rounds. Correct one of them."
        )
    if train.members != 1 or train.ensemble is not None or train.reuse:
        raise ConfigError(
            "Got a recipe of several models or with `reuse`, expected one that trains one: each member of `strength` is one reward model "
            "that has not seen what it judges. Use recipe=dense."
        )
    others = {"capabilities": train.capabilities, "reform": train.reform, "activation": train.activation, "rule": train.rule}
    if found := [name for name, value in others.items() if value is not None]:
        raise ConfigError(
            f"Got a recipe with `{found[0]}`, expected one that trains a single reward model on pairs: the judges of `strength` are "
            "trained without it, and would not be what the recipe says. Use recipe=dense."
        )
    if not train.data:
        raise ConfigError("No data to measure, expected at least one source; name files, folders or embedded:… before OUT.")
    check_train(train)


def run(config: Strength, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Report:
    """Train the judges one after the other, let each judge what it has not seen, and write the rows with their strength.

    Args:
        config: Models, folds and how they train.
        out: JSONL file to write, whole or not at all; its report goes to `OUT.report/`.
        overwrite: Replace an existing file.
        resume: Go on with the first judge that an interrupted run had not finished, from its last checkpoint.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; the headline is the share of pairs with negative strength.

    Raises:
        CheckpointError: OUT exists and neither option was given, is a directory, or is or lies within what is read.
        ConfigError: As `check_settings`.
        DataError: A bad or over-long row under `fail`, no pair at all, or a fold without prompts to train on.
    """
    check_settings(config)
    started = time.perf_counter()
    files = RowFile.at(Path(out))
    for source in config.train.data:
        files.check(source, overwrite=overwrite, resume=resume)
    refuse_inputs_inside(files.report, [config.train.model, *config.train.eval_data])
    if resume and files.out.exists():
        files.require_ours(files.out, "strength")
        if (earlier := finished_report(files.report, config)) is not None:
            return Report(files.out, earlier.headline, earlier.results)
    tokenizer = load_tokenizer(config.train.model)
    judge = config.train.model_copy(update={"members": config.members})
    prepared = prepared_for(judge, tokenizer)
    counts, falls = ReadCounts(), Counter[str]()
    rows = list(_judged_rows(config, tokenizer, counts, falls))
    if not rows:
        raise DataError(
            f"{', '.join(config.train.data)}: got {counts.used} rows of which none orders two answers, expected pairs: a strength "
            "is a pair's. Answers to one prompt that stand in rows of their own have to be joined in one."
        )
    parts = [_without_fold(config, number, prepared) for number in range(config.members)]
    files.out.parent.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(files.report, config, overwrite=overwrite, resume=resume, started=started)
    directory.log({"phase": "data", **prepared.rows})
    context = MemberContext(judge, prepared, tokenizer, directory, resume, progress)
    judges = [_judge(replace(context, prepared=part), number, config, rows) for number, part in enumerate(parts)]
    falls["replaced"] = _write(config, files, rows, counts.used)
    found = [pair for row in rows for pair in _by_pair(row)]
    written = {"read": counts.read, "written": len(rows), "dropped": dict(counts.bad), **falls}
    report = write_strength_report(directory, found, judges, written, out=files.out)
    shutil.rmtree(directory.path / "members", ignore_errors=True)
    return report


def _rows(config: Strength, counts: ReadCounts) -> Iterator[Row]:
    read = config.train.read
    for source in config.train.data:
        yield from iter_rows(source, format=read.format, on_bad=read.on_bad, purpose="train", text=read.text, counts=counts)


def _judged_rows(config: Strength, tokenizer: PreTrainedTokenizerBase, counts: ReadCounts, falls: Counter[str]) -> Iterator[JudgedRow]:
    """The rows with an order that fit, as tokens; the others are counted."""
    read, rows, done = config.train.read, _rows(config, counts), 0
    while chunk := list(islice(rows, CHUNK)):
        groups = [row.group for row in chunk]
        encoded, lengths = encode_groups(groups, tokenizer, max_length=config.train.max_length, overlong=read.overlong)
        falls.update(lengths)
        for entry in encoded:
            group = groups[entry.index]
            pairs = ordered_pairs(group)
            if not pairs:
                falls["without_an_order"] += 1
                continue
            noisy = with_label_noise(group, pairs, rate=read.label_noise, seed=read.noise_seed)
            flipped = tuple(before != after for before, after in zip(pairs, noisy, strict=True))
            yield JudgedRow(done + entry.index, entry, split_key(group), pairs, flipped, _gold(group, pairs, config.gold))
        done += len(chunk)


def _gold(group: Group, pairs: Sequence[Pair], column: str) -> tuple[float, ...]:
    if not column:
        return ()
    values = group.meta.get(column)
    if not isinstance(values, (list, tuple)) or [type(value) in (int, float) for value in values] != [True] * len(group.answers):
        raise DataError(
            f"{group.origin or group.id}: got {column}={values!r:.80} for gold, expected a list of {len(group.answers)} numbers, one an "
            "answer: otherwise it says nothing about a pair. Name such a column, or drop gold=."
        )
    return tuple(0.5 * (1 + float(np.sign(values[pair.winner] - values[pair.loser]))) for pair in pairs)


def _in_fold(config: Strength, number: int, key: str) -> bool:
    """Whether a prompt lies in the fold that a judge does not train on."""
    cut, fold = divmod(number, config.folds)
    return int(key_position(key, split_salt(config.train.split_seed, f"strength {cut}")) * config.folds) == fold


def _without_fold(config: Strength, number: int, prepared: Prepared) -> Prepared:
    """What a judge trains on."""

    def outside(part: TrainingSet) -> TrainingSet:
        return TrainingSet([entry for entry in part.groups if not _in_fold(config, number, entry.key)])

    whole = {"train": prepared.train, "merge_fit": prepared.merge_fit, "merge_stop": prepared.merge_stop}
    kept = {name: outside(part) for name, part in whole.items()}
    for name, part in kept.items():
        if len(whole[name]) and not len(part):
            raise DataError(
                f"{', '.join(config.train.data)}: folds={config.folds} of {len(whole[name])} groups leave model {number} nothing for {name}"
                ", expected prompts in every fold. Give more data, or fewer folds."
            )
    return replace(prepared, **kept)


def _judge(context: MemberContext, number: int, config: Strength, rows: Sequence[JudgedRow]) -> dict[str, Any]:
    """Train a judge, or take what an interrupted run has kept of it; add its gaps to the rows of its fold, and say what it is."""
    own = [row for row in rows if _in_fold(config, number, row.key)]
    name = f"judges/{number}.json"
    kept = context.directory.path / name
    if not (context.resume and kept.is_file()):
        context.directory.write_json(name, _trained_judge(context, number, own, of=config.members))
    shutil.rmtree(context.folder(number), ignore_errors=True)
    found: Mapping[str, Any] = json.loads(kept.read_text())
    if len(found["rewards"]) != len(own):
        raise CheckpointError(
            f"{kept} holds rewards of {len(found['rewards'])} rows, expected {len(own)}: the data has changed since the interrupted run. "
            "Pass --overwrite to start again."
        )
    scale = Scale(*found["scale"])
    correct = 0.0
    for row, rewards in zip(own, found["rewards"], strict=True):
        standard = scale.standardised(rewards)
        gaps = np.array([standard[pair.winner] - standard[pair.loser] for pair in row.pairs])
        row.gaps.append(gaps)
        correct += float(np.mean((1 + np.sign(gaps)) / 2))
    shown = {key: found[key] for key in ("trained_on", "scale", "summary")}
    return {"judged": len(own), "accuracy": correct / len(own) if own else None, **shown}


def _trained_judge(context: MemberContext, number: int, own: Sequence[JudgedRow], *, of: int) -> dict[str, Any]:
    show = context.progress

    def progress(what: str, done: int, total: int) -> None:
        show(f"model {number + 1} of {of}: {what}", done, total)

    context = replace(context, progress=progress)
    member = train_member(context, number)
    model = context.reward_model(member.model)
    reference = context.prepared.held_out_tokens or [entry.group for entry in context.prepared.train.groups]
    units = scored(model, sorted(reference, key=group_key)[:REFERENCE_GROUPS], progress)
    scale = Scale.of(units, name=f"model {number}")
    rewards = scored(model, [row.entry for row in own], progress)
    return {"trained_on": len(context.prepared.train), "scale": scale, "summary": member.summary, "rewards": rewards}


def _by_pair(row: JudgedRow) -> Iterator[JudgedPair]:
    """Mean and standard deviation of the judges' gaps of every pair."""
    gaps_JP = np.stack(row.gaps)
    for place, (mean, std) in enumerate(zip(gaps_JP.mean(axis=0).tolist(), gaps_JP.std(axis=0).tolist(), strict=True)):
        yield JudgedPair(row.key, mean, std, row.flipped[place], row.gold[place] if row.gold else None)


def _write(config: Strength, files: RowFile, rows: Sequence[JudgedRow], n_rows: int) -> int:
    """Write the rows with their strength; gives how many had one that was replaced."""
    columns = {row.number: _columns(row) for row in rows}
    counts, replaced = ReadCounts(), 0
    with writing(files.partial), files.partial.open("wb") as stream:
        for number, row in enumerate(_rows(config, counts)):
            if number in columns:
                replaced += STRENGTH in row.raw or SPREAD in row.raw
                stream.write(as_line({**row.raw, **columns[number]}))
    if counts.used != n_rows:
        raise DataError(
            f"{', '.join(config.train.data)}: got {n_rows} rows at first and {counts.used} when they were written, expected the same: the "
            "data has changed meanwhile. Run it again with --overwrite."
        )
    os.replace(files.partial, files.out)
    return replaced


def _columns(row: JudgedRow) -> dict[str, Any]:
    pairs = list(_by_pair(row))
    means, stds = [pair.mean for pair in pairs], [pair.std for pair in pairs]
    single = len(row.entry.conversations) == 2
    return {STRENGTH: means[0] if single else means, SPREAD: stds[0] if single else stds}
