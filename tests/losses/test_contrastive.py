"""SimCSE and SwAV against sums written out in float64, by hand where that is possible, and by their symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rewardproof.errors import ConfigError, DataError
from rewardproof.losses import simcse, sinkhorn, swav

Views = tuple[Tensor, Tensor]


@pytest.fixture
def views() -> Views:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    return first, first + 0.3 * torch.randn(6, 5, generator=draw, dtype=torch.float64)


@pytest.fixture
def prototypes() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unit(rows: Tensor) -> np.ndarray:
    return rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)


def test_simcse_equals_the_sum_written_out(views: Views) -> None:
    cosine = unit(views[0]) @ unit(views[1]).T
    expected = [-math.log(math.exp(cosine[i, i] / 0.2) / sum(math.exp(cosine[i, j] / 0.2) for j in range(6))) for i in range(6)]
    torch.testing.assert_close(simcse(*views, temperature=0.2, reduction="none"), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(simcse(*views, temperature=0.2), torch.tensor(np.mean(expected), dtype=torch.float64))
    torch.testing.assert_close(simcse(*views, temperature=0.2, reduction="sum"), torch.tensor(sum(expected), dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_simcse_with_orthogonal_views_is_what_a_hand_computes(temperature: float) -> None:
    features = 3.0 * torch.eye(8, dtype=torch.float64)
    # Four features whose own views agree and are orthogonal to all others: log(1 + 3 exp(-1/tau)).
    agreeing = simcse(features[:4], features[:4], temperature=temperature)
    assert float(agreeing) == pytest.approx(math.log1p(3 * math.exp(-1 / temperature)))
    # Every cosine is 0: no view is nearer than another, log 4.
    assert float(simcse(features[:4], features[4:], temperature=temperature)) == pytest.approx(math.log(4))
    # A view that is another's and opposite to none: log(1 + exp(1/tau) + 2) of four, its own cosine being 0.
    turned = simcse(features[:4], features[[1, 2, 3, 0]], temperature=temperature)
    assert float(turned) == pytest.approx(math.log(3 + math.exp(1 / temperature)))


def test_simcse_of_one_feature_is_nothing(views: Views) -> None:
    assert float(simcse(views[0][:1], views[1][:1], temperature=0.05)) == pytest.approx(0)


def test_simcse_draws_views_together_and_pushes_others_apart(views: Views) -> None:
    first, second = views[0][:2].clone().requires_grad_(), views[1][:2]
    simcse(first, second, temperature=0.1, reduction="none")[0].backward()
    assert first.grad is not None
    step = first.detach() - 1e-3 * first.grad
    before, after = (np.sum(unit(rows)[0] * unit(second), axis=1) for rows in (first.detach(), step))
    assert after[0] - after[1] > before[0] - before[1]


@pytest.mark.parametrize("loss", [simcse, lambda a, b, **k: swav(a, b, torch.eye(4, 5, dtype=torch.float64), **k)], ids=["simcse", "swav"])
def test_the_order_and_length_of_features_do_not_matter(loss: Callable[..., Tensor], views: Views) -> None:
    whole, order = loss(*views, temperature=0.3, reduction="none"), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss(views[0][order], views[1][order], temperature=0.3, reduction="none"), whole[order])
    torch.testing.assert_close(loss(7 * views[0], 0.1 * views[1], temperature=0.3, reduction="none"), whole)


def test_sinkhorn_equals_the_scaling_written_out() -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-1, 1)
    expected = np.exp(scores.numpy() / 0.2)
    for _ in range(3):
        expected = expected / expected.sum(axis=0)
        expected = expected / expected.sum(axis=1, keepdims=True)
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.2, iterations=3), torch.from_numpy(expected))


def test_assignments_are_distributions_that_use_prototypes_alike() -> None:
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, 0] += 2  # all features are nearest to one prototype
    for iterations in (1, 3, 2000):
        assigned = sinkhorn(scores, epsilon=0.5, iterations=iterations)
        torch.testing.assert_close(assigned.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(assigned.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not sinkhorn(scores.requires_grad_(), epsilon=0.5).requires_grad
    assert sinkhorn(1e4 * scores.float()).isfinite().all()


def test_swav_equals_the_sum_written_out(views: Views, prototypes: Tensor) -> None:
    scores = [unit(view) @ unit(prototypes).T for view in views]
    assigned = [sinkhorn(torch.from_numpy(score), epsilon=0.1, iterations=5).numpy() for score in scores]
    expected = []
    for i in range(6):
        loss = 0.0
        for here, there in ((0, 1), (1, 0)):
            normaliser = sum(math.exp(score / 0.3) for score in scores[here][i])
            loss -= sum(
                q * math.log(math.exp(score / 0.3) / normaliser) for q, score in zip(assigned[there][i], scores[here][i], strict=True)
            )
        expected.append(loss)
    found = swav(*views, prototypes, temperature=0.3, epsilon=0.1, iterations=5, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(swav(views[1], views[0], prototypes, temperature=0.3, epsilon=0.1, iterations=5, reduction="none"), found)


def test_swav_trains_its_prototypes(views: Views, prototypes: Tensor) -> None:
    learned = prototypes.clone().requires_grad_()
    optimiser = torch.optim.SGD([learned], lr=0.5)
    losses = []
    for _ in range(20):
        loss = swav(*views, learned, temperature=0.3)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.05


def test_half_precision_and_autocast_are_computed_in_float32(views: Views, prototypes: Tensor) -> None:
    halves = [view.to(torch.bfloat16) for view in views]
    for loss in (lambda a, b: simcse(a, b, temperature=0.05), lambda a, b: swav(a, b, prototypes.to(a), temperature=0.05)):
        outside = loss(*[view.float() for view in halves])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(*[view.float() for view in halves])
        assert inside.dtype == loss(*halves).dtype == torch.float32
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_mistakes_stop_with_a_sentence(views: Views, prototypes: Tensor) -> None:
    with pytest.raises(DataError, match="the two views have shapes"):
        simcse(views[0], views[1][:3], temperature=0.1)
    with pytest.raises(ConfigError, match="temperature=0; expected a positive number"):
        simcse(*views, temperature=0)
    with pytest.raises(ConfigError, match="epsilon=-1; expected a positive number"):
        swav(*views, prototypes, temperature=0.1, epsilon=-1)
    with pytest.raises(ConfigError, match="iterations=0; expected a positive number"):
        swav(*views, prototypes, temperature=0.1, iterations=0)
