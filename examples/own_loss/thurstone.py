"""A pair loss of one's own: Thurstone's model of choice, a probit where Bradley-Terry has a logistic function (its case V)."""

import torch
from torch import Tensor


def thurstone(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """One loss a pair: -log Φ(chosen - rejected - margin), from rewards and margins of shape (P,)."""
    return -torch.special.log_ndtr(chosen_P - rejected_P - margin_P)
