"""Length and format in a reward: its slopes on them among the answers to one prompt, beside those of the data's own scores."""

# Shapes: N answers, K regressors.

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rewardproof.evaluation.audit.measures import RESAMPLES
from rewardproof.evaluation.audit.passages import LISTED
from rewardproof.statistics import Interval, cluster_slopes, determined, simultaneous_level
from rewardproof.statistics.checks import FloatArray

_HEADING = re.compile(r"^#{1,6}[ \t]", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2705]")


class Feature(NamedTuple):
    """A countable property of an answer."""

    of: Callable[[str], float]
    """Its value."""
    unit: str
    """What one more of it is."""


FEATURES: dict[str, Feature] = {
    "length": Feature(lambda text: math.log2(1 + len(text.split())), "doubling of the words"),
    "bullets": Feature(lambda text: float(len(LISTED.findall(text))), "list item"),
    "headings": Feature(lambda text: float(len(_HEADING.findall(text))), "heading"),
    "bold": Feature(lambda text: float(len(_BOLD.findall(text))), "bold phrase"),
    "emoji": Feature(lambda text: float(len(_EMOJI.findall(text))), "emoji"),
    "exclamations": Feature(lambda text: float(text.count("!")), "exclamation mark"),
}
"""All but the first are counted at equal length."""


@dataclass(frozen=True, slots=True)
class Slope:
    """What one more of a feature goes with, in standard deviations; nothing where the answers to a prompt do not differ in it.

    Attributes:
        share: Share of the answers that have any of it.
        reward: Of the reward.
        given: Of the data's own scores, where it has some.
        excess: Of the reward beyond the scores.
    """

    share: float
    reward: Interval | None
    given: Interval | None
    excess: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        intervals = {name: getattr(self, name) for name in ("reward", "given", "excess")}
        return {"share": self.share} | {name: None if interval is None else interval.as_dict() for name, interval in intervals.items()}


def slopes(
    texts: Sequence[str], prompts: Sequence[str], rewards: Sequence[float], given: Sequence[float] | None, *, seed: int = 0
) -> dict[str, Slope]:
    """Slopes of rewards on every feature; their intervals hold together with 95 %.

    Among the answers to one prompt where prompts have several, over all answers where none has.

    Args:
        texts: The answers.
        prompts: The prompt of each.
        rewards: In the model's units.
        given: The data's scores, in their own units; absent, or all equal, where nobody judged.
        seed: Of the resampling.
    """
    values = {name: np.array([feature.of(text) for text in texts]) for name, feature in FEATURES.items()}
    columns = {name: [value_N] if name == "length" else [value_N, values["length"]] for name, value_N in values.items()}
    measured = {name: np.stack(some, axis=1) for name, some in columns.items() if determined(np.stack(some, axis=1), prompts)}
    level = simultaneous_level(max(len(measured), 1), len(set(prompts)))

    def slope(y: FloatArray, x_NK: FloatArray) -> Interval:
        return cluster_slopes(y, x_NK, prompts, n_resamples=RESAMPLES, level=level, seed=seed)[0]

    reward_N, given_N = np.asarray(rewards), None if given is None else np.asarray(given)
    found: dict[str, Slope] = {}
    for name, value_N in values.items():
        x_NK = measured.get(name)
        found[name] = Slope(
            share=float(np.mean(value_N > 0)),
            reward=None if x_NK is None else slope(reward_N, x_NK),
            given=None if x_NK is None or given_N is None else slope(given_N, x_NK),
            excess=None if x_NK is None or given_N is None else slope(reward_N - given_N, x_NK),
        )
    return found
