"""Preference strength: how far several reward models put the preferred answer above the other, and what training makes of it.

`rewardproof strength` measures it and writes the column `strength`: a number for a row of two answers, for more a list with one for each
ordered pair, in the order of `ordered_pairs`. It belongs to the preference that the row records; who turns the preference round negates it.

Reference:
    Wang et al., Secrets of RLHF in Large Language Models, Part II, arXiv:2401.06080, section 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.config import Section
from rewardproof.data.group import Group
from rewardproof.data.pairs import Pair, ordered_pairs, swapped
from rewardproof.errors import DataError

STRENGTH, SPREAD = "strength", "strength_std"
"""The columns: mean and standard deviation, over the models, of the gap between the preferred answer's reward and the other's."""


class StrengthTreatment(Section):
    """What the preference strength μ of the rows does in training; `rewardproof strength` measures it."""

    treatment: Literal["none", "flip", "soft", "margin", "flip_margin", "soft_margin"] = "none"
    """`flip`: the labels of the weakest pairs are turned round; `soft`: the labels of some pairs are smoothed; `margin`: the gap has to
    exceed the pair's strength, which needs `loss.margin=data`; or one of the first two and margins."""
    flip_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the training pairs, those of lowest strength, whose labels `flip` turns round; published: 0.1 and 0.2."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that a label is wrong, of the pairs that `soft` smooths; the paper gives none."""
    smooth: Literal["negative", "all", "strongest"] = "negative"
    """The pairs that `soft` smooths: those of negative strength, all, or `strongest_share`."""
    strongest_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the training pairs, those of highest strength, that `smooth=strongest` smooths."""
    scale: Literal["std"] | Annotated[float, Field(gt=0)] = "std"
    """Margins in reward units: strengths divided by their standard deviation over the training pairs, or multiplied by a number (1 takes
    them as they are)."""

    @property
    def flips(self) -> bool:
        """Whether labels are turned round."""
        return self.treatment in ("flip", "flip_margin")

    @property
    def smooths(self) -> bool:
        """Whether labels are smoothed."""
        return self.treatment in ("soft", "soft_margin")

    @property
    def margins(self) -> bool:
        """Whether strengths become margins."""
        return self.treatment in ("margin", "flip_margin", "soft_margin")


def strengths_of(group: Group, pairs: Sequence[Pair]) -> tuple[float, ...]:
    """The strength of each pair, negated where the pair runs against what the row records (label noise).

    Args:
        group: The row, with its column in `meta`.
        pairs: Ordered pairs of the group, as they are or swapped.

    Raises:
        DataError: The row has no strength, or not one finite number for each ordered pair.
    """
    recorded = ordered_pairs(group)
    value = group.meta.get(STRENGTH)
    if value is None:
        raise DataError(
            f"{group.origin or group.id}: got a row without {STRENGTH!r}, expected how strongly reward models prefer its answers, which "
            "read.strength.treatment asks for. Measure it first: rewardproof strength DATA OUT.jsonl model=…, and train on OUT.jsonl."
        )
    values: Sequence[Any] = value if isinstance(value, (list, tuple)) else (value,)
    numbers = [entry for entry in values if isinstance(entry, (int, float)) and not isinstance(entry, bool) and math.isfinite(entry)]
    if len(numbers) != len(values) or len(values) != len(recorded):
        raise DataError(
            f"{group.origin or group.id}: got {STRENGTH}={value!r:.80}, expected a finite number for each of its {len(recorded)} ordered "
            "pairs: strengths could not be matched with pairs. Measure them again with rewardproof strength."
        )
    of = {(pair.winner, pair.loser): float(number) for pair, number in zip(recorded, numbers, strict=True)}
    return tuple(of[pair.winner, pair.loser] if (pair.winner, pair.loser) in of else -of[pair.loser, pair.winner] for pair in pairs)


@dataclass(frozen=True, slots=True)
class Treated:
    """A treatment whose cuts and unit are measured on the training pairs.

    Attributes:
        settings: The treatment.
        flip_to: Strength up to which labels are turned round.
        smooth_from: Strength from which a pair is one of the strongest.
        unit: Factor from strengths to margins.
        counts: What was done, added to with every pair.
    """

    settings: StrengthTreatment
    flip_to: float
    smooth_from: float
    unit: float
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def measured(cls, settings: StrengthTreatment, strengths: Iterable[float]) -> Treated:
        """Find cuts and unit.

        Args:
            settings: The treatment.
            strengths: Those of all training pairs, each for the label as it is trained on.

        Raises:
            DataError: Margins in units of the strengths' spread, and all strengths are equal.
        """
        ordered = sorted(strengths)
        weakest, strongest = (round(share * len(ordered)) for share in (settings.flip_share, settings.strongest_share))
        unit = settings.scale if settings.scale != "std" else 1 / _std(ordered) if settings.margins else 1.0
        return cls(
            settings,
            flip_to=ordered[weakest - 1] if weakest else -math.inf,
            smooth_from=ordered[len(ordered) - strongest] if strongest else math.inf,
            unit=unit,
        )

    def pairs(self, pairs: Sequence[Pair], strengths: Sequence[float]) -> tuple[Pair, ...]:
        """The pairs as they are trained on: labels turned round, margins and doubts set."""
        return tuple(self._pair(pair, strength) for pair, strength in zip(pairs, strengths, strict=True))

    def _pair(self, pair: Pair, strength: float) -> Pair:
        settings = self.settings
        self.counts.update(pairs=1, negative=int(strength < 0))
        if settings.flips and strength <= self.flip_to:
            self.counts.update(flipped=1, flipped_though_positive=int(strength > 0))
            pair, strength = swapped(pair), -strength
        if settings.smooths and self._is_smoothed(strength):
            self.counts.update(smoothed=1)
            pair = pair._replace(doubt=settings.smoothing)
        if settings.margins:
            self.counts.update(with_margin=int(strength > 0), margin_clipped_at_0=int(strength < 0))
            pair = pair._replace(margin=max(strength * self.unit, 0.0))
        return pair

    def _is_smoothed(self, strength: float) -> bool:
        smooth = self.settings.smooth
        return smooth == "all" or (strength < 0 if smooth == "negative" else strength >= self.smooth_from)

    def summary(self) -> dict[str, Any]:
        """For the report: the treatment, its cuts and unit where they matter, and what it did."""
        settings = self.settings
        found: dict[str, Any] = {"treatment": settings.treatment, **{name: self.counts[name] for name in ("pairs", "negative")}}
        if settings.flips:
            found |= {"flip_to": self.flip_to, **{name: self.counts[name] for name in ("flipped", "flipped_though_positive")}}
        if settings.smooths:
            found |= {"smoothed": self.counts["smoothed"]}
        if settings.margins:
            found |= {"margin_unit": self.unit, **{name: self.counts[name] for name in ("with_margin", "margin_clipped_at_0")}}
        return found


def _std(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    if found <= 1e-9 * max(1.0, abs(mean)):
        raise DataError(
            f"Got {len(values)} training pairs whose strength is {mean:.4g} for all, expected strengths that differ: their spread is the "
            "unit of the margins. Measure them again, or write read.strength.scale=1."
        )
    return found
