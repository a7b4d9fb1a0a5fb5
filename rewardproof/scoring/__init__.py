"""Scorers: anything that gives each answer of a group a number."""

from rewardproof.scoring.activation import ACTIVATION_FILE, ActivationRewardModel, MeanHeads
from rewardproof.scoring.combination import Combination, Scale, combine, disagreement
from rewardproof.scoring.double_mixture import DMOERM_FILE, DoubleMixture
from rewardproof.scoring.ensemble import Combine, Ensemble, score_and_disagreement
from rewardproof.scoring.gold import CheckableFamily, CheckableGold
from rewardproof.scoring.implicit import Implicit, ImplicitReward
from rewardproof.scoring.model_ensemble import (
    ENSEMBLE_FILE,
    EnsembleFile,
    ModelEnsemble,
    models_of,
    reads_tokens,
    share_trunks,
    tokens_and_disagreement,
)
from rewardproof.scoring.policy_feedback import PolicyFeedbackReward, PolicyMoment, own_weight
from rewardproof.scoring.probability import AsProbability
from rewardproof.scoring.remote import RemoteScorer
from rewardproof.scoring.retries import RetryCount, kept_retries
from rewardproof.scoring.scorer import Scorer, TokenScorer
from rewardproof.scoring.sources import (
    GIVEN,
    TOKEN,
    AnyModel,
    GivenScores,
    Judge,
    load_judge,
    load_model,
    load_scorer,
    method_names,
    stream_names,
)

__all__ = [
    "ACTIVATION_FILE",
    "DMOERM_FILE",
    "ENSEMBLE_FILE",
    "GIVEN",
    "TOKEN",
    "ActivationRewardModel",
    "AnyModel",
    "AsProbability",
    "CheckableFamily",
    "CheckableGold",
    "Combination",
    "Combine",
    "DoubleMixture",
    "Ensemble",
    "EnsembleFile",
    "GivenScores",
    "Implicit",
    "ImplicitReward",
    "Judge",
    "MeanHeads",
    "ModelEnsemble",
    "PolicyFeedbackReward",
    "PolicyMoment",
    "RemoteScorer",
    "RetryCount",
    "Scale",
    "Scorer",
    "TokenScorer",
    "combine",
    "disagreement",
    "kept_retries",
    "load_judge",
    "load_model",
    "load_scorer",
    "method_names",
    "models_of",
    "own_weight",
    "reads_tokens",
    "score_and_disagreement",
    "share_trunks",
    "stream_names",
    "tokens_and_disagreement",
]
