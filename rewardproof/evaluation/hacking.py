"""Is a reward model gamed by best-of-n? Its curve over training seeds and prompts, the law that it follows, and what gold loses."""

# Shapes: S training seeds, P prompts, L values of n.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.evaluation.best_of_n import Pools, best_of_n_columns
from rewardproof.evaluation.in_text import KEY, as_text, of_text
from rewardproof.evaluation.law import LawRange, law_with_range
from rewardproof.statistics import GoldLaw, Interval, crossed_interval, kl_upper_bound
from rewardproof.statistics.checks import FloatArray

COLUMNS = ("gold", "proxy", "ceiling")
GOLD, PROXY, CEILING = range(len(COLUMNS))


@dataclass(frozen=True, slots=True)
class Hacking:
    """How a reward model fares while best-of-n optimises against it; intervals are over training seeds and prompts.

    Attributes:
        ns: Values of n.
        kl: Upper bound of the KL divergence at each n, in nats; loose where scores tie, and no measure for a trained policy.
        gold: Gold score of the pick at each n.
        gain: The same above that of an answer picked at random, prompt by prompt, which leaves out what only prompts differ in.
        proxy: Proxy score of the pick at each n, in each proxy's own standard deviations above its own mean over all pools.
        ceiling: Gold score at each n if gold did the picking.
        random_gold: Gold score of an answer picked at random.
        peak_n: The n at which gold is highest.
        fall: Gold at `peak_n` less gold at the largest n. The peak is chosen on the same prompts, which overstates it a little.
        gap: Standard deviations that the proxy promises at the largest n, less those that gold delivers.
        lengths: Characters of the pick at each n, in the mean; empty where they are not known.
        law: Gold above its start against the root of KL; `None` where there are too few values of n.
        law_range: Its ranges.
        n_seeds: Reward models.
        n_prompts: Prompts.
        pool: Answers in the smallest pool.
    """

    ns: tuple[int, ...]
    kl: tuple[float, ...]
    gold: tuple[Interval, ...]
    gain: tuple[Interval, ...]
    proxy: tuple[Interval, ...]
    ceiling: tuple[float, ...]
    random_gold: Interval
    peak_n: int
    fall: Interval
    gap: Interval
    lengths: tuple[float, ...]
    law: GoldLaw | None
    law_range: LawRange | None
    n_seeds: int
    n_prompts: int
    pool: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        for name in ("gold", "gain", "proxy"):
            values[name] = [interval.as_dict() for interval in getattr(self, name)]
        for name in ("random_gold", "fall", "gap"):
            values[name] = getattr(self, name).as_dict()
        if self.law is not None:
            values["law"]["peak"] = self.law.peak
        return values


class BestOfNRuns:
    """What one method's reward models, one a training seed, pick from the same pools."""

    def __init__(
        self, proxies: Sequence[Pools], gold: Pools, ns: Sequence[int], prompts: Sequence[str], *, lengths: Pools | None = None
    ) -> None:
        """Let every reward model pick.

        Args:
            proxies: Scores by each reward model, one list a prompt.
            gold: Gold scores of the same answers in the same order.
            ns: Values of n, ascending, each smaller than the smallest pool.
            prompts: Key of each pool's prompt.
            lengths: Characters of the same answers; a pick that grows with n is the commonest hack.

        Raises:
            EvaluationError: There is no reward model, one gives all answers the same score, or as `best_of_n_columns`.
        """
        if not proxies:
            raise EvaluationError("Got no reward model's scores, expected those of one at least; name a model.")
        self.ns = tuple(int(n) for n in ns)
        self.columns_SP3L = np.stack([best_of_n_columns(proxy, gold, ns) for proxy in proxies])
        for seed, proxy in enumerate(proxies):
            flat = np.concatenate([np.asarray(pool, dtype=np.float64) for pool in proxy])
            if flat.std() == 0:
                raise EvaluationError(
                    f"Reward model {seed} gives all {len(flat)} answers the score {flat[0]:.4g}, expected scores that differ: it picks "
                    "nothing. Check the model."
                )
            self.columns_SP3L[seed, :, PROXY] = (self.columns_SP3L[seed, :, PROXY] - flat.mean()) / flat.std()
        self.length_SPL = None if lengths is None else np.stack([best_of_n_columns(proxy, lengths, ns)[:, GOLD] for proxy in proxies])
        golds = [np.asarray(pool, dtype=np.float64) for pool in gold]
        self.random_P = np.array([pool.mean() for pool in golds])
        everything = np.concatenate(golds)
        self.gold_mean, self.gold_std = float(everything.mean()), float(everything.std())
        self.pool = min(len(pool) for pool in golds)
        self.prompts = tuple(prompts)

    def stored(self) -> dict[str, Any]:
        """Plain values from which `joined` makes the same runs, to five digits: rows of numbers as text, one a prompt."""
        return {
            "ns": list(self.ns),
            "pool": self.pool,
            "prompts": " ".join(key[:KEY] for key in self.prompts),
            "gold_mean": self.gold_mean,
            "gold_std": self.gold_std,
            "random": as_text(self.random_P[None])[0],
            **{name: [as_text(seed_PL) for seed_PL in self.columns_SP3L[:, :, place]] for place, name in enumerate(COLUMNS)},
            **({} if self.length_SPL is None else {"length": [as_text(seed_PL) for seed_PL in self.length_SPL]}),
        }

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Any]]) -> BestOfNRuns:
        """Runs that `stored` gave, those of all parts together.

        Raises:
            EvaluationError: They are of different prompts or values of n.
        """
        first, made = parts[0], cls.__new__(cls)
        random_P = of_text([first["random"]])[0]
        # To five digits and a rounding: a reward model that judges as gold is not the same to the last bit on every machine.
        if any(
            (part["ns"], part["prompts"]) != (first["ns"], first["prompts"])
            or not np.allclose(of_text([part["random"]])[0], random_P, rtol=1e-3, atol=1e-3)
            for part in parts
        ):
            raise EvaluationError("Got picks from different pools or for different n, expected the same; give parts of one study's pool.")
        made.ns, made.pool, made.prompts = tuple(first["ns"]), first["pool"], tuple(first["prompts"].split())
        made.gold_mean, made.gold_std = first["gold_mean"], first["gold_std"]
        made.random_P = random_P
        columns = [np.stack([[of_text(seed) for seed in part[name]] for name in COLUMNS], axis=2) for part in parts]
        made.columns_SP3L = np.concatenate(columns)
        measured = all("length" in part for part in parts)
        made.length_SPL = np.concatenate([[of_text(seed) for seed in part["length"]] for part in parts]) if measured else None
        return made

    def minus(self, other: BestOfNRuns) -> Interval | None:
        """Gold of the pick at the largest n less another method's, on the same prompts, seed by seed; `None` where seeds do not pair."""
        if len(self.columns_SP3L) != len(other.columns_SP3L) or self.prompts != other.prompts or self.ns != other.ns:
            return None
        return self._interval(self.columns_SP3L[:, :, GOLD, -1] - other.columns_SP3L[:, :, GOLD, -1])

    def summary(self, *, seed: int = 0) -> Hacking:
        """Curves, losses and the law, with intervals.

        Args:
            seed: Of the resampling behind the law's ranges.
        """
        gold_SPL, proxy_SPL = self.columns_SP3L[:, :, GOLD], self.columns_SP3L[:, :, PROXY]
        mean_L = gold_SPL.mean(axis=(0, 1))
        peak = int(mean_L.argmax())
        delivered_SP = (gold_SPL[:, :, -1] - self.gold_mean) / (self.gold_std or 1.0)
        kl_L = kl_upper_bound(self.ns)
        law, ranges = law_with_range(kl_L[None, None], gold_SPL, self.prompts, "best_of_n", seed=seed)
        return Hacking(
            ns=self.ns,
            kl=tuple(kl_L.tolist()),
            gold=tuple(self._interval(gold_SPL[:, :, place]) for place in range(len(self.ns))),
            gain=tuple(self._interval(gold_SPL[:, :, place] - self.random_P) for place in range(len(self.ns))),
            proxy=tuple(self._interval(proxy_SPL[:, :, place]) for place in range(len(self.ns))),
            ceiling=tuple(self.columns_SP3L[0, :, CEILING].mean(axis=0).tolist()),
            random_gold=self._interval(self.random_P[None]),
            peak_n=self.ns[peak],
            fall=self._interval(gold_SPL[:, :, peak] - gold_SPL[:, :, -1]),
            gap=self._interval(proxy_SPL[:, :, -1] - delivered_SP),
            lengths=() if self.length_SPL is None else tuple(self.length_SPL.mean(axis=(0, 1)).tolist()),
            law=law,
            law_range=ranges,
            n_seeds=len(gold_SPL),
            n_prompts=gold_SPL.shape[1],
            pool=self.pool,
        )

    def _interval(self, value_SP: FloatArray) -> Interval:
        seeds, prompts = np.indices(value_SP.shape)
        return crossed_interval(value_SP.ravel(), seeds.ravel().tolist(), [self.prompts[place] for place in prompts.ravel()])
