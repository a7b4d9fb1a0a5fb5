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
    weight = torch.tensor(softmax_regression(points, truth, 3, penalty=0.1), requires_grad=True)
    logits = torch.tensor(points) @ weight.T
    scale = torch.tensor(points.std(axis=0))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(truth)) + 0.05 * (weight * scale).square().sum()
    loss.backward()
    assert float((weight.grad / scale).abs().max()) < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_mutual_information_is_symmetric_and_bounded_by_both_entropies(pairs: list[tuple[int, int]]) -> None:
    left, right = np.array(pairs).T
    found = mutual_information(left, right)
    assert found == pytest.approx(mutual_information(right, left))
    assert -1e-12 <= found <= min(mutual_information(left, left), mutual_information(right, right)) + 1e-12
