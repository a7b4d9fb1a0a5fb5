"""Over-optimisation by best-of-n: as n grows the proxy's score must rise; does gold rise with it, or fall?"""

# Shapes: P prompts, N answers in a prompt's pool, L values of n.

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics import Interval, best_of_n, cluster_bootstrap, cluster_bootstrap_columns, kl_upper_bound
from rewardproof.statistics.checks import FloatArray, finite

Pools: TypeAlias = Sequence[Sequence[float] | FloatArray] | FloatArray


@dataclass(frozen=True, slots=True)
class BestOfNCurve:
    """Mean scores of the answer that the proxy picks among n, over prompts.

    Attributes:
        ns: Values of n.
        kl: Upper bound of the KL divergence at each n, in nats; not comparable with the KL of a trained policy.
        gold: Mean gold score at each n.
        proxy: Mean proxy score at each n, in the proxy's own units.
        oracle: Mean gold score at each n if gold itself did the picking: the ceiling.
        random_gold: Mean gold score of an answer picked at random, which is n = 1.
        proxy_mean: Mean proxy score over all pools, the zero of the z-scored proxy.
        proxy_std: Standard deviation of the proxy over all pools, its unit; proxies compare in these units only.
        n_prompts: Prompts.
        pool: Answers in the smallest pool.
    """

    ns: tuple[int, ...]
    kl: tuple[float, ...]
    gold: tuple[Interval, ...]
    proxy: tuple[Interval, ...]
    oracle: tuple[Interval, ...]
    random_gold: Interval
    proxy_mean: float
    proxy_std: float
    n_prompts: int
    pool: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        for name in ("gold", "proxy", "oracle"):
            values[name] = [interval.as_dict() for interval in getattr(self, name)]
        values["random_gold"] = self.random_gold.as_dict()
        return values


def best_of_n_curve(
    proxy: Pools,
    gold: Pools,
    ns: Sequence[int],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> BestOfNCurve:
    """Gold and proxy score of best-of-n for every n at once, from one pool of answers a prompt.

    Args:
        proxy: Proxy scores, one list a prompt; pools may differ in size.
        gold: Gold scores of the same answers in the same order.
        ns: Values of n, ascending, each smaller than the smallest pool.
        clusters: What the bootstrap resamples, one a prompt; each prompt for itself if absent.
        seed: Seed of the bootstrap.

    Returns:
        The curve with intervals over prompts.

    Raises:
        EvaluationError: If the shapes differ, a score is not finite, `ns` does not ascend from 1 or more, or a pool has no more than max n.

    Example:
        >>> curve = best_of_n_curve(proxy=[[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]], gold=[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], ns=[1, 2])
        >>> [round(g.estimate, 3) for g in curve.gold], round(curve.oracle[1].estimate, 3), curve.pool
        ([0.333, 0.5], 0.667, 3)

    Reference:
        Gao et al., arXiv:2210.10760; estimator: Nakano et al., WebGPT, arXiv:2112.09332, appendix I.
    """
    proxies, golds = _pools(proxy, gold)
    columns_P3L = best_of_n_columns(proxies, golds, ns)
    intervals = cluster_bootstrap_columns(columns_P3L.reshape(len(proxies), -1), clusters, seed=seed)
    length = len(ns)
    everything = np.concatenate(proxies)
    return BestOfNCurve(
        ns=tuple(int(n) for n in ns),
        kl=tuple(kl_upper_bound(ns).tolist()),
        gold=tuple(intervals[:length]),
        proxy=tuple(intervals[length : 2 * length]),
        oracle=tuple(intervals[2 * length :]),
        random_gold=cluster_bootstrap([float(pool.mean()) for pool in golds], clusters, seed=seed),
        proxy_mean=float(everything.mean()),
        proxy_std=float(everything.std()),
        n_prompts=len(proxies),
        pool=min(len(pool) for pool in proxies),
    )


def best_of_n_columns(proxy: Pools, gold: Pools, ns: Sequence[int]) -> FloatArray:
    """What the pick of n scores, prompt by prompt, shape `(P, 3, L)`: gold and proxy where the proxy picks, and gold where gold does.

    Args:
        proxy: Proxy scores, one list a prompt; pools may differ in size.
        gold: Gold scores of the same answers in the same order.
        ns: Values of n, ascending, each smaller than the smallest pool.

    Raises:
        EvaluationError: As `best_of_n_curve`.
    """
    proxies, golds = _pools(proxy, gold)
    sizes = np.asarray([len(pool) for pool in proxies])
    _check_ns(ns, int(sizes.min()))
    columns_P3L = np.empty((len(proxies), 3, len(ns)))
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        proxy_PN, gold_PN = np.stack([proxies[i] for i in rows]), np.stack([golds[i] for i in rows])
        for column, (picks, judged) in enumerate(((proxy_PN, gold_PN), (proxy_PN, proxy_PN), (gold_PN, gold_PN))):
            columns_P3L[rows, column] = best_of_n(picks, judged, ns)
    return columns_P3L


def _pools(proxy: Pools, gold: Pools) -> tuple[list[FloatArray], list[FloatArray]]:
    if len(proxy) != len(gold) or len(proxy) == 0:
        raise EvaluationError(
            f"{len(proxy)} proxy pools and {len(gold)} gold pools; expected one of each a prompt, and at least one prompt. "
            "Score one set of pools with both."
        )
    proxies = [finite(pool, f"proxy scores of prompt {i}") for i, pool in enumerate(proxy)]
    golds = [finite(pool, f"gold scores of prompt {i}") for i, pool in enumerate(gold)]
    for i, (p, g) in enumerate(zip(proxies, golds, strict=True)):
        if p.shape != g.shape:
            raise EvaluationError(
                f"prompt {i} has {p.size} proxy scores and {g.size} gold scores; expected one of each an answer, in the same order. "
                "Score one pool with both."
            )
    return proxies, golds


def _check_ns(ns: Sequence[int], pool: int) -> None:
    if not ns or min(ns) < 1 or any(b <= a for a, b in itertools.pairwise(ns)):
        raise EvaluationError(f"ns={list(ns)}; expected values of n that ascend from 1 or more, for example 1, 2, 4, 8.")
    if max(ns) >= pool:
        raise EvaluationError(
            f"n={max(ns)} with a smallest pool of {pool} answers; expected n <= {pool - 1}. At n = N one answer a prompt decides and the "
            "variance explodes: draw more answers or lower n."
        )
