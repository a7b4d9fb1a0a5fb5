"""The public benchmarks by name: which rows are whose, and what each makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewardproof.evaluation import alpaca_eval, human_pairs, llmbar, preference_hack, rewardbench, rewardbench_2, rm_bench, rmb
from rewardproof.evaluation.published import BenchmarkScore
from rewardproof.evaluation.scored import ScoredRow


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark.

    Attributes:
        is_row: Whether a row is one of its.
        judge: Its numbers on those rows.
    """

    is_row: Callable[[ScoredRow], bool]
    judge: Callable[[Sequence[ScoredRow]], BenchmarkScore]


BENCHMARKS: dict[str, Benchmark] = {
    "rewardbench": Benchmark(rewardbench.is_row, rewardbench.judge),
    "rewardbench_2": Benchmark(rewardbench_2.is_row, rewardbench_2.judge),
    "rm_bench": Benchmark(rm_bench.is_row, rm_bench.judge),
    "rmb": Benchmark(rmb.is_row, rmb.judge),
    "llmbar": Benchmark(llmbar.is_row, llmbar.judge),
    "hh": Benchmark(human_pairs.is_hh, human_pairs.judge_hh),
    "webgpt": Benchmark(human_pairs.is_webgpt, human_pairs.judge_webgpt),
    "alpaca_eval": Benchmark(alpaca_eval.is_row, alpaca_eval.judge),
    "biased_pairs": Benchmark(preference_hack.is_row, preference_hack.judge),
}
"""Every benchmark, in the order of the table."""


def benchmark_of(row: ScoredRow) -> str:
    """The benchmark that a row is of, or nothing.

    Example:
        >>> benchmark_of(ScoredRow((1.0,), None, (1,), ("a",), "p", format="llmbar"))
        'llmbar'
    """
    return next((name for name, benchmark in BENCHMARKS.items() if benchmark.is_row(row)), "")


def judge_benchmarks(rows: Sequence[ScoredRow]) -> dict[str, BenchmarkScore]:
    """What every benchmark of which there are rows makes of them, whatever files they came in."""
    found: dict[str, list[ScoredRow]] = {}
    for row in rows:
        found.setdefault(benchmark_of(row), []).append(row)
    scores = {name: benchmark.judge(found[name]) for name, benchmark in BENCHMARKS.items() if name in found}
    return {name: score for name, score in scores.items() if score.lines}
