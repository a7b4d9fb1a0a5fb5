"""An answer with each of its tokens coloured by what a score gains at it: plain inline HTML, no script, the numbers where one points.

Orange raises the score, blue lowers it, which readers with any colour vision tell apart; in print a solid and a dotted line do.
"""

# A tokens of an answer.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rewardproof.models.token_scores import TokenScores

FAINTEST = 0.02
"""Share of the limit below which a piece stays uncoloured."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that some tokens stand for.

    Attributes:
        text: The stretch; empty for what comes after the text.
        gain: What the score gains by it.
        reached: The score after it.
        shade: The gain over the limit, in [-1, 1]; 0 where it is too small to colour.
    """

    text: str
    gain: float
    reached: float
    shade: float


@dataclass(frozen=True, slots=True)
class HeatMap:
    """An answer's pieces.

    Attributes:
        caption: Whose score of what.
        pieces: In order; the last is what follows the text, its end.
        before: The score before the answer.
        limit: The gain that has the strongest colour.
        unit: Of all numbers, in words.
    """

    caption: str
    pieces: tuple[Piece, ...]
    before: float
    limit: float
    unit: str


def heat_maps(
    answers: Sequence[tuple[str, str, TokenScores]], *, mean: float = 0.0, std: float = 1.0, unit: str = "units of the reward"
) -> tuple[HeatMap, ...]:
    """Maps of several answers, their colours to one limit: the largest gain inside any of them.

    Args:
        answers: Caption, text and scores of each.
        mean: Zero of the scores shown.
        std: Unit of the scores shown.
        unit: What to call it.

    Example:
        >>> import numpy as np
        >>> from rewardproof.models.token_scores import TokenScores
        >>> (found,) = heat_maps([("one", "yes, no", TokenScores(0.0, np.array([1.0, 0.5]), 0.25, np.array([3, 7])))])
        >>> [(piece.text, piece.gain, piece.shade) for piece in found.pieces]
        [('yes', 1.0, 1.0), (', no', -0.5, -0.5), ('', -0.25, -0.25)]
    """
    gains = [np.diff([one.before, *one.reached_A]) / std for _, _, one in answers]
    limit = max((float(np.abs(gains_A).max()) for gains_A in gains if len(gains_A)), default=0.0) or 1.0
    return tuple(
        HeatMap(caption, _pieces(text, one, limit, mean, std), (one.before - mean) / std, limit, unit) for caption, text, one in answers
    )


def _pieces(text: str, one: TokenScores, limit: float, mean: float, std: float) -> tuple[Piece, ...]:
    """Tokens that end at one character are one piece; text that no token stands for is one without colour."""
    made: list[Piece] = []
    start, before = 0, one.before
    for end in np.unique(one.ends_A).tolist():
        reached = float(one.reached_A[one.ends_A == end][-1])
        made.append(_piece(text[start:end], (reached - before) / std, (reached - mean) / std, limit))
        start, before = end, reached
    if start < len(text):
        made.append(_piece(text[start:], 0.0, (before - mean) / std, limit))
    return (*made, _piece("", (one.score - before) / std, (one.score - mean) / std, limit))


def _piece(text: str, gain: float, reached: float, limit: float) -> Piece:
    shade = float(np.clip(gain / limit, -1, 1))
    return Piece(text, gain, reached, shade if abs(shade) >= FAINTEST else 0.0)
