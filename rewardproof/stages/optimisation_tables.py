"""Rows of a study into tables of over-optimisation: what models pick among many answers, and what policies make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.config import parse
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import BestOfNRuns, Hacking, PolicyHacking, PolicyRuns
from rewardproof.policy.direct_alignment import DirectAlignment
from rewardproof.report.tables import Cell, Table, format_gain, format_interval
from rewardproof.stages.law_tables import law_cells
from rewardproof.stages.study_tables import SettingRows, chosen_columns
from rewardproof.statistics import Interval


def picks_of(setting: SettingRows, pool: str, method: str, seeds: Sequence[int] = ()) -> BestOfNRuns:
    """What a method's models pick from a pool, all seeds together or some."""
    rows = setting.rows[method]
    return BestOfNRuns.joined([rows[seed]["best_of_n"][pool] for seed in seeds or sorted(rows)])


def picks(setting: SettingRows, pool: str, methods: Sequence[str] = ()) -> dict[str, Hacking]:
    """How methods fare while best of n optimises against them.

    Raises:
        EvaluationError: A method has no row with that pool.
    """
    return {method: picks_of(setting, pool, method).summary() for method in _judged(setting, pool, methods)}


def policies_of(setting: SettingRows, method: str, seeds: Sequence[int] = ()) -> PolicyRuns:
    """All policies of a method, or those of some seeds; those against one reward model are one draw."""
    rows = setting.policies[method]
    chosen = list(seeds or sorted(rows))
    models = [seed for seed in chosen for _ in range(rows[seed]["config"]["runs"])]
    return PolicyRuns.joined([rows[seed]["policies"] for seed in chosen], models=models)


def way_of(row: Mapping[str, Any]) -> str:
    """How a row's policies were optimised: the name of the loss of direct alignment, or nothing on policy."""
    direct = row["config"].get("align", {}).get("direct")
    return parse(DirectAlignment, direct).name if direct else ""


def by_way(setting: SettingRows, methods: Sequence[str]) -> list[list[str]]:
    """Methods on policy and off policy apart: the same divergence means another thing to each, so no table or figure has both."""
    off = [method for method in methods if any(map(way_of, setting.policies[method].values()))]
    return [part for part in ([method for method in methods if method not in off], off) if part]


def policies(setting: SettingRows, methods: Sequence[str] = ()) -> dict[str, PolicyHacking]:
    """How methods fare while policies optimise against them, each over the range of distances that its own runs covered.

    Raises:
        EvaluationError: A method has no policies, there are none, or some were optimised on policy and some off policy.
    """
    for method in methods:
        if method not in setting.policies:
            raise EvaluationError(f"No policies of {method!r}, expected one of {', '.join(setting.policies) or 'none'}; run it.")
    if not setting.policies:
        raise EvaluationError("No policies, expected those of one method at least; run the cells of a method that has align.")
    if len(ways := by_way(setting, list(methods or setting.policies))) > 1:
        raise EvaluationError(
            f"Got policies on policy ({', '.join(ways[0])}) and off policy ({', '.join(ways[1])}), expected one way: distances of both do "
            "not compare, and they would share an axis. Name the methods of one (methods=)."
        )
    return {method: policies_of(setting, method).summary() for method in methods or setting.policies}


def picks_table(setting: SettingRows, pool: str, methods: Sequence[str] = (), columns: Sequence[str] = ()) -> Table:
    """One row a method: gold of its pick, what it lost on the way, what it promised, and what it costs.

    Args:
        setting: The rows.
        pool: Which of the setting's pools.
        methods: Which methods, in which order; all that were judged if empty. Gains are over the first.
        columns: Which columns, by their names, in which order; all if empty.

    Raises:
        EvaluationError: A method has no row with that pool, or there is no such column.
    """
    shown = _judged(setting, pool, methods)
    found = picks(setting, pool, shown)
    first = found[shown[0]]
    cost = setting.mean(shown[0], "forward_gflops")
    records: list[dict[str, Cell]] = []
    for method, one in found.items():
        records.append(
            {
                "method": f"`{method}`",
                f"gold of best of {one.ns[-1]}": _number(one.gold[-1]),
                "above a random answer": format_gain(one.gain[-1]),
                f"minus {shown[0]}": "–" if method == shown[0] else _difference(setting, pool, method, shown[0]),
                "lost since the peak": _number(one.fall),
                "peak at n": str(one.peak_n),
                "characters": f"{one.lengths[0]:.0f} → {one.lengths[-1]:.0f}" if one.lengths else "",
                "promised beyond gold, SD": _number(one.gap, digits=2),
                "training, TFLOP": f"{setting.mean(method, 'training', 'tflops'):.1f}",
                "a forward pass, × " + shown[0]: f"{setting.mean(method, 'forward_gflops') / cost:.2f}",
                "seeds": str(one.n_seeds),
            }
        )
    for name, cell in (("a random answer", _number(first.random_gold)), ("gold's own choice", f"{first.ceiling[-1]:.3f}")):
        records.append({"method": name, f"gold of best of {first.ns[-1]}": cell})
    return chosen_columns(records, columns)


def policies_table(setting: SettingRows, methods: Sequence[str] = (), columns: Sequence[str] = ()) -> Table:
    """One row a method: gold before and after, distance, what was lost on the way, and what was promised at a distance that all reached.

    Args:
        setting: The rows.
        methods: Which methods, in which order; all if empty. Gains are over the first.
        columns: Which columns, by their names, in which order; all if empty.

    Raises:
        EvaluationError: A method has no policies, there is no such column, or some were optimised on policy and some off policy.
    """
    found = policies(setting, methods)
    first = next(iter(found))
    runs = {method: policies_of(setting, method) for method in found}
    farthest = min(one.reach for one in runs.values())
    records: list[dict[str, Cell]] = []
    for method, one in found.items():
        seeds = sorted(set(setting.policies[method]) & set(setting.policies[first]))
        paired = (policies_of(setting, method, seeds), policies_of(setting, first, seeds)) if seeds and method != first else None
        gain = None if paired is None else paired[0].minus(paired[1])
        matched = None if paired is None else paired[0].minus(paired[1], distance=farthest)
        gap = runs[method].gap(farthest)
        judged = {
            "gold at first": one.start_gold, "gold at peak": one.peak_gold, "gold at last": one.end_gold, "lost since the peak": one.fall,
        }  # fmt: skip
        records.append(
            {
                "method": f"`{method}`",
                **{name: "–" if value is None else _number(value) for name, value in judged.items()},
                "peak at KL, nats": "–" if one.peak_kl is None else f"{one.peak_kl:.1f}",
                f"minus {first}": "–" if gain is None else format_gain(gain),
                f"minus {first} at KL {farthest**2:.1f}": "–" if matched is None else format_gain(matched),
                "falls from KL, nats": "–" if one.onset_kl is None else f"{one.onset_kl:.1f}",
                f"promised beyond gold at KL {farthest**2:.1f}, SD": "–" if gap is None else _number(gap, digits=2),
                "KL at last, nats": f"{one.end_kl:.2f}",
                "tokens": f"{one.tokens[0]:.0f} → {one.tokens[1]:.0f}",
                "runs": str(one.n_runs),
            }
        )
    return chosen_columns(records, columns)


def laws_table(setting: SettingRows, methods: Sequence[str]) -> Table | None:
    """The laws of direct alignment, one a loss: of all checkpoints of all its methods, whatever their beta, with and without the start.

    Args:
        setting: The rows.
        methods: Methods off policy. Those of one loss that differ in more than beta, or were judged after other numbers of updates, are
            fitted apart, and named by what they add to the loss and how much.
    """
    pooled: dict[tuple[str, str, tuple[int, ...]], list[tuple[int, Mapping[str, Any]]]] = {}
    for method in methods:
        for seed, row in setting.policies[method].items():
            direct = parse(DirectAlignment, row["config"]["align"]["direct"])
            key = direct.weighted_name, direct.model_dump_json(exclude={"beta"}), tuple(row["policies"]["steps"])
            pooled.setdefault(key, []).append((seed, row))
    records: list[dict[str, Cell]] = []
    for (loss, _, steps), rows in pooled.items():
        models = [seed for seed, row in rows for _ in range(row["config"]["runs"])]
        runs = PolicyRuns.joined([row["policies"] for _, row in rows], models=models)
        for measure, found in runs.laws().items():
            told = {"method": f"`{loss}`", "updates": str(steps[-1]), "fitted to": measure, **law_cells(found)}
            records.append({**told, "runs": str(len(runs.kl_SEP))})
    return chosen_columns(records, ()) if records else None


def _judged(setting: SettingRows, pool: str, methods: Sequence[str]) -> list[str]:
    with_pool = [name for name, rows in setting.rows.items() if all(pool in row.get("best_of_n", {}) for row in rows.values())]
    for method in methods:
        if method not in with_pool:
            raise EvaluationError(f"No row of {method!r} with the pool {pool!r}, expected one of {', '.join(with_pool) or 'none'}; run it.")
    if not with_pool:
        raise EvaluationError(f"No row with the pool {pool!r}, expected one at least; name another pool, or run the study.")
    return list(methods) or with_pool


def _difference(setting: SettingRows, pool: str, method: str, baseline: str) -> str:
    seeds = sorted(set(setting.rows[method]) & set(setting.rows[baseline]))
    found = picks_of(setting, pool, method, seeds).minus(picks_of(setting, pool, baseline, seeds)) if seeds else None
    return "–" if found is None else format_gain(found)


def _number(interval: Interval, digits: int = 3) -> str:
    return format_interval(interval, percent=False, digits=digits)
