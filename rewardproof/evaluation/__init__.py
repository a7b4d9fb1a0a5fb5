"""Evaluation: what a reward model's scores are worth. It takes groups and numbers, never a model, so any scorer can be judged."""

from rewardproof.evaluation.accuracy import AccuracyReport, PairOutcomes, pair_accuracy, pair_outcomes
from rewardproof.evaluation.hacking import BestOfNRuns, Hacking
from rewardproof.evaluation.hidden_states import StateSimilarity, state_similarities
from rewardproof.evaluation.law import LawRange
from rewardproof.evaluation.policy_runs import Evaluation, PolicyHacking, PolicyRuns, read_evaluation

__all__ = [
    "AccuracyReport",
    "BestOfNRuns",
    "Evaluation",
    "Hacking",
    "LawRange",
    "PairOutcomes",
    "PolicyHacking",
    "PolicyRuns",
    "StateSimilarity",
    "pair_accuracy",
    "pair_outcomes",
    "read_evaluation",
    "state_similarities",
]
