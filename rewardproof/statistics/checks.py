"""What every estimator asks of its numbers: there are some, they are finite, and they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewardproof.errors import EvaluationError

FloatArray: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.number | np.bool_]


def finite(values: Numbers, name: str) -> FloatArray:
    """The values as float64, or an error that names the first place where they are not finite.

    Raises:
        EvaluationError: If there are no values, or one is NaN or infinite.

    Example:
        >>> finite([1, 2], "scores")
        array([1., 2.])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise EvaluationError(f"no {name} given; expected at least one. A statistic of nothing is undefined: check what was filtered out.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise EvaluationError(
            f"{len(bad)} of {array.size} {name} are not finite (the first, {array[place]}, at index {', '.join(map(str, place))}); "
            "expected finite numbers. Averaging around them would hide a broken model: find the rows and fix or drop them by name."
        )
    return array


def same_length(first: npt.NDArray[np.generic], second: Sequence[object] | npt.NDArray[np.generic], names: str) -> None:
    """Stop where two columns do not describe the same rows.

    Raises:
        EvaluationError: If the lengths differ.

    Example:
        >>> same_length(np.zeros(2), ["a", "b"], "values and clusters")
    """
    if len(first) != len(second):
        raise EvaluationError(
            f"{names} have {len(first)} and {len(second)} rows; expected one of each a row. Pairing the wrong rows would give a "
            "plausible wrong number: pass columns of the same rows."
        )
