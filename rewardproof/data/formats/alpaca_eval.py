"""AlpacaEval annotations: `instruction`, `output_1`, `output_2` and a preference of 1 or 2, or anything between for the weighted judges."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, assistant, number_of, shared_columns, text_of, user
from rewardproof.data.group import Group


def matches(row: JsonRow) -> bool:
    """`instruction`, `output_1` and `output_2`."""
    return all(name in row for name in ("instruction", "output_1", "output_2"))


def to_group(row: JsonRow) -> Group:
    """Read one annotation; the answers stay in their order of presentation."""
    prompt = user(instruction_of(row))
    answers = (assistant(text_of(row, "output_1")), assistant(text_of(row, "output_2")))
    return Group(prompt, answers, _scores(row.get("preference")), **shared_columns(row, _USED))


def to_answer(row: JsonRow) -> Group:
    """Read the second answer alone, with the probability that it beats the first: a weighted judge's gold for it."""
    scores = _scores(row.get("preference"))
    return Group(
        user(instruction_of(row)),
        (assistant(text_of(row, "output_2")),),
        None if scores is None else scores[1:],
        **shared_columns(row, _USED),
    )


def instruction_of(row: JsonRow) -> str:
    """The instruction, followed by its input where it has one (the Alpaca convention)."""
    instruction = text_of(row, "instruction")
    return f"{instruction}\n\n{text_of(row, 'input')}" if row.get("input") else instruction


def _scores(preference: object) -> tuple[float, float] | None:
    """P(output_2 is better) = preference − 1; 0 and 1.5 are ties; `None` was not judged."""
    if preference is None:
        return None
    value = number_of(preference, "preference")
    if value == 0:
        return (0.5, 0.5)
    if not 1 <= value <= 2:
        raise BadRow("invalid preference", f"invalid preference {preference!r}")
    return (2 - value, value - 1)


_USED = ("instruction", "input", "output_1", "output_2", "preference")

ALPACA_EVAL = Format("alpaca_eval", "AlpacaEval: instruction, output_1, output_2, preference in [1, 2]", matches, to_group)
ALPACA_ANSWERS = Format(
    "alpaca_eval:answers", "AlpacaEval, the second answers alone, each scored against its baseline: pools", matches, to_answer
)
