"""A mixture of preference probes behind a gate: which prompts want opposite things, learned from the preferences alone."""

# G prompts, P pairs, D features, C components, K experts.
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_expit, log_softmax, softmax

from rewardproof.errors import DataError
from rewardproof.statistics.clustering import whitened

Floats = NDArray[np.float64]


def gated_labels(
    points_GD: Floats,
    differences_PD: Floats,
    group_P: NDArray[np.int64],
    k: int,
    *,
    seed: int,
    gate_components: int = 16,
    probe_components: int = 64,
    gate_penalty: float = 1e-2,
    probe_penalty: float = 1e-3,
    restarts: int = 8,
) -> NDArray[np.int64]:
    r"""Expert of each prompt in the best fit of a gated mixture of logistic regressions, shape `(G,)`; every expert has prompts.

    With gates :math:`g(x) = \mathrm{softmax}(V x + b)` on whitened components x of a prompt and probes w on components d of winner minus
    loser,

    .. math::
        \min_{V, b, w} \; -\frac1P \sum_p \log \sum_k g_k(x_p)\, \sigma(w_k \cdot d_p)
        + \lambda_g \lVert V \rVert^2 + \lambda \lVert w \rVert^2

    A gate pays only where preferences follow different rules; clusters of the prompts alone follow whatever varies most.

    Args:
        points_GD: One point a prompt.
        differences_PD: Features of winner minus loser, one row a pair.
        group_P: Prompt of each pair.
        k: Number of experts.
        seed: Of the starts.
        gate_components: Principal components of the points that the gate sees, at most.
        probe_components: Those of the differences, in their own proportions, at most.
        gate_penalty: The weight :math:`\lambda_g`.
        probe_penalty: The weight :math:`\lambda`, where the first component has unit variance.
        restarts: How many starts are tried.

    Raises:
        DataError: In every fit some expert is the first choice of no prompt.

    Reference:
        Jordan and Jacobs, Hierarchical mixtures of experts and the EM algorithm, Neural Computation 6 (1994).

    Example:
        >>> draw = np.random.default_rng(0)
        >>> kind = np.arange(200) % 2
        >>> prompts, better = np.c_[kind + 0.1 * draw.normal(size=200), draw.normal(size=200)], draw.normal(size=(200, 3))
        >>> better[:, 0] = np.abs(better[:, 0]) * np.where(kind == 1, 1, -1)  # what wins under one kind loses under the other
        >>> labels = gated_labels(prompts, better, np.arange(200), 2, seed=0)
        >>> bool(max((labels == kind).mean(), (labels != kind).mean()) > 0.98)
        True
    """
    gates_GC = whitened(points_GD, gate_components)
    gates_PC, probes_PC = gates_GC[group_P], _leading(differences_PD, probe_components)
    sizes = (k, gates_GC.shape[1] + 1, probes_PC.shape[1])
    gates_PC = np.c_[gates_PC, np.ones(len(gates_PC))]
    found: list[tuple[float, NDArray[np.int64]]] = []
    for start in range(restarts):
        draw = np.random.default_rng(seed + start)
        first = np.concatenate((0.3 * draw.normal(size=k * sizes[1]), 0.1 * draw.normal(size=k * sizes[2])))
        fit = minimize(
            _loss, first, args=(gates_PC, probes_PC, sizes, gate_penalty, probe_penalty), jac=True, method="L-BFGS-B",
            options={"maxiter": 500},
        )  # fmt: skip
        gate_KC = fit.x[: k * sizes[1]].reshape(k, -1)
        labels_G = (gates_GC @ gate_KC[:, :-1].T + gate_KC[:, -1]).argmax(axis=1).astype(np.int64)
        if len(np.unique(labels_G)) == k:
            found.append((float(fit.fun), labels_G))
    if not found:
        raise DataError(
            f"None of {restarts} fits of {k} gated probes to {len(points_GD)} prompts used all {k}, expected one that does: the "
            "preferences follow fewer rules than that. Take fewer experts, more prompts, or router_init=clusters."
        )
    return min(found, key=lambda entry: entry[0])[1]


def _loss(
    flat: Floats, gates_PC: Floats, probes_PC: Floats, sizes: tuple[int, int, int], gate_penalty: float, probe_penalty: float
) -> tuple[float, Floats]:
    k, n_gate, _ = sizes
    gate_KC, probe_KC = flat[: k * n_gate].reshape(k, -1), flat[k * n_gate :].reshape(k, -1)
    log_gate_PK = log_softmax(gates_PC @ gate_KC.T, axis=1)
    scores_PK = probes_PC @ probe_KC.T
    joint_PK = log_gate_PK + log_expit(scores_PK)
    responsible_PK = softmax(joint_PK, axis=1)
    gate_error_KC = (np.exp(log_gate_PK) - responsible_PK).T @ gates_PC / len(gates_PC)
    probe_error_KC = -(responsible_PK * np.exp(log_expit(-scores_PK))).T @ probes_PC / len(gates_PC)
    weights_KC = gate_KC * (np.arange(n_gate) < n_gate - 1)  # the bias is free
    value = -float(np.logaddexp.reduce(joint_PK, axis=1).mean()) + gate_penalty * float((weights_KC**2).sum())
    gradient = (gate_error_KC + 2 * gate_penalty * weights_KC, probe_error_KC + 2 * probe_penalty * probe_KC)
    return value + probe_penalty * float((probe_KC**2).sum()), np.concatenate([part.ravel() for part in gradient])


def _leading(differences_PD: Floats, components: int) -> Floats:
    """Leading components about zero, the first of unit mean square: a difference's sign means something, so nothing is centred."""
    left_PC, strengths_C, _ = np.linalg.svd(differences_PD, full_matrices=False)
    kept_C = strengths_C[:components]
    return left_PC[:, :components] * kept_C / max(float(kept_C[0]), 1e-12) * len(differences_PD) ** 0.5
