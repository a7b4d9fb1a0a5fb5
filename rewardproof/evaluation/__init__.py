"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import AccuracyReport, PairOutcomes, pair_accuracy, pair_outcomes
from rewardproof.evaluation.best_of_n import BestOfNCurve, best_of_n_curve
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking, LawRange

__all__ = [
    "AccuracyReport",
    "BestOfNCurve",
    "BestOfNRuns",
    "Hacking",
    "LawRange",
    "PairOutcomes",
    "best_of_n_curve",
    "pair_accuracy",
    "pair_outcomes",
]
