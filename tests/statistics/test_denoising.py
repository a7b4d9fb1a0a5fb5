"""A mean after a weighted principal component analysis, against an eigendecomposition, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from rewardproof.statistics import denoised_mean


@pytest.mark.parametrize("shape", [(3, 8), (20, 4), (1, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_projects_on_the_strongest_eigenvectors_of_the_weighted_second_moment(shape: tuple[int, int], weighted: bool) -> None:
    dice = np.random.default_rng(0)
    vectors, weights = dice.normal(size=shape) + 1.0, dice.uniform(0.1, 1.0, size=shape[0])
    found = denoised_mean(vectors, energy=0.8, weights_n=weights if weighted else None)
    used = weights if weighted else np.ones(shape[0])
    values, columns = np.linalg.eigh((used[:, None] * vectors).T @ vectors)
    order = np.argsort(values)[::-1]
    held = np.cumsum(values[order]) / values.sum()
    kept = int(np.argmax(held >= 0.8)) + 1
    basis = columns[:, order[:kept]]
    assert found.kept == kept
    np.testing.assert_allclose(found.mean_d, (vectors @ basis @ basis.T).mean(axis=0), atol=1e-12)


def test_all_the_energy_is_the_plain_mean() -> None:
    vectors = np.random.default_rng(1).normal(size=(6, 9))
    np.testing.assert_allclose(denoised_mean(vectors, energy=1.0).mean_d, vectors.mean(axis=0), atol=1e-15)
    np.testing.assert_array_equal(denoised_mean(np.zeros((3, 2)), energy=0.5).mean_d, np.zeros(2))


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_subspace_is_found_closer_than_by_the_plain_mean(seed: int) -> None:
    """Vectors that differ along three directions, which hold their mean, and noise in all thirty-two."""
    dice = np.random.default_rng(seed)
    coefficients = dice.normal([2.0, -1.0, 0.5], 4.0, size=(40, 3))
    signal = np.pad(coefficients, ((0, 0), (0, 29)))
    vectors = signal + dice.normal(scale=0.5, size=signal.shape)
    truth, plain, denoised = signal.mean(axis=0), vectors.mean(axis=0), denoised_mean(vectors, energy=0.85)
    assert denoised.kept == 3
    assert np.linalg.norm(denoised.mean_d - truth) < np.linalg.norm(plain - truth)


def test_weights_choose_the_directions() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(denoised_mean(vectors, energy=0.6, weights_n=[1.0, 0.2]).mean_d, [0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(denoised_mean(vectors, energy=0.6, weights_n=[0.2, 1.0]).mean_d, [0.0, 0.5], atol=1e-12)


def test_a_centred_analysis_would_denoise_nothing() -> None:
    """Why the second moment is not centred: reconstructions around the mean have that mean, whatever their rank."""
    vectors = np.random.default_rng(3).normal(size=(12, 5)) + 2.0
    centred = vectors - vectors.mean(axis=0)
    direction = np.linalg.svd(centred)[2][:1]
    rebuilt = vectors.mean(axis=0) + centred @ direction.T @ direction
    np.testing.assert_allclose(rebuilt.mean(axis=0), vectors.mean(axis=0), atol=1e-12)
