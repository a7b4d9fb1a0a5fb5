"""The fitted laws of over-optimisation as tables: with what was measured at the start taken off, and without."""

from __future__ import annotations

from collections.abc import Mapping

from rewardproof.evaluation import MeasuredLaw
from rewardproof.report import Section, Table
from rewardproof.report.tables import Cell

TEXT = (
    "R(d) = d (α − β log d) of the distance d = √KL, by least squares, points nearer than 0.3 left out. It is 0 at d = 0: above its start "
    "a measure is what the law speaks of; fitted as it is, it has a wrong intercept. A win rate is over the initial policy's answers to "
    "the same prompts, one half at the start, ties half a win. Ranges are 95 %, over runs and prompts, and too narrow where runs are few. "
    "Inside is between the nearest point that is fitted and the farthest.",
)


def law_cells(found: MeasuredLaw) -> dict[str, Cell]:
    """The cells that say what was fitted; dashes where it was not."""
    law, ranges = found
    if law is None or ranges is None:
        return dict.fromkeys(("α", "β", "R²", "peak at KL, nats", "bends inside"), "–")
    (a_low, a_high), (b_low, b_high) = ranges.alpha, ranges.beta
    return {
        "α": f"{law.alpha:.3f} [{a_low:.3f}, {a_high:.3f}]",
        "β": f"{law.beta:.3f} [{b_low:.3f}, {b_high:.3f}]",
        "R²": f"{law.r_squared:.2f}",
        "peak at KL, nats": "–" if law.peak is None else f"{law.peak[0] ** 2:.3g}",
        "bends inside": f"{ranges.bends:.0%}",
    }


def law_sections(laws: Mapping[str, MeasuredLaw]) -> list[Section]:
    """The page's section of the laws; none where nothing could be fitted."""
    if not laws:
        return []
    rows = [{"of": name, **law_cells(one)} for name, one in laws.items()]
    return [Section("The law of over-optimisation", TEXT, Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows)))]
