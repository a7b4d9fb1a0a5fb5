"""Losses: pure functions of scores and router probabilities. They import torch and nothing else; they know no model and no batch.

Every function computes in float32 whatever it is given (float64 stays float64), because a bf16 gap of 0.01 is already rounded away.
"""

from rewardproof.losses.bradley_terry import bradley_terry
from rewardproof.losses.centering import centering, reward_l2
from rewardproof.losses.reduction import Reduction
from rewardproof.losses.router_balance import importance_load_balance, smooth_load, squared_variation, switch_balance
from rewardproof.losses.totals import Total, over_processes, own_part

__all__ = [
    "Reduction",
    "Total",
    "bradley_terry",
    "centering",
    "importance_load_balance",
    "over_processes",
    "own_part",
    "reward_l2",
    "smooth_load",
    "squared_variation",
    "switch_balance",
]
