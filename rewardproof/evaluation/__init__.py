"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import AccuracyReport, PairOutcomes, agreement, correct_shares, pair_accuracy, pair_outcomes
from rewardproof.evaluation.best_of_n import BestOfNCurve, best_of_n_curve
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking
from rewardproof.evaluation.law import LawRange
from rewardproof.evaluation.policy_runs import Evaluation, PolicyHacking, PolicyRuns, read_evaluation

__all__ = [
    "AccuracyReport",
    "BestOfNCurve",
    "BestOfNRuns",
    "Evaluation",
    "Hacking",
    "LawRange",
    "PairOutcomes",
    "PolicyHacking",
    "PolicyRuns",
    "agreement",
    "best_of_n_curve",
    "correct_shares",
    "pair_accuracy",
    "pair_outcomes",
    "read_evaluation",
]
