"""Several percentile intervals that hold together, from few clusters: the level at which each has to be taken."""

from __future__ import annotations

import math

from scipy import stats

from rewardproof.errors import EvaluationError

_NEAREST = 1 - 1e-12
"""The level nearest to certainty."""


def simultaneous_level(n_intervals: int, n_clusters: int, *, level: float = 0.95) -> float:
    r"""Level of each of several bootstrap intervals, so that all of them hold together with the level that is asked.

    Bonferroni's inequality shares the error out. A percentile interval is narrow for few clusters, by
    :math:`\sqrt{(C-1)/C}` and for want of Student's quantile; its own level is raised until a normal mean is covered as stated:

    .. math:: 1 - 2 \Phi\left(-\sqrt{\tfrac{C}{C-1}}\; t_{\alpha / 2m,\, C-1}\right)

    Args:
        n_intervals: How many are read together, m.
        n_clusters: Clusters that each resamples, C.
        level: Probability that all of them cover what they estimate.

    Returns:
        A level for `cluster_bootstrap`; above `level`, and with few clusters so near to 1 that it needs many resamples.

    Raises:
        EvaluationError: There are no intervals, or the level is none.

    Example:
        >>> round(simultaneous_level(1, 10_000), 3), round(simultaneous_level(20, 50), 4)
        (0.95, 0.9987)

    Reference:
        Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 4.1 (expanded percentile interval).
    """
    if n_intervals < 1 or not 0.0 < level < 1.0:
        raise EvaluationError(
            f"Got {n_intervals} intervals at level {level}; expected at least one and a level in (0, 1), for example 0.95. Correct them."
        )
    if n_clusters < 2:
        return level  # there is no interval to widen
    quantile = float(stats.t.ppf((1 - level) / (2 * n_intervals), n_clusters - 1))
    raised = 1 - 2 * float(stats.norm.cdf(math.sqrt(n_clusters / (n_clusters - 1)) * quantile))
    return min(raised, _NEAREST)
