"""`over_seeds`: its number is the mean of the seeds' numbers, its interval that of the crossed estimator where a line has one part."""

from __future__ import annotations

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import over_seeds
from rewardproof.evaluation.published import Line, Part
from rewardproof.statistics import crossed_interval
from rewardproof.statistics.checks import FloatArray


def part(name: str, credit_N: FloatArray, clusters: tuple[str, ...]) -> Part:
    return Part(name, np.repeat(credit_N[:, None], 3, axis=1), clusters)


def prompts(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{place // 2}" for place in range(count))


def line(credits: list[FloatArray], weights: tuple[float, ...]) -> Line:
    names = "abc"[: len(credits)]
    return Line("number", weights, tuple(part(name, own, prompts(name, len(own))) for name, own in zip(names, credits, strict=True)))


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.2, 0.3, 0.5)])
def test_the_number_is_the_mean_of_the_seeds_numbers(weights: tuple[float, ...]) -> None:
    draw = np.random.default_rng(0)
    sizes = (8, 20, 5)[: len(weights)]
    lines = [line([draw.random(size) for size in sizes], weights) for _ in range(3)]
    found = over_seeds(lines)
    assert found.estimate == pytest.approx(np.mean([one.estimate() for one in lines]), abs=1e-12)
    assert found.low < found.estimate < found.high


def test_one_part_has_the_crossed_interval_of_its_rows() -> None:
    draw = np.random.default_rng(1)
    credit_SN = draw.random((3, 12))
    found = over_seeds([line([credit_N], (1.0,)) for credit_N in credit_SN])
    clusters = list(prompts("a", 12))
    expected = crossed_interval(credit_SN.ravel(), [seed for seed in range(3) for _ in clusters], clusters * 3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_parts_of_equal_size_and_weight_are_as_one() -> None:
    draw = np.random.default_rng(2)
    halves = [[draw.random(10) + place for place in (0.0, 0.0)] for _ in range(3)]
    two = over_seeds([line(own, (0.5, 0.5)) for own in halves])
    assert two.estimate == pytest.approx(np.mean([np.concatenate(own).mean() for own in halves]), abs=1e-12)


def test_parts_that_differ_in_level_alone_are_certain() -> None:
    """How far parts' means lie from one another is no uncertainty of a number that always has both."""
    levels = [np.full(10, 0.1), np.full(20, 0.9)]
    found = over_seeds([line(levels, (0.5, 0.5))] * 2)
    assert found.estimate == pytest.approx(0.5, abs=1e-12)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-9)


def test_intervals_cover_across_seeds_and_prompts() -> None:
    """Drawn from a known population of seeds and prompts, 95 % intervals hold its number nearly as often as they say."""
    draw, truth, held = np.random.default_rng(3), 0.5, 0
    for _ in range(200):
        seed_S, easy_N, other_N = draw.normal(0, 0.05, 3), draw.normal(0, 0.1, 30), draw.normal(0, 0.3, 50)
        lines = []
        for shift in seed_S:
            noise = [draw.normal(0, 0.1, 30), draw.normal(0, 0.1, 50)]
            credits = [0.4 + shift + easy_N + noise[0], 0.6 + shift + other_N + noise[1]]
            names = (tuple(f"a{n}" for n in range(30)), tuple(f"b{n}" for n in range(50)))
            lines.append(Line("n", (0.5, 0.5), tuple(part(str(p), credits[p], names[p]) for p in (0, 1))))
        found = over_seeds(lines)
        held += found.low <= truth <= found.high
    assert held / 200 > 0.9


def test_rows_that_all_agree_prove_no_certainty() -> None:
    found = over_seeds([line([np.ones(6)], (1.0,))] * 3)
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low < 0.6


def test_a_share_stays_one_where_seeds_are_far_apart() -> None:
    good, bad = line([np.array([1.0] * 9 + [0.0])], (1.0,)), line([np.array([0.0] * 9 + [1.0])], (1.0,))
    found = over_seeds([good, bad])
    assert (found.low, found.high) == (0.0, 1.0)
    assert over_seeds([good, bad], [bad, good]).low < -1


def test_a_difference_is_taken_row_by_row() -> None:
    draw = np.random.default_rng(4)
    base = [draw.random(15) for _ in range(3)]
    mine = [line([own + 0.1], (1.0,)) for own in base]
    found = over_seeds(mine, [line([own], (1.0,)) for own in base])
    assert (found.estimate, found.high - found.low) == pytest.approx((0.1, 0.0), abs=1e-9)


def test_other_rows_or_seeds_are_refused() -> None:
    one, other = line([np.zeros(4)], (1.0,)), line([np.zeros(6)], (1.0,))
    with pytest.raises(EvaluationError, match="same rows"):
        over_seeds([one, other])
    with pytest.raises(EvaluationError, match="same rows"):
        over_seeds([one], [other])
    with pytest.raises(EvaluationError, match="as many of both"):
        over_seeds([one, one], [one])
    with pytest.raises(EvaluationError, match="at least one"):
        over_seeds([])
