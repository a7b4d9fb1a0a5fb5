from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit, softmax

from rewardproof.errors import DataError
from rewardproof.statistics import cluster, gated_labels
from rewardproof.statistics.gated import _leading, _loss


def two_rules(count: int = 400, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts of two kinds, and of topics that stand out more; what one kind prefers, the other rejects, but for a fifth of the labels."""
    draw = np.random.default_rng(seed)
    kind, topic = draw.integers(0, 2, size=(2, count))
    points = draw.normal(size=(count, 12))
    points[:, :3] += 6 * topic[:, None]
    points[:, 5] += 6 * kind
    differences = draw.normal(size=(count, 20))
    rule = np.where(kind == 0, 1, -1) * np.where(draw.random(count) < 0.2, -1, 1)
    differences[:, 0] = np.abs(differences[:, 0]) * rule
    return points, differences, kind


def agreement(labels: np.ndarray, kind: np.ndarray) -> float:
    return max((labels == kind).mean(), (labels != kind).mean())


def test_preferences_find_the_kinds_that_clusters_do_not() -> None:
    points, differences, kind = two_rules()
    assert agreement(gated_labels(points, differences, np.arange(len(kind)), 2, seed=0), kind) > 0.95
    assert agreement(cluster(points, 2, seed=0), kind) < 0.8


def test_labels_are_seeded_and_do_not_depend_on_the_scale_of_either_side() -> None:
    points, differences, _ = two_rules(200)
    group = np.arange(200)
    first = gated_labels(points, differences, group, 2, seed=3)
    np.testing.assert_array_equal(first, gated_labels(points, differences, group, 2, seed=3))
    np.testing.assert_array_equal(first, gated_labels(1e3 * points, 1e-3 * differences, group, 2, seed=3))


def test_several_pairs_of_a_prompt_share_its_label() -> None:
    points, differences, kind = two_rules()
    half = len(kind) // 2
    group = np.repeat(np.arange(half), 2)
    kinds = kind[:half]
    signs = np.where(kinds == 0, 1, -1)
    differences[:, 0] = np.abs(differences[:, 0]) * signs[group]
    labels = gated_labels(points[:half], differences, group, 2, seed=0)
    assert labels.shape == (half,)
    assert agreement(labels, kinds) > 0.95


def test_loss_is_the_negative_log_likelihood_of_the_mixture_and_its_gradient_is_right() -> None:
    draw = np.random.default_rng(0)
    gates, probes, sizes = np.c_[draw.normal(size=(7, 3)), np.ones(7)], draw.normal(size=(7, 5)), (3, 4, 5)
    flat = draw.normal(size=3 * (4 + 5))
    value, gradient = _loss(flat, gates, probes, sizes, 0.02, 0.03)
    gate, probe = flat[:12].reshape(3, 4), flat[12:].reshape(3, 5)
    likelihood = [sum(softmax(gate @ x)[k] * expit(probe[k] @ d) for k in range(3)) for x, d in zip(gates, probes, strict=True)]
    expected = -np.mean(np.log(likelihood)) + 0.02 * (gate[:, :3] ** 2).sum() + 0.03 * (probe**2).sum()
    assert value == pytest.approx(expected, rel=1e-12)
    numeric = approx_fprime(flat, lambda point: _loss(point, gates, probes, sizes, 0.02, 0.03)[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


def test_components_keep_what_a_probe_sees() -> None:
    differences = np.random.default_rng(0).normal(size=(30, 6))
    kept = _leading(differences, 6)
    ratio = (kept**2).sum() / (differences**2).sum()
    np.testing.assert_allclose(kept @ kept.T, ratio * differences @ differences.T)
    assert (kept[:, 0] ** 2).mean() == pytest.approx(1)


def test_preferences_of_one_rule_leave_no_prompts_to_a_third_expert() -> None:
    draw = np.random.default_rng(0)
    points, differences = draw.normal(size=(60, 4)), draw.normal(size=(60, 4))
    differences[:, 0] = np.abs(differences[:, 0]) + 1
    with pytest.raises(DataError, match="None of 8 fits of 5 gated probes to 60 prompts used all 5, expected one that does"):
        gated_labels(points, differences, np.arange(60), 5, seed=0, probe_penalty=1.0, gate_penalty=1.0)
