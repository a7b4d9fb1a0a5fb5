"""Rows of reward-model benchmarks: RewardBench 1 and 2, RM-Bench, RMB (pairwise and best-of-n), LLMBar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import (
    Format,
    JsonRow,
    assistant,
    field_of,
    is_texts,
    shared_columns,
    text_of,
    texts_of,
    turns_of,
    user,
)
from rewardproof.data.group import Group, Message

N_STYLES = 3
"""RM-Bench writes each answer in three styles: 0 concise, 1 detailed, 2 detailed with markdown."""

PRIOR_COLLECTION = "pref-test-sets"
"""The collection of older test sets that RewardBench's authors publish beside it; its rows are called by its name alone."""
REWARDBENCH_SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40},
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""RewardBench's sections, their subsets, and the rows of each."""

REWARDBENCH_2_SUBSETS = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, "Ties": 102}
"""RewardBench 2's subsets and the rows of each."""


def _is_rewardbench(row: JsonRow) -> bool:
    if not {"prompt", "chosen", "rejected"} <= row.keys():
        return False
    listed = is_texts(row["chosen"]) and is_texts(row["rejected"])
    known = any(row.get("subset") == name for section in REWARDBENCH_SECTIONS.values() for name in section)
    return listed or known or "num_correct" in row or "chosen_model" in row


def _rewardbench(row: JsonRow) -> Group:
    good, bad = (_answers(field_of(row, name), name) for name in ("chosen", "rejected"))
    prompt = turns_of(field_of(row, "prompt"), "prompt", role="user")
    scores = (1.0,) * len(good) + (0.0,) * len(bad)
    return Group(prompt, good + bad, scores, **shared_columns(row, ("prompt", "chosen", "rejected")))


def _answers(value: object, where: str) -> tuple[tuple[Message, ...], ...]:
    return texts_of(value if isinstance(value, list) else [value], where)


def _is_rm_bench(row: JsonRow) -> bool:
    sides = [row.get("chosen"), row.get("rejected")]
    return (
        "prompt" in row
        and "num_correct" not in row
        and all(isinstance(side, list) and is_texts(side) and len(side) == N_STYLES for side in sides)
    )


def _rm_bench(row: JsonRow) -> Group:
    group = _rewardbench(row)
    sizes = [len(row[name]) if isinstance(row[name], list) else 1 for name in ("chosen", "rejected")]
    if sizes != [N_STYLES, N_STYLES]:
        raise BadRow("missing field", f"missing field: {sizes[0]} chosen and {sizes[1]} rejected answers, not {N_STYLES} styles of each")
    columns = shared_columns(row, ("prompt", "chosen", "rejected"))
    columns["meta"] = {**columns["meta"], "levels": [*range(N_STYLES), *range(N_STYLES)]}
    return Group(group.prompt, group.answers, group.scores, **columns)


def _is_rmb(row: JsonRow) -> bool:
    return "conversation_input" in row and ({"chosen", "reject"} <= row.keys() or {"bon_best", "loser_list"} <= row.keys())


def _rmb(row: JsonRow) -> Group:
    """`meta["names"]` holds the models that wrote the answers; a best-of-n row is right only when the best beats every loser."""
    pairwise = "bon_best" not in row
    best = field_of(row, "chosen" if pairwise else "bon_best")
    losers = [field_of(row, "reject")] if pairwise else field_of(row, "loser_list")
    if not isinstance(losers, list) or not all(isinstance(answer, Mapping) for answer in (best, *losers)):
        raise BadRow("not an object", "not an object: an answer of RMB is {llm_name, answer}")
    answers = tuple(assistant(text_of(answer, "answer")) for answer in (best, *losers))
    columns = shared_columns(row, ("conversation_input", "chosen", "reject", "bon_best", "loser_list"))
    columns["meta"] = {**columns["meta"], "names": [answer.get("llm_name") for answer in (best, *losers)]}
    columns["id"] = columns["id"] or str(row.get("pair_uid") or row.get("bon_uid") or "")
    path = row.get("category_path")
    if isinstance(path, str):
        columns["category"] = columns["category"] or path
        columns["subset"] = columns["subset"] or "/".join(path.split("/")[:2])
    prompt = turns_of(field_of(row, "conversation_input"), "conversation_input", role="user")
    return Group(prompt, answers, (1.0,) + (0.0,) * len(losers), **columns)


def _is_llmbar(row: JsonRow) -> bool:
    return {"input", "output_1", "output_2", "label"} <= row.keys()


def _llmbar(row: JsonRow) -> Group:
    label: Any = field_of(row, "label")
    if isinstance(label, bool) or label not in (1, 2):
        raise BadRow("invalid preference", f"invalid preference: label {label!r:.80}, not 1 or 2")
    answers = (assistant(text_of(row, "output_1")), assistant(text_of(row, "output_2")))
    scores = (1.0, 0.0) if label == 1 else (0.0, 1.0)
    return Group(user(text_of(row, "input")), answers, scores, **shared_columns(row, ("input", "output_1", "output_2", "label")))


REWARDBENCH = Format(
    "rewardbench",
    "RewardBench 1 and 2: prompt, chosen and rejected (each one or several)",
    _is_rewardbench,
    _rewardbench,
    benchmark=True,
)
RM_BENCH = Format("rm_bench", "RM-Bench: prompt, chosen[3], rejected[3] by style; a group of six", _is_rm_bench, _rm_bench, benchmark=True)
RMB = Format("rmb", "RMB: conversation_input with chosen/reject or bon_best/loser_list", _is_rmb, _rmb, benchmark=True)
LLMBAR = Format("llmbar", "LLMBar: input, output_1, output_2, label 1 or 2", _is_llmbar, _llmbar, benchmark=True)
