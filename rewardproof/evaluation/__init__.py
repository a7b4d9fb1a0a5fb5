"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import AccuracyReport, PairOutcomes, accuracy_intervals, pair_accuracy, pair_outcomes
from rewardproof.evaluation.factors import Factor, FactorReading, read_factors
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking
from rewardproof.evaluation.law import LawRange
from rewardproof.evaluation.policy_runs import Evaluation, PolicyHacking, PolicyRuns, read_evaluation

__all__ = [
    "AccuracyReport",
    "BestOfNRuns",
    "Evaluation",
    "Factor",
    "FactorReading",
    "Hacking",
    "LawRange",
    "PairOutcomes",
    "PolicyHacking",
    "PolicyRuns",
    "accuracy_intervals",
    "pair_accuracy",
    "pair_outcomes",
    "read_evaluation",
    "read_factors",
]
