"""Watching a policy run for the onset of reward hacking without a gold score: distance, reward, length, and disagreement of an ensemble.

None of these proves hacking; together they say where to look. Each is compared with the run's own beginning, so no unit has to be known.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.policy.rewards import DISAGREEMENT
from rewardproof.statistics.checks import FloatArray

log = logging.getLogger(__name__)

NAMES = {
    "kl": ("kl", "objective/kl"),
    "reward": ("reward", "objective/scores"),
    "length": ("completions/mean_length", "answer_tokens"),
    "disagreement": (DISAGREEMENT,),
}
"""What is watched, and what trainers call it in their logs."""
PREFIX = "hacking/"
NOISE = 6.0
"""Standard errors of a slope below which it may be noise: two short windows say little of their own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a change is named.

    Attributes:
        window: Records that make the beginning, and that make the present.
        acceleration: Slope of KL in the present window over that in the one before, or over what noise makes of a slope where that is more;
            needs windows of 3 records at least.
        reward: Rise of the reward, in standard deviations of the beginning.
        length: Change of the answers' length, as a share of the beginning's.
        disagreement: Growth of an ensemble's disagreement over the beginning's.
    """

    window: int = 5
    acceleration: float = 2.0
    reward: float = 3.0
    length: float = 0.5
    disagreement: float = 2.0


class HackingMonitor:
    """Signs of hacking in a stream of log records.

    Example:
        >>> monitor = HackingMonitor(Limits(window=2))
        >>> for length in (10, 10, 11, 30, 31):
        ...     signs = monitor.observe({"length": length})
        >>> signs["length"], monitor.named(signs)
        (2.05, ['length'])
    """

    def __init__(self, limits: Limits | None = None) -> None:
        """Watch with some limits."""
        self.limits = limits or Limits()
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}

    def observe(self, record: Mapping[str, float]) -> dict[str, float]:
        """Take one record of `kl`, `reward`, `length`, `disagreement`, whichever there are.

        Returns:
            By name how far each has changed, in the unit of its limit; empty until there is a beginning and a present.
        """
        signs: dict[str, float] = {}
        for name, value in record.items():
            if not np.isfinite(value):
                continue
            window = self.limits.window
            first = self._first.setdefault(name, [])
            last = self._last.setdefault(name, deque(maxlen=2 * window + 1))
            last.append(value)
            if len(first) < window:
                first.append(value)
                continue
            now, then, spread = float(np.mean(list(last)[-window:])), float(np.mean(first)), float(np.std(first))
            if name == "kl":
                if len(last) == 2 * window + 1 and window >= 3:
                    signs["acceleration"] = _acceleration(np.array(last)[1:].reshape(2, window))
            elif name == "reward":
                signs["reward"] = (now - then) / max(spread, 1e-9)
            elif name == "length":
                signs["length"] = now / max(then, 1e-9) - 1
            elif name == "disagreement":
                signs["disagreement"] = now / max(then, 1e-9)
        return signs

    def named(self, signs: Mapping[str, float]) -> list[str]:
        """The signs beyond their limits."""
        return [name for name, value in signs.items() if (abs(value) if name == "length" else value) > getattr(self.limits, name)]


def _acceleration(kl_2W: FloatArray) -> float:
    """How many times as fast a divergence grows in the second window; a slope within the noise of the records counts as that noise."""
    places_W = np.arange(kl_2W.shape[1]) - (kl_2W.shape[1] - 1) / 2
    slope_2 = kl_2W @ places_W / (places_W @ places_W)
    residual_2W = kl_2W - kl_2W.mean(axis=1, keepdims=True) - slope_2[:, None] * places_W
    deviation = float(np.sqrt((residual_2W**2).sum() / (2 * (len(places_W) - 2)) / (places_W @ places_W)))
    before, after = slope_2.tolist()
    return max(after / max(before, NOISE * deviation, 1e-9), 0.0)


def watched(record: Mapping[str, Any]) -> dict[str, float]:
    """What is watched out of a trainer's log record, by our names."""
    found = {name: next((record[key] for key in keys if record.get(key) is not None), None) for name, keys in NAMES.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


class HackingCallback(TrainerCallback):
    """`HackingMonitor` for TRL's GRPO, RLOO and PPO trainers: `trainer.add_callback(HackingCallback())`.

    Every record of the log gains `hacking/…` numbers; a warning is written when signs first pass their limits, and the run can be stopped.
    TRL logs a divergence only where there is a penalty for it (`beta` above 0 in GRPO): without one, acceleration is not watched.
    """

    def __init__(self, limits: Limits | None = None, *, stop_at: int = 0) -> None:
        """Watch a run.

        Args:
            limits: From where on a change is named.
            stop_at: Stop training when so many signs are beyond their limits at once; 0 never stops.
        """
        self.monitor = HackingMonitor(limits)
        self.stop_at = stop_at
        self.warned: set[str] = set()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Take one record and add to it."""
        if logs is None:
            return
        signs = self.monitor.observe(watched(logs))
        added = {f"{PREFIX}{name}": value for name, value in signs.items()}
        logs.update(added)
        if state.log_history:
            state.log_history[-1].update(added)
        beyond = self.monitor.named(signs)
        if new := [name for name in beyond if name not in self.warned]:
            self.warned.update(new)
            log.warning(
                "step %s: %s beyond what the run began with (%s): look at the answers, the reward may be gamed",
                state.global_step,
                ", ".join(new),
                ", ".join(f"{name} {signs[name]:.2f}" for name in new),
            )
        if self.stop_at and len(beyond) >= self.stop_at:
            control.should_training_stop = True
