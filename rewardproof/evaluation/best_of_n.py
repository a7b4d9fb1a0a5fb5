"""What best-of-n picks from pools of answers, and what gold says of the picks, prompt by prompt."""

# Shapes: P prompts, N answers in a prompt's pool, L values of n.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics import best_of_n
from rewardproof.statistics.checks import FloatArray, finite

Pools: TypeAlias = Sequence[Sequence[float] | FloatArray] | FloatArray


def best_of_n_columns(proxy: Pools, gold: Pools, ns: Sequence[int]) -> FloatArray:
    """What the pick of n scores, prompt by prompt, shape `(P, 3, L)`: gold and proxy where the proxy picks, and gold where gold does.

    Args:
        proxy: Proxy scores, one list a prompt; pools may differ in size.
        gold: Gold scores of the same answers in the same order.
        ns: Values of n, ascending, each smaller than the smallest pool.

    Raises:
        EvaluationError: If the shapes differ, a score is not finite, `ns` does not ascend from 1 or more, or a pool has no more than max n.

    Example:
        >>> columns = best_of_n_columns(proxy=[[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]], gold=[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], ns=[1, 2])
        >>> columns[:, 0].mean(axis=0).round(3).tolist(), columns[:, 2].mean(axis=0).round(3).tolist()
        ([0.333, 0.5], [0.333, 0.667])

    Reference:
        Gao et al., arXiv:2210.10760; estimator: Nakano et al., WebGPT, arXiv:2112.09332, appendix I.
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
