"""Losses: pure functions of scores, log-probabilities and router probabilities. They import torch alone; they know no model and no batch.

Every function computes in float32 whatever it is given (float64 stays float64), because a bf16 gap of 0.01 is already rounded away.
"""

from rewardproof.losses.advantages import gae, group_relative, leave_one_out, whitened
from rewardproof.losses.bradley_terry import bradley_terry
from rewardproof.losses.centering import centering, reward_l2
from rewardproof.losses.contrastive import simcse, sinkhorn, swav
from rewardproof.losses.direct_alignment import dpo, ipo, log_ratio_gap, policy_hinge, without_length
from rewardproof.losses.divergence import KL, exact_kl, sampled_kl
from rewardproof.losses.group_entropy import group_entropy
from rewardproof.losses.head_masks import mask_objective, mask_probabilities
from rewardproof.losses.lagrangian import SIGNS, Mixture, Sense, mixture, multiplier_loss, multiplier_weights
from rewardproof.losses.likelihood import chosen_likelihood
from rewardproof.losses.pairwise import decoupled, hinge, normalised
from rewardproof.losses.policy_gradient import Aggregate, clipped_surrogate, clipped_value_loss, token_weights
from rewardproof.losses.reduction import Reduction
from rewardproof.losses.router_balance import importance_load_balance, smooth_load, squared_variation, switch_balance
from rewardproof.losses.spread import Spread, pairwise_spread
from rewardproof.losses.totals import Total, over_processes, own_part
from rewardproof.losses.verdicts import verdict
from rewardproof.losses.weibull import weibull_gamma_kl, weibull_sample, weibull_scale
from rewardproof.losses.zero_sum import ZeroSum, zero_sum, zero_sum_part, zero_sum_slope

__all__ = [
    "KL",
    "SIGNS",
    "Aggregate",
    "Mixture",
    "Reduction",
    "Sense",
    "Spread",
    "Total",
    "ZeroSum",
    "bradley_terry",
    "centering",
    "chosen_likelihood",
    "clipped_surrogate",
    "clipped_value_loss",
    "decoupled",
    "dpo",
    "exact_kl",
    "gae",
    "group_entropy",
    "group_relative",
    "hinge",
    "importance_load_balance",
    "ipo",
    "leave_one_out",
    "log_ratio_gap",
    "mask_objective",
    "mask_probabilities",
    "mixture",
    "multiplier_loss",
    "multiplier_weights",
    "normalised",
    "over_processes",
    "own_part",
    "pairwise_spread",
    "policy_hinge",
    "reward_l2",
    "sampled_kl",
    "simcse",
    "sinkhorn",
    "smooth_load",
    "squared_variation",
    "swav",
    "switch_balance",
    "token_weights",
    "verdict",
    "weibull_gamma_kl",
    "weibull_sample",
    "weibull_scale",
    "whitened",
    "without_length",
    "zero_sum",
    "zero_sum_part",
    "zero_sum_slope",
]
