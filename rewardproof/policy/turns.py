"""Whose turn it is: things are taken so many at a time, each once before any comes again, in an order that the seed alone decides."""

from __future__ import annotations

import numpy as np


def in_turn(count: int, number: int, *, size: int, seed: int) -> list[int]:
    """Which of `count` things are taken at a time `number`, counted from 0, when `size` are taken each time.

    Example:
        >>> sorted(in_turn(4, 0, size=2, seed=1) + in_turn(4, 1, size=2, seed=1))
        [0, 1, 2, 3]
    """
    places = range(number * size, (number + 1) * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]
