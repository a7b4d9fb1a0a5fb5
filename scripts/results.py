"""Numbers from runs into `results/`, and from there into the documents.

    python scripts/results.py collect runs/study            # the rows of a study, one JSON each, into results/STUDY/
    python scripts/results.py build                         # tables of README.md and docs/results.md, figures: from results/ alone
    python scripts/results.py publish hh_dense runs/hh-dense '$HH_RLHF=/data/hh-rlhf' 'OUT=runs/hh-dense'     # a single run
    python scripts/results.py judged benchmarks runs/benchmarks/judged '$DATA=/data'     # what `evaluate` said in METHOD/SEED/RUN there

A table stands between `<!-- table study=NAME setting=NAME -->` and `<!-- end of table -->`; `methods=a,b` and `columns="minus dense,
points;seeds"` choose and order its rows and columns, `pool=NAME` makes it one of best of n, `of=policies` one of policies, `of=laws` one
of the laws fitted to policies that learned from preferences; `<!-- table judged=NAME -->` is one of benchmarks over seeds, `<!-- table
suites=a,b,c -->` one of REFORM's perturbation suites over published runs of recipe `reform`. A figure is drawn for `<!-- figure study=NAME
setting=NAME pool=NAME methods=a,b name=FILE -->`. `build` rewrites what is between such lines and nothing else. Where `publish` or `judged`
is given further arguments `NAME=PATH`, NAME is written wherever PATH stands, so that results name no machine's folders.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from rewardproof.errors import CheckpointError, ConfigError, EvaluationError, RewardproofError
from rewardproof.evaluation import BenchmarkScore, ScoredRow, judge_benchmarks, over_seeds
from rewardproof.report import Table, format_interval, hacking_figure, markdown_table, policy_figure, regimes_figure
from rewardproof.stages.judging import FOLDER
from rewardproof.stages.optimisation_tables import laws_table, picks, picks_table, policies, policies_table
from rewardproof.stages.study_settings import first_difference
from rewardproof.stages.study_tables import BASELINES, SettingRows, load_settings, points, setting_table
from rewardproof.statistics import Interval, seed_interval

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/results.md")
TABLE = re.compile(r"^<!-- table (?P<options>[^\n]*?) -->\n.*?^<!-- end of table -->$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"^<!-- figure (?P<options>[^\n]*?) -->$", re.MULTILINE)
KEPT = (
    "headline",
    "rows",
    "accuracy",
    "best_of_n",
    "gold_gain_over_dense",
    "phases_seconds",
    "scoring_seconds",
    "parameters",
    "members",
    "merge",
    "models",
    "more_than_first",
    "benchmarks",
    "precision",
    "seconds",
)
DROPPED = ("calibration", "examples", "widest", "highest", "lowest")


def collect(study: Path, results: Path) -> list[Path]:
    """Copy a study's rows and the held-out pairs they are of; the files that are new. Pairs without categories give way to the same with.

    Raises:
        CheckpointError: `results` has another row of the same name, or the study has none.
    """
    rows = sorted((study / "cells").glob("*.json"))
    if not rows:
        raise CheckpointError(f"{study} has no rows in cells/, expected the directory of a study; run `rewardproof study` first.")
    target = results / json.loads(rows[0].read_text())["study"]
    wanted = {f"pairs/{row['pairs']}.json" for row in (json.loads(file.read_text()) for file in rows) if "pairs" in row}
    files = {target / file.name: file for file in rows} | {target / name: study / name for name in sorted(wanted)}
    richer: list[Path] = []
    for place, file in files.items():
        if not place.exists():
            continue
        old, now = json.loads(place.read_text()), json.loads(file.read_text())
        if place.parent.name == "pairs" and ("categories" in old) != (
            "categories" in now
        ):  # a name of pairs is older than their categories
            if now.pop("categories", None):
                richer.append(place)
            old.pop("categories", None)
        if found := first_difference(old, now):
            raise CheckpointError(
                f"{place} has {found.key}={str(found.old)[:80]!r} where {file} has {str(found.new)[:80]!r}, expected equal rows: a row "
                "is never overwritten. Give the method or setting a new name, or delete the row that is wrong."
            )
    new = [place for place in files if not place.exists() or place in richer]
    for place in new:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(files[place].read_text())
    return new


def built(text: str, results: Path) -> str:
    """A document's text with its tables as `results` has them now."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- table {found['options']} -->\n\n{_table(found['options'], results)}\n\n<!-- end of table -->"

    return TABLE.sub(table, text)


def _table(options: str, results: Path) -> str:
    if options.startswith("judged="):
        return markdown_table(_judged_table(json.loads((results / f"{options.removeprefix('judged=')}.json").read_text())))
    if options.startswith("suites="):
        runs = options.removeprefix("suites=").split(",")
        return markdown_table(_suites_table([json.loads((results / f"{run}.json").read_text()) for run in runs]))
    asked = _Asked.read(options, results)
    if asked.pool:
        return markdown_table(picks_table(asked.rows, asked.pool, asked.methods, asked.columns))
    if asked.of == "policies":
        return markdown_table(policies_table(asked.rows, asked.methods, asked.columns))
    if asked.of == "laws":
        if (laws := laws_table(asked.rows, asked.methods)) is None:
            raise EvaluationError(f"Got {options!r} without methods=, expected some that learned from preferences; name them.")
        return markdown_table(laws)
    return markdown_table(setting_table(asked.rows, asked.methods, asked.columns))


class _Asked(NamedTuple):
    """What a document's line asks for."""

    name: str
    rows: SettingRows
    pool: str
    of: Literal["", "policies", "laws"]
    methods: list[str]
    columns: list[str]

    @classmethod
    def read(cls, options: str, results: Path) -> _Asked:
        given = dict(token.split("=", 1) for token in shlex.split(options) if "=" in token)
        unknown = set(given) - {"study", "setting", "methods", "columns", "pool", "of", "name"}
        of = given.get("of", "")
        if unknown or not {"study", "setting"} <= set(given) or of not in ("", "policies", "laws") or (of and "pool" in given):
            raise ConfigError(
                f"Got {options!r}, expected study=, setting=, where wanted pool= or of=policies|laws, methods=, columns=; correct its line."
            )
        settings = load_settings(results / given["study"], results / given["study"] / "pairs")
        if given["setting"] not in settings:
            raise ConfigError(
                f"{results / given['study']} has no row of the setting {given['setting']!r}, expected one of "
                f"{', '.join(settings) or 'none'}; collect the study first."
            )
        methods = [name for name in given.get("methods", "").split(",") if name]
        columns = [name.strip() for name in given.get("columns", "").split(";") if name]
        pool = given.get("pool", "")
        name = given.get("name") or f"{given['study']}-{given['setting']}-{pool or 'policies'}".replace("_", "-")
        return cls(name, settings[given["setting"]], pool, of, methods, columns)


def build(root: Path) -> list[str]:
    """Write the tables of all documents; the documents that changed."""
    changed: list[str] = []
    for name in DOCUMENTS:
        text = (root / name).read_text()
        new = built(text, root / "results")
        if new != text:
            (root / name).write_text(new)
            changed.append(name)
    return changed


def draw(root: Path) -> list[Path]:
    """The figures that a document shows of how the experts of a study's method and the subsets relate, mean over seeds."""
    documents = "".join((root / name).read_text() for name in DOCUMENTS)
    drawn: list[Path] = []
    for study in sorted(path.parent for path in (root / "results").glob("*/pairs")):
        for setting, found in load_settings(study, study / "pairs").items():
            for method, rows in found.rows.items():
                told = [row["experts"] for row in rows.values() if "regime_weights" in row.get("experts", {})]
                name = f"regimes-{setting}-{method}.png"
                if told and name in documents:
                    drawn.append(_regimes(told, root / "docs" / "figures" / name))
    for found in FIGURE.finditer(documents):
        asked = _Asked.read(found["options"], root / "results")
        target = root / "docs" / "figures" / f"{asked.name}.png"
        figure = hacking_figure(picks(asked.rows, asked.pool, asked.methods)) if asked.pool else None
        (figure or policy_figure(policies(asked.rows, asked.methods))).savefig(target, dpi=150)
        drawn.append(target)
    return drawn


def _regimes(told: list[dict[str, Any]], file: Path) -> Path:
    regimes = list(told[0]["regime_weights"])
    tables = [_in_order(np.array([list(entry["regime_weights"][regime].values()) for regime in regimes])) for entry in told]
    weights = dict(zip(regimes, np.mean(tables, axis=0), strict=True))
    information = np.mean([list(entry["regime_information"].values()) for entry in told], axis=0)
    layers = [f"layer {layer}" for layer in told[0]["regime_information"]]
    experts = [f"{number + 1}" for number in range(next(iter(weights.values())).shape[1])]
    file.parent.mkdir(exist_ok=True)
    regimes_figure(weights, information, layers, expert_names=experts).savefig(file, dpi=150)
    return file


def _in_order(weights_RLE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Experts by how much more they work for the first regime than for the others: their numbers mean nothing from seed to seed."""
    more_E = weights_RLE[0].mean(axis=0) - weights_RLE[1:].mean(axis=(0, 1))
    return weights_RLE[:, :, np.argsort(-more_E, kind="stable")]


def published(run: Path) -> dict[str, Any]:
    """The parts of a run's report worth keeping, with its settings and provenance."""
    report = json.loads((run / "report.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = {key: _without(report[key]) for key in KEPT if key in report}
    return {**kept, "peak_memory_gb": report["peak_memory_gb"], "config": config, "provenance": provenance}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry) for key, entry in value.items() if key not in DROPPED}
    return [_without(entry) for entry in value] if isinstance(value, list) else value


def publish(name: str, run: Path, renamings: list[str], results: Path) -> Path:
    """Write `results/NAME.json` of a single run."""
    return _write(results / f"{name}.json", published(run), renamings)


def _write(target: Path, value: dict[str, Any], renamings: list[str]) -> Path:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    for renaming in sorted(renamings, key=lambda entry: -len(entry)):
        shown, _, path = renaming.partition("=")
        text = text.replace(path, shown)
    target.parent.mkdir(exist_ok=True)
    target.write_text(text + "\n")
    return target


def judged(name: str, folder: Path, renamings: list[str], results: Path) -> Path:
    """Write `results/NAME.json` of what `evaluate` said, in `folder/METHOD/SEED/RUN`; the others are compared with `dense`.

    Raises:
        CheckpointError: Not every method has the same seeds.
    """
    methods = {method.name: _folders(method) for method in sorted(_folders(folder), key=lambda one: (one.name != BASELINES[0], one))}
    seeds = {name: [seed.name for seed in found] for name, found in methods.items()}
    baseline = BASELINES[0]
    if any(found != seeds.get(baseline) for found in seeds.values()) or not seeds:
        raise CheckpointError(
            f"{folder} holds {seeds or 'nothing'}, expected METHOD/SEED/RUN with {baseline} among the methods and the same seeds for all; "
            "evaluate the rest."
        )
    for method, found in methods.items():
        runs = [{run.name for run in _folders(seed) if (run / "report.json").is_file()} for seed in found]
        if not all(runs) or any(one != runs[0] for one in runs) or any(len(_folders(seed)) > len(runs[0]) for seed in found):
            raise CheckpointError(
                f"{folder / method} has the finished runs {[sorted(one) for one in runs]} by seed, expected the same of every seed and "
                "none that is not finished: a number would be of other rows. Evaluate the rest."
            )
    scores = {method: [judge_benchmarks(_judged_rows(seed)) for seed in found] for method, found in methods.items()}
    value: dict[str, Any] = {"seeds": seeds[baseline], "benchmarks": {}, "runs": {}}
    for benchmark in scores[baseline][0]:
        own = {method: [seed[benchmark] for seed in found] for method, found in scores.items() if benchmark in found[0]}
        value["benchmarks"][benchmark] = _over_seeds(own, baseline)
    for run in sorted(folder.glob("*/*/*")):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        value["runs"]["/".join(run.parts[-3:])] = {"config": settings, "provenance": json.loads((run / "provenance.json").read_text())}
    return _write(results / f"{name}.json", value, renamings)


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def _judged_rows(seed: Path) -> list[ScoredRow]:
    lines = (line for file in sorted(seed.glob(f"*/{FOLDER}/*.jsonl")) for line in file.read_text().splitlines())
    return [ScoredRow.from_dict(row) for line in lines for row in json.loads(line)["rows"]]


def _over_seeds(scores: dict[str, list[BenchmarkScore]], baseline: str) -> dict[str, Any]:
    first = scores[baseline][0]
    lines: list[dict[str, Any]] = []
    for place, line in enumerate(first.lines):
        by_method = {method: [seed.lines[place] for seed in found] for method, found in scores.items()}
        entry: dict[str, Any] = {"label": line.label, "depth": line.depth, "rows": line.n, "longest": line.estimate("longest")}
        entry["methods"] = {}
        for method, own in by_method.items():
            entry["methods"][method] = {"number": over_seeds(own).as_dict()}
            if method != baseline:
                entry["methods"][method][f"minus {baseline}"] = over_seeds(own, by_method[baseline]).as_dict()
        lines.append(entry)
    return {"title": first.title, "number": first.number, "differences": list(first.differences), "lines": lines}


def _judged_table(found: dict[str, Any]) -> Table:
    lines = [(benchmark, line) for benchmark in found["benchmarks"].values() for line in benchmark["lines"]]
    columns = list(dict.fromkeys((method, what) for _, line in lines for method, own in line["methods"].items() for what in own))
    names = [f"`{method}`, %" if what == "number" else f"`{method}` {what}, points" for method, what in columns]
    rows: list[tuple[Any, ...]] = []
    for benchmark, line in lines:
        part = " (of a part of it)" if benchmark["differences"] else ""
        label = f"{'· ' * line['depth']}{line['label']}" + ("" if line["depth"] else part)
        intervals = [(what, line["methods"].get(method, {}).get(what)) for method, what in columns]
        shown = ["–" if one is None else _shown(Interval(**one), what) for what, one in intervals]
        rows.append((label, *shown, f"{100 * line['longest']:.1f}", line["rows"]))
    return Table(("data", *names, "longest wins, %", "rows"), tuple(rows))


def _suites_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Accuracy under REFORM's suites of the searched model and the corrected one; intervals over seeds."""
    by_run = [run["members"][0]["reform"]["robustness"] for run in runs]
    rows: list[tuple[Any, ...]] = []
    for name in by_run[0]:
        before, after, gain = (seed_interval([run[name][when]["estimate"] for run in by_run]) for when in ("before", "after", "gain"))
        pairs = sum(run[name]["gain"]["n"] for run in by_run)
        rows.append((name, _shown(before.of_a_share(), "number"), _shown(after.of_a_share(), "number"), points(gain), pairs))
    return Table(("pairs", "searched model, %", "corrected, %", "gain, points", "pairs of all seeds"), tuple(rows))


def _shown(interval: Interval, what: str) -> str:
    return format_interval(interval).replace(" %", "") if what == "number" else points(interval)


def main(verb: str = "", *arguments: str) -> None:
    """Run a verb; see the module."""
    match verb, arguments:
        case "collect", (study,):
            print(f"{len(collect(Path(study), ROOT / 'results'))} new files")
        case "build", ():
            print(f"changed: {', '.join(build(ROOT)) or 'nothing'}; drawn: {len(draw(ROOT))}")
        case "publish", (name, run, *renamings):
            print(publish(name, Path(run), renamings, ROOT / "results").relative_to(ROOT))
        case "judged", (name, folder, *renamings):
            print(judged(name, Path(folder), renamings, ROOT / "results").relative_to(ROOT))
        case _:
            raise ConfigError(
                f"Got {' '.join((verb, *arguments))!r}, expected collect OUT, build, publish NAME RUN [NAME=PATH …], or judged NAME FOLDER "
                "[NAME=PATH …]; write one."
            )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RewardproofError as error:
        sys.exit(f"error: {error}")
