"""Proxy points are the summit of gold over the rewards' means, joint ones moved by correlation; what cannot be found is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rewardproof.config import parse
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import Evaluation, ProxyPoints, SeenRun, find_proxy_points
from rewardproof.report import proxy_points_figure, save_figure

Gold = Callable[[float, float], float]


def seen(path: list[tuple[float, float]], gold: Gold, *, weights: tuple[float, float] = (1.0, 1.0), turned: bool = False) -> SeenRun:
    """A run through these means of rewards a and b; two prompts about each mean."""

    def rows(a: float, b: float) -> tuple[dict[str, object], ...]:
        found = []
        for prompt, shift in (("p", -0.1), ("q", 0.1)):
            columns = {"proxy/a": [a + shift, a - shift], "proxy/b": [b + 2 * shift, b - 2 * shift]}
            ordered = dict(reversed(columns.items())) if turned else columns
            found.append({"prompt": prompt, **ordered, "gold": [gold(a, b)] * 2})
        return tuple(found)

    return SeenRun([Evaluation(step, rows(a, b)) for step, (a, b) in enumerate(path)], {"a": weights[0], "b": weights[1]})


def wandering(count: int, slope: float, *, seed: int) -> list[tuple[float, float]]:
    draw = np.random.default_rng(seed)
    a = np.linspace(0.0, 1.0, count)
    return list(zip(a, np.clip(slope * a + draw.normal(0, 0.15, count), -0.5, 1.5), strict=True))


def bump(a: float, b: float) -> float:
    return 1 - (a - 0.6) ** 2 - (b - 0.3) ** 2


FIT = {"density": 0.0, "share": 0.05}


def test_the_summit_of_a_known_surface_is_found() -> None:
    runs = [seen(wandering(30, slope, seed=place), bump) for place, slope in enumerate((0.2, 0.6, 1.0))]
    found = find_proxy_points(runs, parse(ProxyPoints, {"degree": 3, **FIT}))
    assert found.thresholds == {"a": pytest.approx(0.6, abs=0.02), "b": pytest.approx(0.3, abs=0.02)}
    assert found.gold == pytest.approx(1, abs=1e-3)
    assert (found.range_N2[:, 0] <= found.joint_N + 0.02).all()
    assert (found.range_N2[:, 1] >= found.joint_N - 0.02).all()
    assert found.prompts == {"p", "q"}
    assert found.as_dict()["proxy_points"] == found.thresholds
    assert found.as_dict()["evaluations"] == 90


def test_the_published_degree_and_density_are_the_defaults() -> None:
    assert (ProxyPoints().degree, ProxyPoints().density, ProxyPoints().share) == (10, 50.0, 0.0)
    draw = np.random.default_rng(0)

    def near(a: float, b: float) -> float:
        return bump(a + 0.5, b + 0.2)

    runs = [seen([tuple(draw.normal(0.1, 0.04, 2)) for _ in range(60)], near) for _ in range(3)]
    found = find_proxy_points(runs, ProxyPoints())
    assert found.thresholds == {"a": pytest.approx(0.1, abs=0.02), "b": pytest.approx(0.1, abs=0.02)}
    assert found.least_density == 50.0


def test_where_no_policy_has_been_the_surface_is_not_believed() -> None:
    """Gold that rises for ever: the point is the edge of what was seen, not of the grid."""
    runs = [seen(wandering(40, 1.0, seed=seed), lambda a, b: a - b) for seed in range(3)]
    wide, narrow = (find_proxy_points(runs, parse(ProxyPoints, {"degree": 1, "density": 0.0, "share": share})) for share in (0.0, 0.5))
    assert wide.thresholds["a"] - wide.thresholds["b"] > narrow.thresholds["a"] - narrow.thresholds["b"] + 0.1
    assert np.isnan(narrow.believed(np.array([[1.0, -0.5]]))).all()


def test_correlation_moves_the_joint_points_away_from_each_reward_s_own(tmp_path: Path) -> None:
    """Gold wants a + b near 0.8: a run that raises a alone may raise it to 0.8, one that raises both to 0.4 each."""

    def together(a: float, b: float) -> float:
        return 1 - (a + b - 0.8) ** 2 - 0.01 * (a - b) ** 2

    draw = np.random.default_rng(3)
    axis = np.linspace(0, 1.2, 40)
    alone_a = [(a, draw.normal(0, 0.02)) for a in axis]
    alone_b = [(draw.normal(0, 0.02), b) for b in axis]
    both = [(a, a + draw.normal(0, 0.05)) for a in axis]
    runs = [
        seen(alone_a, together, weights=(1.0, 0.0)), seen(alone_b, together, weights=(0.0, 1.0)), seen(both, together),
    ]  # fmt: skip
    found = find_proxy_points(runs, parse(ProxyPoints, {"degree": 4, "density": 0.0, "share": 0.1}))
    assert found.alone_N == pytest.approx([0.8, 0.8], abs=0.06)
    assert found.joint_N.sum() == pytest.approx(0.8, abs=0.06)
    assert (found.alone_N - found.joint_N).sum() > 0.6
    coupled = find_proxy_points(runs[2:], parse(ProxyPoints, {"degree": 4, "density": 0.0, "share": 0.1}))
    assert coupled.correlation_NN[0, 1] > 0.9 > found.correlation_NN[0, 1]
    figure = proxy_points_figure(found)
    assert figure.axes[0].get_title(loc="left") == f"correlation {found.correlation_NN[0, 1]:+.2f}"
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("a", "b")
    assert save_figure(figure, tmp_path, "points").png.read_bytes().startswith(b"\x89PNG")


def test_columns_are_taken_by_name() -> None:
    paths = [wandering(30, slope, seed=place) for place, slope in enumerate((0.2, 0.6, 1.0))]
    one = find_proxy_points([seen(path, bump) for path in paths], parse(ProxyPoints, {"degree": 3, **FIT}))
    mixed = [seen(path, bump, turned=place == 1) for place, path in enumerate(paths)]
    other = find_proxy_points(mixed, parse(ProxyPoints, {"degree": 3, **FIT}))
    assert one.thresholds == other.thresholds


def test_one_reward_has_a_curve() -> None:
    def only(run: SeenRun) -> SeenRun:
        rows = [[{key: value for key, value in row.items() if key != "proxy/b"} for row in one.rows] for one in run.evaluations]
        return SeenRun([Evaluation(one.step, tuple(own)) for one, own in zip(run.evaluations, rows, strict=True)], {"a": 1.0})

    runs = [only(seen(wandering(20, 0.5, seed=seed), lambda a, b: 1 - (a - 0.4) ** 2)) for seed in range(2)]
    found = find_proxy_points(runs, parse(ProxyPoints, {"degree": 2, **FIT}))
    assert found.thresholds == {"a": pytest.approx(0.4, abs=0.01)}
    assert found.alone_N == pytest.approx(found.joint_N)
    assert proxy_points_figure(found).axes[0].get_ylabel() == "gold"


def test_what_cannot_be_found_is_refused() -> None:
    path = wandering(10, 0.5, seed=0)
    run = seen(path, bump)
    with pytest.raises(EvaluationError, match="Got no run with evaluations"):
        find_proxy_points([], ProxyPoints())
    with pytest.raises(EvaluationError, match="Got 10 points for a surface of degree 10"):
        find_proxy_points([run], ProxyPoints())
    with pytest.raises(EvaluationError, match=r"Got evaluations of a density of at most .* expected 50 somewhere"):
        find_proxy_points([run], parse(ProxyPoints, {"degree": 2}))
    unjudged = SeenRun([Evaluation(0, ({"prompt": "p", "proxy/a": [1.0]},))], {"a": 1.0})
    with pytest.raises(EvaluationError, match="Got a run that nobody judged"):
        find_proxy_points([unjudged], ProxyPoints())
    other = SeenRun([Evaluation(0, ({"prompt": "p", "proxy/a": [1.0], "gold": [1.0]},))], {"a": 1.0})
    with pytest.raises(EvaluationError, match="Got runs of the rewards proxy/a, proxy/b and proxy/a"):
        find_proxy_points([run, other], ProxyPoints())
