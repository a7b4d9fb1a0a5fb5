"""A mean over few noisy vectors, taken after a weighted principal component analysis of them."""

# n vectors, d their dimension, k directions kept.
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class DenoisedMean(NamedTuple):
    """A mean and how many directions were kept for it."""

    mean_d: Floats
    kept: int


def denoised_mean(vectors_nd: ArrayLike, *, energy: float, weights_n: ArrayLike | None = None) -> DenoisedMean:
    r"""Mean of vectors that were projected on their strongest common directions.

    .. math:: S = \sum_i w_i z_i z_i^\top, \qquad \hat z_i = V_k V_k^\top z_i, \qquad \mu = \frac1n \sum_i \hat z_i

    :math:`V_k` are the fewest eigenvectors of :math:`S` that hold the share `energy` of its trace. The second moment is not centred: around
    the mean, reconstructions of any rank have the very mean that they started from, and nothing would be denoised. It helps where vectors
    differ along few directions; where all are one direction and noise, the strongest direction is their noisy mean's own.

    Args:
        vectors_nd: Vectors, shape `(n, d)`.
        energy: Share of the weighted second moment that is kept, in (0, 1]; 1 keeps all and gives the plain mean.
        weights_n: A weight a vector, 0 or more, not all 0; all alike where there are none.

    Example:
        >>> denoised_mean([[1.0, 0.1], [1.0, -0.1]], energy=0.9)
        DenoisedMean(mean_d=array([1., 0.]), kept=1)
        >>> denoised_mean([[3.0, 1.0], [1.0, 2.0]], energy=1.0).mean_d
        array([2. , 1.5])
    """
    vectors = np.asarray(vectors_nd, dtype=np.float64)
    mean = vectors.mean(axis=0)
    weights = np.ones(len(vectors)) if weights_n is None else np.asarray(weights_n, dtype=np.float64)
    _, singular, directions_kd = np.linalg.svd(np.sqrt(weights / weights.sum())[:, None] * vectors, full_matrices=False)
    held = np.cumsum(singular**2)
    if energy >= 1 or held[-1] == 0:
        return DenoisedMean(mean, int(np.count_nonzero(singular)))
    kept = int(np.searchsorted(held, energy * held[-1])) + 1
    return DenoisedMean(directions_kd[:kept].T @ (directions_kd[:kept] @ mean), kept)
