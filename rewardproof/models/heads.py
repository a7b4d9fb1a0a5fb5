"""The reward head: how it starts, and the logistic-regression probe."""

# P pairs, D hidden width.
from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.config import Section
from rewardproof.errors import ModelError


class Head(Section):
    """How the reward head starts and learns."""

    init: Literal["zero", "normal", "probe", "keep"] = "zero"
    """`zero`: every reward starts at 0; `normal`: drawn from N(0, 1/width); `probe`: logistic regression on the frozen features; `keep`:
    the head of a model that is a reward model already. A head of `factors` has a start of its own."""
    learning_rate: Annotated[float, Field(ge=0)] = 1e-3
    """The head's own learning rate: at the backbone's small rate, a head that starts at zero learns nothing in a short run."""
    probe_penalty: Annotated[float, Field(gt=0)] = 1e-2
    """Weight of the squared norm of the standardised coefficients in the probe, relative to the mean log-loss."""


def set_normal_head(model: PreTrainedModel, *, seed: int) -> None:
    """Draw the head from N(0, 1/width)."""
    weight = head_weight(model)
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * weight.shape[1] ** -0.5
    with torch.no_grad():
        weight.copy_(draw)


def set_head(model: PreTrainedModel, direction_D: NDArray[np.float64]) -> None:
    """Make the head a given direction."""
    with torch.no_grad():
        head_weight(model).copy_(torch.from_numpy(direction_D)[None])


def head_weight(model: PreTrainedModel) -> Tensor:
    """The head's weight, shape `(1, D)`.

    Raises:
        ModelError: The model has no head.
    """
    head = getattr(model, "score", None)
    if head is None:
        raise ModelError(f"{type(model).__name__} has no reward head, expected a *ForSequenceClassification; train one first.")
    return head.weight


def fit_probe(difference_PD: NDArray[np.float64], *, penalty: float) -> NDArray[np.float64]:
    r"""Logistic regression without intercept on feature differences (winner minus loser).

    .. math:: \min_w \; \frac1P \sum_p \log\left(1 + e^{-w^\top \tilde x_p}\right) + \lambda \lVert w \rVert^2,
              \qquad \tilde x = x / \mathrm{rms}(x)

    Args:
        difference_PD: Differences of features, shape `(P, D)`.
        penalty: The weight :math:`\lambda`.

    Returns:
        The direction in the features' own units, shape `(D,)`, for use as a reward head.

    Example:
        >>> direction = fit_probe(np.array([[1.0, 0.3], [1.0, -0.3], [0.5, 0.0]]), penalty=0.01)
        >>> bool(direction[0] > 0) and bool(abs(direction[1]) < 1e-3)
        True
    """
    scale_D = np.sqrt((difference_PD**2).mean(axis=0)) + 1e-12
    standard_PD = difference_PD / scale_D

    def objective(weights_D: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits_P = standard_PD @ weights_D
        loss = np.logaddexp(0.0, -logits_P).mean() + penalty * weights_D @ weights_D
        gradient_D = -(expit(-logits_P) @ standard_PD) / len(standard_PD) + 2 * penalty * weights_D
        return float(loss), gradient_D

    solution = minimize(objective, np.zeros(difference_PD.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return solution.x / scale_D
