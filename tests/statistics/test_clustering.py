from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.errors import DataError
from rewardproof.statistics import cluster, mutual_information, softmax_regression


def blobs(k: int, *, per: int, width: int, gap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = gap * generator.standard_normal((k, width))
    truth = np.repeat(np.arange(k), per)
    return centres[truth] + generator.standard_normal((k * per, width)) + 7.0, truth


def test_clusters_are_found_whatever_the_features_scales() -> None:
    points, truth = blobs(3, per=40, width=8, gap=6.0)
    labels = cluster(points * np.logspace(-3, 3, 8), 3, seed=1)
    assert mutual_information(labels, truth) == pytest.approx(np.log(3))


def test_a_seed_gives_the_same_clusters_again_and_none_is_empty() -> None:
    points, _ = blobs(1, per=60, width=5, gap=0.0)
    first = cluster(points, 4, seed=3)
    assert (first == cluster(points, 4, seed=3)).all()
    assert set(first.tolist()) == {0, 1, 2, 3}


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(DataError, match="2 of them distinct, cannot be parted into 3 clusters"):
        cluster(np.array([[0.0], [0.0], [1.0], [1.0]]), 3, seed=0)


def test_a_cluster_that_stays_empty_from_every_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardproof.statistics import clustering

    def losing(*_: object, **__: object) -> None:
        raise clustering.ClusterError

    monkeypatch.setattr(clustering, "kmeans2", losing)
    with pytest.raises(DataError, match="None of 8 starts parted 6 points into 2 clusters"):
        cluster(np.arange(6.0)[:, None], 2, seed=0)


def test_one_strong_direction_does_not_decide_alone() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat([0, 1], 60)
    length = 40 * generator.standard_normal(120)
    points = np.stack(
        [3.0 * (2 * truth - 1) + generator.standard_normal(120), *(length + generator.standard_normal(120) for _ in range(9))], axis=1
    )
    assert mutual_information(cluster(points, 2, seed=0, components=2), truth) > 0.5


def test_regression_tells_clusters_apart_without_a_bias() -> None:
    points, truth = blobs(3, per=40, width=12, gap=3.0, seed=2)
    weight = softmax_regression(points, truth, 3)
    assert weight.shape == (3, 12)
    assert ((points @ weight.T).argmax(axis=1) == truth).mean() > 0.97


def test_regression_reaches_the_minimum_that_autograd_sees() -> None:
    points, truth = blobs(3, per=30, width=4, gap=1.0, seed=4)
    found = softmax_regression(points, truth, 3, penalty=0.1)
    mean = torch.tensor(points.mean(axis=0))
    beside = torch.tensor(points) - torch.outer(torch.tensor(points) @ mean / (mean @ mean), mean)
    scale = beside.std(correction=0)
    weight, bias = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(beside / scale @ weight.T + bias, torch.tensor(truth)) + 0.05 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    wanted = (beside / scale @ weight.T).detach() + torch.outer(torch.tensor(points) @ mean / (mean @ mean), bias.detach())
    logits = torch.tensor(points @ found.T)
    torch.testing.assert_close(logits - logits.mean(dim=1, keepdim=True), wanted - wanted.mean(dim=1, keepdim=True), atol=2e-3, rtol=0)


def test_the_classifier_survives_a_drift_that_is_small_beside_the_points() -> None:
    points, truth = blobs(3, per=60, width=16, gap=1.5, seed=5)
    points[:, :4] *= 1e-3  # features that hardly vary, and tell nothing that the others do not
    weight = softmax_regression(points, truth, 3)
    drifted = points + 0.05 * np.random.default_rng(0).standard_normal(16)
    assert ((drifted @ weight.T).argmax(axis=1) == truth).mean() > 0.9


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_mutual_information_is_symmetric_and_bounded_by_both_entropies(pairs: list[tuple[int, int]]) -> None:
    left, right = np.array(pairs).T
    found = mutual_information(left, right)
    assert found == pytest.approx(mutual_information(right, left))
    assert -1e-12 <= found <= min(mutual_information(left, left), mutual_information(right, right)) + 1e-12
