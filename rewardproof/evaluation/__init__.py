"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import (
    AccuracyReport,
    PairOutcomes,
    accuracy_intervals,
    accuracy_of,
    agreement,
    correct_shares,
    pair_accuracy,
    pair_outcomes,
)
from rewardproof.evaluation.benchmarks import BENCHMARKS, benchmark_of, judge_benchmarks
from rewardproof.evaluation.factors import Factor, FactorReading, read_factors
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking
from rewardproof.evaluation.hidden_states import StateSimilarity, state_similarities
from rewardproof.evaluation.law import LawRange, MeasuredLaw
from rewardproof.evaluation.over_seeds import over_seeds
from rewardproof.evaluation.policy_runs import (
    EVALUATIONS,
    IMPLICIT,
    Evaluation,
    PolicyHacking,
    PolicyRuns,
    read_evaluation,
    run_evaluations,
)
from rewardproof.evaluation.proxy_points import FoundProxyPoints, ProxyPoints, SeenRun, find_proxy_points
from rewardproof.evaluation.published import BenchmarkScore
from rewardproof.evaluation.ranking import RankAgreement, rank_agreement
from rewardproof.evaluation.scored import ScoredRow, scored_row
from rewardproof.evaluation.win_rate import win_rate

__all__ = [
    "BENCHMARKS",
    "EVALUATIONS",
    "IMPLICIT",
    "AccuracyReport",
    "BenchmarkScore",
    "BestOfNRuns",
    "Evaluation",
    "Factor",
    "FactorReading",
    "FoundProxyPoints",
    "Hacking",
    "LawRange",
    "MeasuredLaw",
    "PairOutcomes",
    "PolicyHacking",
    "PolicyRuns",
    "ProxyPoints",
    "RankAgreement",
    "ScoredRow",
    "SeenRun",
    "StateSimilarity",
    "accuracy_intervals",
    "accuracy_of",
    "agreement",
    "benchmark_of",
    "correct_shares",
    "find_proxy_points",
    "judge_benchmarks",
    "over_seeds",
    "pair_accuracy",
    "pair_outcomes",
    "rank_agreement",
    "read_evaluation",
    "read_factors",
    "run_evaluations",
    "scored_row",
    "state_similarities",
    "win_rate",
]
