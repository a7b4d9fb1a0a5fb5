"""Experts kept mergeable while they train: after every step each is pulled a little towards the mean of the others.

Reference:
    Huang et al., Experts Weights Averaging, arXiv:2308.06093.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.models.experts import UpcycledSparseMoeBlock


def pull_together(stack_E: Tensor, rate: float) -> None:
    r"""Move each of a stack of matrices towards the mean of the others, in place: their mean stays, their spread shrinks.

    .. math:: W_i \leftarrow (1 - \beta) W_i + \frac{\beta}{E - 1} \sum_{j \ne i} W_j

    Args:
        stack_E: The matrices, shape `(E, …)`, E at least 2.
        rate: β in [0, 1).

    Example:
        >>> stack = torch.tensor([[0.0], [2.0]])
        >>> pull_together(stack, 0.25)
        >>> stack
        tensor([[0.5000],
                [1.5000]])
    """
    n_experts = len(stack_E)
    mean = stack_E.mean(dim=0, keepdim=True)
    # The others' mean is (E·mean − W_i) / (E − 1).
    stack_E.lerp_(mean, rate * n_experts / (n_experts - 1))


class PullTogether(TrainerCallback):
    """Pulls the routed experts of a mixture together after every optimiser step, at a rate that rises linearly over the training."""

    def __init__(self, module: nn.Module, share_rate: float) -> None:
        """Reach `share_rate` at the last step."""
        self.blocks = [entry for entry in module.modules() if isinstance(entry, UpcycledSparseMoeBlock)]
        self.share_rate = share_rate

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Pull, a step's share further than before."""
        rate = self.share_rate * min((state.global_step + 1) / max(state.max_steps, 1), 1.0)
        with torch.no_grad():
            for block in self.blocks:
                for parameter in block.experts.parameters():
                    pull_together(parameter[1:], rate)
