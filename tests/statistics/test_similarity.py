"""Mean similarities against loops over pairs, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.statistics import kind_similarity

GENERATOR = np.random.default_rng(0)
VECTORS = GENERATOR.normal(size=(24, 5)) + 0.5
MARKED = (GENERATOR.random(24) < 0.4).astype(float)
PROMPTS = [f"p{place // 4}" for place in range(24)]


def test_means_are_those_of_all_pairs_of_different_prompts() -> None:
    found: dict[tuple[float, float], list[float]] = {}
    for i, j in itertools.combinations(range(24), 2):
        if PROMPTS[i] != PROMPTS[j]:
            cosine = VECTORS[i] @ VECTORS[j] / np.linalg.norm(VECTORS[i]) / np.linalg.norm(VECTORS[j])
            found.setdefault((min(MARKED[i], MARKED[j]), max(MARKED[i], MARKED[j])), []).append(cosine)
    similarity = kind_similarity(VECTORS, MARKED, PROMPTS)
    for one, key in ((similarity.marked, (1, 1)), (similarity.others, (0, 0)), (similarity.across, (0, 1))):
        assert one.estimate == pytest.approx(np.mean(found[key]))
        assert one.n == len(found[key])
        assert one.low <= one.estimate <= one.high
    assert similarity.others.n_clusters == 6


def test_length_of_a_vector_and_order_of_the_rows_do_not_enter() -> None:
    order = GENERATOR.permutation(24)
    moved = kind_similarity(VECTORS[order] * GENERATOR.uniform(1, 9, size=(24, 1)), MARKED[order], [PROMPTS[place] for place in order])
    for one, other in zip(kind_similarity(VECTORS, MARKED, PROMPTS), moved, strict=True):
        assert one.estimate == pytest.approx(other.estimate)


def test_intervals_narrow_as_prompts_become_more() -> None:
    def width(prompts: int) -> float:
        draw = np.random.default_rng(1)
        centres = np.repeat(draw.normal(size=(prompts, 4)) + 1, 3, axis=0)
        one = kind_similarity(centres, np.zeros(3 * prompts), np.repeat(np.arange(prompts), 3)).others
        return one.high - one.low

    assert width(100) < 0.6 * width(12)


def test_a_kind_without_two_prompts_has_no_similarity() -> None:
    found = kind_similarity(VECTORS[:8], np.array([1.0] * 4 + [0] * 4), PROMPTS[:8])
    assert np.isnan(found.marked.estimate)
    assert found.marked.as_dict()["low"] is None
    assert found.across.n == 16


def test_what_has_no_direction_is_refused() -> None:
    with pytest.raises(EvaluationError, match="a vector that is zero or not finite"):
        kind_similarity(np.zeros((3, 2)), np.ones(3), "abc")
    with pytest.raises(EvaluationError, match="vectors and marks have 24 and 3 rows"):
        kind_similarity(VECTORS, np.ones(3), PROMPTS)
