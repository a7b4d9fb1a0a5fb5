"""Rows of a study into tables: accuracy over seeds and prompts, and every method against the baselines on the same pairs."""

# Shapes: G groups of held-out pairs, of all seeds one after the other.

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.report.tables import Cell, Table, format_interval
from rewardproof.statistics import Interval, crossed_interval, wilson
from rewardproof.statistics.checks import FloatArray

BASELINES = ("dense", "warm", "linear_probe")
LENGTH_RULE = "the longer answer wins"
OTHER_PAIRS = "not on the same pairs"
WINS = {"1": 1.0, "0": 0.0, "=": 0.5}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Held-out outcomes of one method, all seeds one after the other.

    Attributes:
        value_G: Share of a group's pairs in the data's order.
        seeds: The seed of each group.
        prompts: The prompt of each group.
        subsets: The subset of each group.
        categories: The category of each group; empty where the held-out pairs have none.
    """

    value_G: FloatArray
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    subsets: tuple[str, ...]
    categories: tuple[str, ...]

    def mean(self, subset: str | None = None, category: str | None = None) -> Interval:
        """Mean over seeds and prompts, of one subset or category where that is named."""
        places = self._places(subset, category)
        return crossed_interval(self.value_G[places], [self.seeds[place] for place in places], [self.prompts[place] for place in places])

    def interval(self, subset: str | None = None, category: str | None = None) -> Interval:
        """Accuracy over seeds and prompts; Wilson's interval over prompts where every outcome is the same."""
        values, found = self.value_G[self._places(subset, category)], self.mean(subset, category)
        if values.min() == values.max() and values[0] in (0.0, 1.0):
            honest = wilson(found.n_clusters * float(values[0]), found.n_clusters)
            return Interval(found.estimate, honest.low, honest.high, found.n, found.n_clusters)
        return found.of_a_share()

    def _places(self, subset: str | None, category: str | None) -> list[int]:
        own = zip(self.subsets, self.categories, strict=True)
        return [place for place, (first, second) in enumerate(own) if subset in (None, first) and category in (None, second)]


@dataclass(slots=True)
class SettingRows:
    """Rows of one setting by method and seed: those of models with the held-out pairs they are of, and those of policies."""

    rows: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    policies: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def outcomes(self, method: str, seeds: Sequence[int], letters: str = "correct") -> Outcomes:
        """Outcomes of a method's seeds; `letters="longer"` gives the length rule's."""
        values: list[FloatArray] = []
        seeds_G: list[int] = []
        prompts_G: list[str] = []
        subsets_G: list[str] = []
        categories_G: list[str] = []
        for seed in seeds:
            row = self.rows[method][seed]
            pairs = self.pairs[row["pairs"]]
            prompts, sizes = pairs["prompts"].split(), _spread(pairs["sizes"])
            win_P = np.asarray([WINS[letter] for letter in (row if letters == "correct" else pairs)[letters]])
            values.append(np.add.reduceat(win_P, np.cumsum([0, *sizes[:-1]])) / np.asarray(sizes))
            seeds_G += [seed] * len(prompts)
            prompts_G += prompts
            subsets_G += _spread(pairs["subsets"])
            categories_G += _spread(pairs.get("categories", [["", len(prompts)]]))
        return Outcomes(np.concatenate(values), tuple(seeds_G), tuple(prompts_G), tuple(subsets_G), tuple(categories_G))

    def difference(self, method: str, baseline: str) -> Interval | None:
        """Accuracy minus a baseline's over the seeds of both, pair by pair; `None` where a seed's held-out pairs differ."""
        found = self.gaps(method, baseline)
        return found.mean() if found else None

    def gaps(self, method: str, baseline: str) -> Outcomes | None:
        """Outcomes minus a baseline's over the seeds of both; `None` where a seed's held-out pairs differ."""
        seeds = sorted(set(self.rows[method]) & set(self.rows[baseline]))
        if not seeds or any(self.rows[method][seed]["pairs"] != self.rows[baseline][seed]["pairs"] for seed in seeds):
            return None
        mine, other = self.outcomes(method, seeds), self.outcomes(baseline, seeds)
        return replace(mine, value_G=mine.value_G - other.value_G)

    def mean(self, method: str, *path: str) -> float:
        """Mean of a number of the rows over seeds."""
        found: list[float] = []
        for row in self.rows[method].values():
            value: Any = row
            for key in path:
                value = value[key]
            found.append(float(value))
        return math.fsum(found) / len(found)

    def operations(self, method: str) -> float:
        """Mean operations of training over seeds, TFLOP; 0 where a row does not have them."""
        known = all("tflops" in row["training"] for row in self.rows[method].values())
        return self.mean(method, "training", "tflops") if known else 0.0


def _spread(runs: Sequence[tuple[Any, int]]) -> list[Any]:
    return [value for value, count in runs for _ in range(count)]


def load_settings(rows: Path, pairs: Path) -> dict[str, SettingRows]:
    """All rows of a study by setting, in the order of their files' names.

    Raises:
        EvaluationError: A row's held-out pairs are missing.
    """
    stored = {file.stem: json.loads(file.read_text()) for file in sorted(pairs.glob("*.json"))}
    settings: dict[str, SettingRows] = {}
    for file in sorted(rows.glob("*--*--*.json")):
        row = json.loads(file.read_text())
        found = settings.setdefault(row["setting"], SettingRows(pairs=stored))
        if "policies" in row:
            found.policies.setdefault(row["method"], {})[row["seed"]] = row
            continue
        if row["pairs"] not in stored:
            raise EvaluationError(
                f"{file} is of the held-out pairs {row['pairs']}, expected the file {pairs / row['pairs']}.json: without it no subset "
                "and no prompt is known. Collect the study again."
            )
        found.rows.setdefault(row["method"], {})[row["seed"]] = row
    return settings


def setting_table(setting: SettingRows, methods: Sequence[str] = (), columns: Sequence[str] = ()) -> Table:
    """One row a method: accuracy overall and by subset, differences to the baselines, spread, relative time and operations of training.

    Args:
        setting: The rows.
        methods: Which methods, in which order; all if empty.
        columns: Which columns, by their names, in which order; if empty all but those of a category, `CATEGORY, %` and `CATEGORY minus
            BASELINE, points`, which have to be named.

    Raises:
        EvaluationError: A method has no row, or there is no such column.
    """
    shown = list(methods) or list(setting.rows)
    for method in shown:
        if method not in setting.rows:
            raise EvaluationError(f"No row of the method {method!r}, expected one of {', '.join(setting.rows)}; run it or name another.")
    baselines = [name for name in BASELINES if name in setting.rows]
    longest = max(shown, key=lambda method: len(setting.rows[method]))
    known = set(setting.outcomes(longest, sorted(setting.rows[longest])).categories) - {""}
    categories = sorted(known) if columns else []
    records = [_record(setting, method, baselines, categories) for method in shown]
    records.append(_length_record(setting, longest, categories))
    return chosen_columns(records, columns)


def chosen_columns(records: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> Table:
    """Records of the same keys as a table: all columns that any record fills, or some.

    Args:
        records: The first names the columns, "method" among them.
        columns: Which, beside "method", in which order; all if empty.

    Raises:
        EvaluationError: There is no such column.
    """
    names = [name for name in records[0] if name == "method" or any(record.get(name) for record in records)]
    for column in columns:
        if column not in names:
            raise EvaluationError(f"No column {column!r}, expected some of {', '.join(names)}; correct the name.")
    kept = ["method", *columns] if columns else names
    return Table(tuple(kept), tuple(tuple(record.get(name, "–") for name in kept) for record in records))


def _record(setting: SettingRows, method: str, baselines: Sequence[str], categories: Sequence[str]) -> dict[str, Cell]:
    seeds = sorted(setting.rows[method])
    record: dict[str, Cell] = {"method": f"`{method}`", **_accuracies(setting.outcomes(method, seeds), categories)}
    for baseline in baselines:
        gaps = None if method == baseline else setting.gaps(method, baseline)
        missing = "–" if method == baseline else OTHER_PAIRS
        record[f"minus {baseline}, points"] = points(gaps.mean()) if gaps else missing
        for category in categories:
            found = points(gaps.mean(category=category)) if gaps and category in gaps.categories else missing
            record[f"{category} minus {baseline}, points"] = found
    record["reward spread"] = f"{setting.mean(method, 'accuracy', 'reward_std'):.2f}"
    if baselines:
        own, dense = setting.mean(method, "training", "seconds"), setting.mean(baselines[0], "training", "seconds")
        record[f"training time over {baselines[0]}"] = f"{own / dense:.2f}" if own and dense else "–"
        if (own := setting.operations(method)) and (dense := setting.operations(baselines[0])):
            record[f"training, × {baselines[0]}"] = f"{own / dense:.2f}"
    record["seeds"] = str(len(seeds))
    return record


def _length_record(setting: SettingRows, method: str, categories: Sequence[str]) -> dict[str, Cell]:
    seeds = sorted(setting.rows[method])
    return {"method": LENGTH_RULE, **_accuracies(setting.outcomes(method, seeds, "longer"), categories)}


def _accuracies(outcomes: Outcomes, categories: Sequence[str]) -> dict[str, Cell]:
    subsets = sorted(set(outcomes.subsets))
    parts = {f"{subset or '(none)'}, %": _percent(outcomes.interval(subset)) for subset in subsets} if len(subsets) > 1 else {}
    kinds = {f"{category}, %": _percent(outcomes.interval(category=category)) for category in categories if category in outcomes.categories}
    return {"accuracy, %": _percent(outcomes.interval()), **parts, **kinds}


def _percent(interval: Interval) -> str:
    return format_interval(interval).replace(" %", "")


def points(interval: Interval) -> str:
    """A difference of two shares, in percentage points with its sign.

    Example:
        >>> points(Interval(0.0123, -0.004, 0.0286, 900, 300))
        '+1.2 [-0.4, +2.9]'
    """
    text = f"{interval.estimate * 100:+.1f}"
    return f"{text} [{interval.low * 100:+.1f}, {interval.high * 100:+.1f}]" if interval.known else text
