"""GSM8K: a problem and its worked solution, which ends in `####` and the final answer."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, assistant, shared_columns, text_of, user
from rewardproof.data.group import Group

MARK = "####"


def matches(row: JsonRow) -> bool:
    """`question`, and an `answer` with the mark of a final answer in it."""
    answer = row.get("answer")
    return isinstance(row.get("question"), str) and isinstance(answer, str) and MARK in answer


def to_group(row: JsonRow) -> Group:
    """Read one problem: the solution is its one answer, scored 1; the final answer, without commas, its reference."""
    solution = text_of(row, "answer")
    final = solution.rpartition(MARK)[2].strip().replace(",", "") if MARK in solution else ""
    if not final:
        raise BadRow("missing field", f"missing field: no final answer behind {MARK!r} in 'answer'")
    columns = {**shared_columns(row, ("question", "answer")), "reference": final}
    return Group(user(text_of(row, "question")), (assistant(solution),), (1.0,), **columns)


GSM8K = Format("gsm8k", "GSM8K: question, and an answer that ends in #### and a number", matches, to_group, plain_columns=("question",))
