"""Result files in RewardBench's own shapes, of both versions: what its `run_rm`, `run_dpo` and `run_v2` leave for the leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewardproof.artifacts import RunDirectory
from rewardproof.data import ReadCounts, Row
from rewardproof.data.encoding import render
from rewardproof.evaluation import BenchmarkScore, ScoredRow, benchmark_of
from rewardproof.evaluation.rewardbench import is_prior
from rewardproof.evaluation.rewardbench_2 import n_correct, row_credit
from rewardproof.scoring import Judge
from rewardproof.stages.evaluate_settings import Evaluate
from rewardproof.stages.judging import as_asked, rows_of

FOLDERS = {"rewardbench": "rewardbench", "rewardbench_2": "rewardbench-2"}
"""Where each benchmark's files go in the run directory."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A row as it was read, its texts as the model read them, and its scores."""

    row: Row
    texts: list[str]
    scored: ScoredRow


def write_rewardbench_files(
    directory: RunDirectory, model: Judge, config: Evaluate, judged: dict[str, list[ScoredRow]], scores: dict[str, BenchmarkScore]
) -> list[str]:
    """Write the files of each version of which there are rows; says which, from the run directory.

    Rows are read again for their texts, and matched by position: ids are not each once in what has been published.

    Args:
        directory: The run directory.
        model: Whose template writes the texts.
        config: How rows are read.
        judged: Every source's rows.
        scores: The benchmarks' numbers.
    """
    written: list[str] = []
    for name in FOLDERS:
        if name not in scores:
            continue
        rows = [one for source, own in judged.items() for one in _texts(model, config, source, own, name)]
        prior = [one for one in rows if is_prior(one.scored)]
        for kind, part in (("pref-sets", prior), ("eval-set", [one for one in rows if not is_prior(one.scored)])):
            if part:
                written += _write(directory, config, f"{FOLDERS[name]}/{kind}", _COLUMNS[name], scores[name], part)
    return written


def _texts(model: Judge, config: Evaluate, source: str, scored: Sequence[ScoredRow], benchmark: str) -> list[_Judged]:
    known = {row.index: row for row in scored if benchmark_of(row) == benchmark}
    if not known:
        return []
    found: list[_Judged] = []
    for index, row in enumerate(rows_of(config, source, ReadCounts())):
        if index in known:
            asked = as_asked(row.group, config.as_published.system)
            texts = [render(asked, answer, model.tokenizer) for answer in asked.answers]
            found.append(_Judged(row, texts, known[index]))
    return found


def _write(
    directory: RunDirectory,
    config: Evaluate,
    place: str,
    columns: Callable[[Sequence[_Judged]], dict[str, list[Any]]],
    score: BenchmarkScore,
    rows: Sequence[_Judged],
) -> list[str]:
    about = {
        "model": config.submitted_as,
        "model_type": "Seq. Classifier" if config.implicit is None else "DPO",
        "chat_template": config.as_published.chat_template or "tokenizer",
    }
    found = columns(rows)
    names = sorted(set(found["subset"]))
    means = {line.label: line.estimate() for line in score.lines if line.label in names}
    files = {f"{place}/{config.submitted_as}.json": {**about, **{name: means[name] for name in names if name in means}}}
    files[f"{place}-scores/{config.submitted_as}.json"] = {**found, **about}
    for file, content in files.items():
        directory.write_json(file, content)
    return list(files)


def _first_version(rows: Sequence[_Judged]) -> dict[str, list[Any]]:
    return {
        "text_chosen": [one.texts[0] for one in rows],
        "text_rejected": [one.texts[1] for one in rows],
        "results": [int(one.scored.rewards[0] > one.scored.rewards[1]) for one in rows],
        "subset": [one.scored.path_names[0] if is_prior(one.scored) else one.scored.subset for one in rows],
        "id": [_id(one) for one in rows],
        "scores_chosen": [one.scored.rewards[0] for one in rows],
        "scores_rejected": [one.scored.rewards[1] for one in rows],
    }


def _second_version(rows: Sequence[_Judged]) -> dict[str, list[Any]]:
    return {
        "text": [one.texts for one in rows],
        "results": [row_credit(one.scored) for one in rows],
        "subset": [one.scored.subset for one in rows],
        "id": [_id(one) for one in rows],
        "scores": [list(one.scored.rewards) for one in rows],
        "num_correct": [n_correct(one.scored) for one in rows],
    }


def _id(one: _Judged) -> Any:
    """The row's own identifier, a number where it is one."""
    return one.row.raw.get("id", one.scored.id)


_COLUMNS: dict[str, Callable[[Sequence[_Judged]], dict[str, list[Any]]]] = {
    "rewardbench": _first_version,
    "rewardbench_2": _second_version,
}
