"""A published score as the weighted mean of parts' means, where a part gives every one of its rows a credit by the benchmark's rule.

The same rule gives the credit of two judges that only count characters, because benchmarks differ in how far length solves them.
"""

# Shapes: A answers of a row, N rows of a part, J judges.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rewardproof.evaluation.scored import ScoredRow
from rewardproof.statistics import Interval, WeightedPart, weighted_interval
from rewardproof.statistics.checks import FloatArray

Judge = Literal["reward", "longest", "shortest"]
JUDGES: tuple[Judge, ...] = ("reward", "longest", "shortest")
"""Who ranks the answers: the model, the rule that the longest is best, and the rule that the shortest is."""

Credit = Callable[[FloatArray, ScoredRow], float]
"""What a row earns under a ranking of its answers."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows whose credits are averaged.

    Attributes:
        name: What the benchmark calls them.
        credit_NJ: Credit of each row under each of `JUDGES`, shape `(N, J)`.
        clusters: What an interval resamples, one a row: its prompt's key.
        stratum: Parts that are of the same clusters and whose intervals resample them together; their own if empty.
        counted: Whether its rows are its own, and not those of other parts taken together.
    """

    name: str
    credit_NJ: FloatArray
    clusters: tuple[str, ...]
    stratum: str = ""
    counted: bool = True

    def mean(self, judge: Judge = "reward") -> float:
        """Mean credit under a judge."""
        return float(self.credit_NJ[:, JUDGES.index(judge)].mean())


@dataclass(frozen=True, slots=True)
class Line:
    """One number of a benchmark's table.

    Attributes:
        label: What it is called.
        weights: What each part's mean is multiplied with.
        parts: The parts.
        depth: 0 for the leaderboard's number, 1 for what it is made of, 2 for what that is made of.
    """

    label: str
    weights: tuple[float, ...]
    parts: tuple[Part, ...]
    depth: int = 0

    @property
    def n(self) -> int:
        """Rows behind it."""
        return sum(len(part.clusters) for part in self.parts if part.counted)

    def estimate(self, judge: Judge = "reward") -> float:
        """The number under a judge."""
        return sum(weight * part.mean(judge) for weight, part in zip(self.weights, self.parts, strict=True))

    def interval(self, *, seed: int = 0) -> Interval:
        """The model's number with its interval over prompts."""
        parts = [
            WeightedPart(weight, part.credit_NJ[:, 0], part.clusters, part.stratum)
            for weight, part in zip(self.weights, self.parts, strict=True)
        ]
        return weighted_interval(parts, seed=seed)


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """What a benchmark says of a model.

    Attributes:
        title: The benchmark's name.
        number: What the leaderboard's number is.
        lines: The leaderboard's number first, then what it is made of.
        differences: Where the rows are not those of the whole benchmark, as far as their number and names say. WebGPT and AlpacaEval have
            no number of their own and none is ever told.
        further: Other numbers that the benchmark, or a reader of it, asks for.
    """

    title: str
    number: str
    lines: tuple[Line, ...]
    differences: tuple[str, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the rows are those of the whole benchmark, as far as their number says."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        first, *rest = self.lines
        return {
            "number": self.number,
            "score": first.interval().as_dict(),
            "longest": first.estimate("longest"),
            "shortest": first.estimate("shortest"),
            "rows": first.n,
            "complete": self.complete,
            "differences": list(self.differences),
            "parts": {
                line.label: {
                    **line.interval().as_dict(),
                    "longest": line.estimate("longest"),
                    "shortest": line.estimate("shortest"),
                    "rows": line.n,
                }
                for line in rest
            },
            **self.further,
        }


def part_of(name: str, rows: Sequence[ScoredRow], credit: Credit, *, stratum: str = "") -> Part:
    """The rows' credits under all judges.

    Args:
        name: What the part is called.
        rows: Its rows, at least one.
        credit: The benchmark's rule.
        stratum: What other parts of the same prompts are drawn together with.

    Example:
        >>> row = ScoredRow((0.2, 0.1), (1.0, 0.0), (3, 5), ("a", "b"), "p")
        >>> part_of("one", [row], lambda ranks_A, row: float(ranks_A[0] > ranks_A[1])).credit_NJ
        array([[1., 0., 1.]])
    """
    credits = [[credit(ranks_A, row) for ranks_A in rankings(row)] for row in rows]
    return Part(name, np.asarray(credits, dtype=np.float64), tuple(row.prompt for row in rows), stratum)


def rankings(row: ScoredRow) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What each judge says of a row's answers, higher is better; in the order of `JUDGES`."""
    lengths_A = np.asarray(row.lengths, dtype=np.float64)
    return np.asarray(row.rewards, dtype=np.float64), lengths_A, -lengths_A


def line_of(label: str, part: Part, *, depth: int) -> Line:
    """A part as a line of its own."""
    return Line(label, (1.0,), (part,), depth)


def mean_line(label: str, parts: Sequence[Part], *, depth: int) -> Line:
    """The unweighted mean of parts."""
    return Line(label, (1 / len(parts),) * len(parts), tuple(parts), depth)


def best_beats_all(ranks_A: FloatArray, row: ScoredRow) -> float:
    """1 where the answer that the data likes best is strictly above every other; a tie is wrong.

    Example:
        >>> row = ScoredRow((0.0,) * 3, (0.0, 1.0, 0.0), (1, 1, 1), ("a", "b", "c"), "p")
        >>> best_beats_all(np.array([0.1, 0.2, 0.0]), row), best_beats_all(np.array([0.2, 0.2, 0.0]), row)
        (1.0, 0.0)
    """
    best = int(np.argmax(row.scores or ()))
    return float(ranks_A[best] > np.delete(ranks_A, best).max())


def differences_from(expected: Mapping[str, int], found: Mapping[str, int]) -> tuple[str, ...]:
    """Parts of which other than the expected number of rows was judged.

    Example:
        >>> differences_from({"Chat": 3, "Code": 2}, {"Chat": 2, "Code": 2})
        ('Chat: 2 of 3 rows',)
    """
    return tuple(f"{name}: {found.get(name, 0)} of {rows} rows" for name, rows in expected.items() if found.get(name, 0) != rows)


def by_name(rows: Sequence[ScoredRow], name: Callable[[ScoredRow], str]) -> dict[str, list[ScoredRow]]:
    """Rows by a name, both in order of appearance."""
    found: dict[str, list[ScoredRow]] = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    return found
