"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import AccuracyReport, PairOutcomes, pair_accuracy, pair_outcomes
from rewardproof.evaluation.best_of_n import BestOfNCurve, best_of_n_curve
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking
from rewardproof.evaluation.law import LawRange
from rewardproof.evaluation.policy_runs import Evaluation, PolicyHacking, PolicyRuns, read_evaluation
from rewardproof.evaluation.ranking import RankAgreement, rank_agreement

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
    "RankAgreement",
    "best_of_n_curve",
    "pair_accuracy",
    "pair_outcomes",
    "rank_agreement",
    "read_evaluation",
]
