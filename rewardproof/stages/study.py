"""`rewardproof study STUDY.yaml OUT`: methods by settings by seeds, one row a cell; what is there stays, what is missing is run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewardproof.artifacts import Progress, Report, plain, silent, write_whole
from rewardproof.config import dump_yaml, load_yaml, parse
from rewardproof.errors import CheckpointError, ConfigError, StorageError
from rewardproof.merging.experts import Merge
from rewardproof.report import Table, markdown_table
from rewardproof.scoring import Combine
from rewardproof.stages.align import Align
from rewardproof.stages.optimisation_tables import by_way, laws_table, picks_table, policies_table, way_of
from rewardproof.stages.stress_pools import PoolSettings
from rewardproof.stages.study_cell import Place, drop_models, finished, make, needed, run_cell
from rewardproof.stages.study_plan import Cell, Study, unfold
from rewardproof.stages.study_settings import first_difference
from rewardproof.stages.study_tables import SettingRows, load_settings, setting_table
from rewardproof.stages.train import Train

STUDY_FILE = "study.yaml"


@dataclass(slots=True)
class _Course:
    """How far the study is."""

    cells: Sequence[Cell]
    place: Place
    say: Callable[[str], None]
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def row(self, cell: Cell) -> Path:
        return self.place.out / "cells" / cell.file

    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if not self.row(cell).exists()]

    def remaining(self) -> float:
        """Seconds that the cells still to run would take at the pace of those of their method so far, or of all."""
        known = [value for values in self.seconds.values() for value in values]
        if not known:
            return 0.0
        waiting = [cell for cell in self.missing() if cell.name not in self.failed]
        times = [self.seconds.get(cell.method) or known for cell in waiting]
        return sum(sum(values) / len(values) for values in times)


def run(config: Study, out: Path | str, *, progress: Progress = silent, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run the cells that have no row yet, one after the other.

    Args:
        config: The study.
        out: Its directory: `cells/` has the rows, `pairs/` the held-out pairs that they are of, `runs/` what each cell left.
        progress: Receives what is being done, how far, of how much.
        say: Receives one line a cell.

    Returns:
        The report; `failures` names the cells that failed, each with its error.

    Raises:
        CheckpointError: OUT holds something else, or a row that was made with other settings, or another call is filling it.
        ConfigError: The study cannot be unfolded.
    """
    cells, target = unfold(config), Path(out)
    with _claimed(config, target):
        return _run(config, target, cells, progress=progress, say=say)


def _run(config: Study, target: Path, cells: Sequence[Cell], *, progress: Progress, say: Callable[[str], None]) -> Report:
    course = _Course(cells, Place(target, config.name, config.paths, progress), say)
    _take_over(config, target)
    for cell in cells:
        _refuse_other_settings(course, cell)
    done = len(cells) - len(course.missing())
    if done:
        say(f"{done} of {len(cells)} cells are there")
    for cell in cells:
        if not course.row(cell).exists():
            _attempt(course, cell)
        if not config.keep_models:
            _drop_unneeded(course, cell)
    return _report(course, config)


@contextlib.contextmanager
def _claimed(config: Study, out: Path) -> Iterator[None]:
    """Hold the directory: two calls in one would delete each other's runs."""
    _claim(config, out)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{out} is being filled by another `rewardproof study`, expected one at a time: they would delete each other's runs. Wait "
                "for it, or give this one a directory of its own; rows of several directories are collected into one folder of results."
            ) from None
        yield


def _claim(config: Study, out: Path) -> None:
    marker = out / STUDY_FILE
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.exists())):
        raise CheckpointError(
            f"{out} holds something that is no study (no {STUDY_FILE}), expected a new directory or a study's own; name another."
        )
    if marker.exists():
        name = load_yaml(marker.read_text(), origin=str(marker)).get("name")
        if name != config.name:
            raise CheckpointError(
                f"{out} holds the study {name!r}, expected {config.name!r}: their rows must not mix. Name another directory."
            )
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_whole(marker, dump_yaml(config))


def _take_over(config: Study, out: Path) -> None:
    """Copy rows and held-out pairs from earlier to where the study has none of that name.

    Raises:
        ConfigError: There are none.
    """
    if not config.rows:
        return
    files = [*Path(config.rows).glob("*--*--*.json"), *Path(config.rows).glob("pairs/*.json")]
    if not files:
        raise ConfigError(
            f"rows={config.rows} holds no rows, expected SETTING--METHOD--SEED.json files; correct the folder, or drop rows=."
        )
    for file in files:
        target = out / ("pairs" if file.parent.name == "pairs" else "cells") / file.name
        _write_new(target, json.loads(file.read_text()))


def _refuse_other_settings(course: _Course, cell: Cell) -> None:
    """A row stands for its settings; other settings need another name.

    Raises:
        CheckpointError: Names the row and the key that differs.
    """
    file = course.row(cell)
    if not file.exists():
        return
    try:
        written = _filled(json.loads(file.read_text())["config"])
    except (ConfigError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as a row of this study: {error} Move it away, or give the method a new name."
        ) from error
    found = first_difference(written, cell.settings())
    if found:
        raise CheckpointError(
            f"{file} was made with {found.key}={found.old!r}, expected {found.new!r} as the study says now; a row is never overwritten. "
            "Give the method or setting a new name, restore the setting, or move the row away."
        )


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A row's settings, with the defaults of keys that did not exist when it was written."""
    filled = {**settings, "train": parse(Train, settings["train"]).model_dump(mode="json")}
    if settings.get("merge"):
        filled["merge"] = parse(Merge, settings["merge"]).model_dump(mode="json")
    if "combine" in settings:
        filled["combine"] = parse(Combine, settings["combine"]).model_dump(mode="json")
    if "align" in settings:
        filled["align"] = parse(Align, settings["align"]).model_dump(mode="json")
    if "pools" in settings:
        filled["pools"] = {name: parse(PoolSettings, keys).model_dump(mode="json") for name, keys in settings["pools"].items()}
    return filled


def _attempt(course: _Course, cell: Cell) -> None:
    """Run one cell; where it fails, write down why and let the others go on."""
    number = course.cells.index(cell) + 1
    course.place.progress("cells", number - 1, len(course.cells))
    started = time.perf_counter()
    try:
        _provide(course, cell)
        found = run_cell(cell, course.place)
        if found.pairs is not None:
            _write_new(course.place.out / "pairs" / f"{found.row['pairs']}.json", found.pairs)
        _write_new(course.row(cell), found.row)
    except StorageError:
        raise
    except Exception as error:
        course.failed[cell.name] = f"{type(error).__name__}: {error}"
        record = {"cell": cell.name, "error": course.failed[cell.name], "traceback": traceback.format_exc()}
        with (course.place.out / "failures.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        course.say(f"cell {number} of {len(course.cells)} · {cell.name} · failed: {error}")
        return
    course.seconds.setdefault(cell.method, []).append(time.perf_counter() - started)
    course.say(
        f"cell {number} of {len(course.cells)} · {cell.name} · {found.row['headline']} · {_clock(time.perf_counter() - course.started)} "
        f"elapsed, about {_clock(course.remaining())} left"
    )


def _provide(course: _Course, cell: Cell) -> None:
    """Make sure that the models which the cell starts from are there; those deleted after an earlier call are made again."""
    by_name = {entry.name: entry for entry in course.cells}
    for parent in cell.parents:
        name = f"{cell.setting}/{parent}/{cell.seed}"
        if name in course.failed:
            raise CheckpointError(f"{name} failed, expected its model: {cell.name} starts from it. See that failure first.")
        if not (needed(cell, parent, course.place.out).is_dir() and finished(by_name[name], course.place)):
            course.say(f"{name} once more, since {cell.name} needs its model")
            _provide(course, by_name[name])
            make(by_name[name], course.place)


def _drop_unneeded(course: _Course, cell: Cell) -> None:
    """Delete the models of the cell and of those it started from, where nothing waits for them any more."""
    by_name = {entry.name: entry for entry in course.cells}
    for method in (cell.method, *cell.parents):
        mine = by_name[f"{cell.setting}/{method}/{cell.seed}"]
        children = [entry for entry in course.cells if (entry.setting, entry.seed) == (mine.setting, mine.seed) and method in entry.parents]
        if all(course.row(entry).exists() for entry in (mine, *children)):
            drop_models(mine, course.place.out)


def _report(course: _Course, config: Study) -> Report:
    missing = [cell.name for cell in course.missing()]
    headline = f"{len(course.cells) - len(missing)} of {len(course.cells)} cells have a row"
    if missing:
        headline += f"; failed: {', '.join(missing)} (failures.jsonl says why)"
    results = {"headline": headline, "study": config.name, "cells": len(course.cells), "failures": course.failed}
    out = course.place.out
    write_whole(out / "tables.md", _tables(config, out))
    write_whole(out / "report.json", json.dumps(plain(results), indent=2, ensure_ascii=False) + "\n")
    return Report(out, headline, results)


def _tables(config: Study, out: Path) -> str:
    """The tables of all settings that have rows, methods in the study's order."""
    found = load_settings(out / "cells", out / "pairs")
    shown = [
        (name, found[name], [method for method in config.methods if method in found[name].rows])
        for name in config.settings
        if name in found
    ]
    return "\n".join(
        f"## {name}\n\n" + "\n\n".join(map(markdown_table, _of_setting(rows, methods, list(config.methods)))) + "\n"
        for name, rows, methods in shown
        if methods
    )


def _of_setting(rows: SettingRows, methods: Sequence[str], order: Sequence[str]) -> list[Table]:
    """The tables of one setting: held-out pairs, and where they were judged so, picks from every pool and policies."""
    pools = dict.fromkeys(name for method in methods for row in rows.rows[method].values() for name in row.get("best_of_n", {}))
    found = [setting_table(rows, methods)]
    for pool in pools:
        judged = [method for method in methods if all(pool in row.get("best_of_n", {}) for row in rows.rows[method].values())]
        found += [picks_table(rows, pool, judged)] if judged else []
    aligned = [method for method in order if method in rows.policies]
    found += [policies_table(rows, part) for part in by_way(rows, aligned)]
    laws = laws_table(rows, [method for method in aligned if any(map(way_of, rows.policies[method].values()))])
    return [*found, laws] if laws else found


def _write_new(file: Path, value: Mapping[str, Any]) -> None:
    if not file.exists():
        write_whole(file, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> _clock(3725)
        '1:02:05'
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
