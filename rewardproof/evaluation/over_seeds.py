"""A benchmark's number over several trainings of a method, and between two methods; with intervals for other seeds and other prompts."""

# Shapes: S seeds, N rows of a part; J judges, of which the model is the first.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.evaluation.published import Line
from rewardproof.statistics import Interval, crossed_interval
from rewardproof.statistics.checks import FloatArray


def over_seeds(lines: Sequence[Line], minus: Sequence[Line] = ()) -> Interval:
    """The mean over seeds of a line, which is a weighted mean of parts' means, or of its difference to another method's.

    `crossed_interval` of the rows' shares in the number: `x_spi = E + w_p (N / N_p) (c_spi − mean_p)` of row i of part p under seed s,
    whose mean over a seed's N rows is that seed's number, and whose distance from `E` is the row's own influence.

    Args:
        lines: The same line of the same rows, one a seed.
        minus: Likewise of the other method, the same seeds in the same order; compared row by row.

    Raises:
        EvaluationError: No line, or lines that are not of the same rows.

    Example:
        >>> from rewardproof.evaluation.published import Part
        >>> part = lambda *credits: Part("all", np.array([credits] * 3, dtype=float).T, ("a", "b", "c", "d"))
        >>> found = over_seeds([Line("n", (1.0,), (part(1, 1, 0, 1),)), Line("n", (1.0,), (part(1, 0, 0, 1),))])
        >>> found.estimate, found.n_clusters
        (0.625, 4)
    """
    if not lines or (minus and len(minus) != len(lines)):
        raise EvaluationError(f"Got {len(lines)} seeds and {len(minus)} to compare with, expected as many of both and at least one.")
    rows = [(line.label, line.weights, [part.clusters for part in line.parts]) for line in [*lines, *minus]]
    if any(row != rows[0] for row in rows):
        raise EvaluationError(
            f"{lines[0].label}: not all seeds were judged on the same rows, expected that: their numbers are compared row by row. Evaluate "
            "all of them on the same data."
        )
    credit_SN = [_credits(lines, minus, place) for place in range(len(lines[0].parts))]
    sizes = [credit.shape[1] for credit in credit_SN]
    means = [float(credit.mean()) for credit in credit_SN]
    number = sum(weight * mean for weight, mean in zip(lines[0].weights, means, strict=True))
    shares = [
        number + weight * sum(sizes) / size * (credit - mean)
        for weight, size, credit, mean in zip(lines[0].weights, sizes, credit_SN, means, strict=True)
    ]
    every = np.concatenate(credit_SN, axis=1)
    if not minus and every.min() == every.max() and every.flat[0] in (0.0, 1.0) and math.isclose(sum(lines[0].weights), 1.0):
        return lines[0].interval()  # Wilson's: rows that all agree prove no certainty
    clusters = [cluster for part in lines[0].parts for cluster in part.clusters]
    seeds = [seed for seed in range(len(lines)) for _ in clusters]
    found = crossed_interval(np.concatenate(shares, axis=1).ravel(), seeds, clusters * len(lines))
    if minus or every.min() < 0 or every.max() > 1 or sum(lines[0].weights) > 1 + 1e-9:
        return found
    return found.of_a_share()


def _credits(lines: Sequence[Line], minus: Sequence[Line], place: int) -> FloatArray:
    """Credits of a part's rows, `(S, N)`, or how far they differ."""
    mine = np.stack([line.parts[place].credit_NJ[:, 0] for line in lines])
    return mine - np.stack([line.parts[place].credit_NJ[:, 0] for line in minus]) if minus else mine
