"""LLMBar: which of two answers follows the instruction; one natural set and four adversarial ones, each counted alike.

Reference:
    Zeng et al., LLMBar, arXiv:2310.07641, table 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewardproof.evaluation.published import BenchmarkScore, best_beats_all, by_name, differences_from, line_of, mean_line, part_of
from rewardproof.evaluation.scored import ScoredRow

ROWS = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
"""The sets and the rows of each; all but the first are adversarial."""


def is_row(row: ScoredRow) -> bool:
    """Whether a row is one of LLMBar's."""
    return row.format == "llmbar"


def judge(rows: Sequence[ScoredRow]) -> BenchmarkScore:
    """LLMBar's numbers. A tie is wrong: a reward that sees no difference has not chosen."""
    found = by_name(rows, _set)
    parts = {name: part_of(name, own, best_beats_all) for name, own in found.items()}
    adversarial = [part for name, part in parts.items() if name in ROWS and name != "Natural"]
    lines = [line_of(name, parts[name], depth=1) for name in parts if name == "Natural"]
    if adversarial:
        lines += [mean_line("Adversarial", adversarial, depth=1), *(line_of(part.name, part, depth=2) for part in adversarial)]
    others = [name for name in parts if name not in ROWS]
    lines += [line_of(f"{name} (not counted)", parts[name], depth=1) for name in others]
    differences = differences_from(ROWS, {name: len(own) for name, own in found.items()})
    differences += tuple(f"{name}: none of the five sets" for name in others)
    first = mean_line("LLMBar", [part for name, part in parts.items() if name in ROWS] or list(parts.values()), depth=0)
    return BenchmarkScore("LLMBar", "mean of the five sets", (first, *lines), differences)


def _set(row: ScoredRow) -> str:
    """The set that a row is of, by the name of its file or of the folder that holds that."""
    return next((name for place in row.path_names[:2] for name in ROWS if name.lower() in place), row.subset or "set unknown")
