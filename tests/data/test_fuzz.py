"""A hundred thousand fuzzed lines through every format and every kind of file: no crash, and every line is used or counted as dropped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data import FORMATS, REASONS, ReadCounts, iter_rows
from rewardproof.errors import DataError

LINES = 100_000
ASK, GOOD, POOR = "Name a fruit.", "An apple.", "A stone."
USER, SAYS = {"role": "user", "content": ASK}, [{"role": "assistant", "content": GOOD}]
PAIR = {"chosen": GOOD, "rejected": POOR}
SEEDS: dict[str, list[dict[str, Any]]] = {
    "rows": [
        {"prompt": ASK, "answers": [GOOD, POOR], "scores": [1, 0.0], "margin": 2},
        {"prompt": [USER], "answers": [SAYS, [{"role": "assistant", "content": POOR}]], "scores": [1, 0], "meta": {"kind": "k"}},
    ],
    "rmb": [
        {"conversation_input": [USER], "chosen": {"llm_name": "a", "answer": GOOD}, "reject": {"llm_name": "b", "answer": POOR}},
        {"conversation_input": [USER], "bon_best": {"llm_name": "a", "answer": GOOD}, "loser_list": [{"llm_name": "b", "answer": POOR}]},
    ],
    "dsp": [{"query": ASK, "responses": {"academy": GOOD, "normal": POOR}}],
    "webgpt": [{"question": {"full_text": ASK}, "answer_0": GOOD, "answer_1": POOR, "score_0": 0.5, "score_1": -0.5}],
    "llmbar": [{"input": ASK, "output_1": GOOD, "output_2": POOR, "label": 1}],
    "helpsteer": [
        {"prompt": ASK, "response_1": GOOD, "response_2": POOR, "preference_strength": -3},
        {"prompt": ASK, "response": GOOD, "helpfulness": 3, "verbosity": 1},
    ],
    "rm_bench": [{"id": 1, "prompt": ASK, "chosen": ["a", "ab", "abc"], "rejected": ["x", "xy", "xyz"]}],
    "rewardbench": [{"prompt": ASK, "chosen": [GOOD], "rejected": [POOR], "num_correct": 1, "subset": "Focus"}],
    "llama_factory": [
        {"conversations": [{"from": "human", "value": ASK}], "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"value": POOR}},
        {"instruction": ASK, "input": "", **PAIR},
    ],
    "alpaca_eval": [{"instruction": ASK, "input": None, "output_1": GOOD, "output_2": POOR, "preference": 1}],
    "ranked": [{"prompt": ASK, "completions": [GOOD, POOR], "ranks": [1, 2]}, {"question": ASK, "responses": [{"text": GOOD, "rank": 1}]}],
    "openrlhf": [{"context_messages": [USER], **PAIR}, {"input": ASK, **PAIR}],
    "gsm8k": [{"question": ASK, "answer": f"{GOOD}\n#### 1,200"}],
    "hh": [{"chosen": f"\n\nHuman: {ASK}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {POOR}"}],
    "trl": [{"prompt": ASK, **PAIR, "margin": 0.5}, {"prompt": ASK, "completion": GOOD, "label": True}],
    "prompts": [{"prompt": ASK, "subset": "s"}, {"prompt": [USER], "id": 7, "category": "c"}],
}
"""Good rows of every format, to be spoilt."""
JUNK: list[Any] = [
    None, True, 0, -1, 1e308, 10**30, float("nan"), float("inf"), "", " ", "\n", "\x00", "\ud800", "é" * 50, "<|im_end|>", ASK, [], [None],
    {}, {"role": "user"}, [USER, USER], [[GOOD]], [1, "2"], {"from": 3}, "\n\nHuman: \n\nAssistant: ", ["a", "a"], "[1, 2]", -0.0,
]  # fmt: skip


def spoilt(row: dict[str, Any], dice: random.Random) -> Any:
    """A row with one thing wrong with it, or none, or no row at all."""
    key, kind = dice.choice(list(row)), dice.randrange(8)
    if kind == 0:
        return row | {f"{key}{dice.randrange(9)}": GOOD}
    if kind == 1:
        return {name: value for name, value in row.items() if name != key}
    if kind == 2:
        return row | {key: row[dice.choice(list(row))]}
    if kind in (3, 4):
        return row | {key: dice.choice(JUNK)}
    if kind == 5 and isinstance(row[key], list) and row[key]:
        return row | {key: [dice.choice(JUNK), *row[key][1:]]}
    if kind == 6:
        return dice.choice(JUNK)
    return row | {key: f"{row[key]} {dice.random()}"} if isinstance(row[key], str) else row


def line(row: dict[str, Any], dice: random.Random) -> bytes:
    """A spoilt row as a line, whose bytes may be spoilt as well."""
    data = bytearray(json.dumps(spoilt(row, dice)).encode())
    kind = dice.randrange(10)
    if kind == 0:
        return bytes(data[: dice.randrange(len(data))])
    if kind == 1:
        data[dice.randrange(len(data))] = dice.randrange(256)
    if kind == 2:
        data[dice.randrange(len(data)) : 0] = bytes(dice.randrange(256) for _ in range(3))
    return bytes(data)


def assert_every_row_is_counted(path: Path, expected: int, **options: Any) -> ReadCounts:
    counts = ReadCounts()
    given = sum(1 for _ in iter_rows(str(path), on_bad="drop", counts=counts, **options))
    assert counts.read == expected, "a row was dropped in silence, or read twice"
    assert counts.read == counts.used + counts.dropped
    assert counts.used == given
    assert counts.dropped == sum(counts.bad.values())
    assert set(counts.bad) <= set(REASONS)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_fuzzed_lines_of_every_format(name: str, tmp_path: Path) -> None:
    dice = random.Random(name)
    data = b"\n".join(line(dice.choice(SEEDS[name]), dice) for _ in range(LINES))
    (tmp_path / "a.jsonl").write_bytes(data)
    expected = sum(1 for entry in data.split(b"\n") if entry.strip())
    counts = assert_every_row_is_counted(tmp_path / "a.jsonl", expected, format=name, purpose="answer" if name == "prompts" else "score")
    assert expected > LINES * 0.99
    assert 0.02 * LINES < counts.used < 0.9 * LINES, "the fuzz spoils everything, or nothing"
    assert len(counts.bad) > 3


def csv_table(rows: Sequence[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("prompt", "chosen", "rejected", "margin"))
    writer.writerows([row.get(name, "x") for name in ("prompt", "chosen", "rejected", "margin")] for row in rows)
    return stream.getvalue().encode()


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    texts = {name: [None if row.get(name) is None else str(row[name]) for row in rows] for name in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table(texts | {"margin": [dict.get(row, "margin") for row in rows]}), stream)
    return stream.getvalue()


def json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


KINDS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.json": lambda rows: json.dumps(list(rows)).encode(),
    "b.json": json_lines,
    "a.csv": csv_table,
    "a.parquet": parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(json_lines(rows), 1),
    "a.csv.zst": lambda rows: zstandard.ZstdCompressor().compress(csv_table(rows)),
    "a.parquet.gz": lambda rows: gzip.compress(parquet(rows), 1),
}


def cells(dice: random.Random) -> dict[str, Any]:
    """A preference whose cells are texts of any kind, which every kind of file can hold."""
    texts = [ASK, GOOD, POOR, "", " ", '"', "a,b", "x\ny", "\r\n", "\x00", "“é”", "null", "[1]", "{", None]
    row: dict[str, Any] = {name: dice.choice(texts) for name in ("prompt", "chosen", "rejected")}
    return row | {"margin": dice.choice([0.5, 0.5, -1.0, float("nan"), float("inf"), None])}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_rows_through_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    dice = random.Random(kind)
    rows = [{"prompt": ASK, **PAIR, "margin": 0.5}, *(cells(dice) for _ in range(LINES - 1))]
    (tmp_path / kind).write_bytes(KINDS[kind](rows))
    counts = assert_every_row_is_counted(tmp_path / kind, LINES)
    assert counts.used > 1000
    assert len(counts.bad) > 3


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(FORMATS)))
def test_any_lines_are_used_or_counted(data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    dice = random.Random(data.draw(st.integers()))
    count = data.draw(st.integers(1, 20))
    lines = [line(dice.choice(SEEDS[name]), dice) for _ in range(count)] + data.draw(st.lists(st.binary(max_size=20), max_size=3))
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    expected = sum(1 for entry in path.read_bytes().split(b"\n") if entry.strip())
    assert_every_row_is_counted(path, expected, format=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_files_with_spoilt_bytes_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    """Wherever a byte is wrong, a file is read with every row counted, or refused by an error of ours."""
    dice = random.Random(kind)
    whole = KINDS[kind]([{"prompt": ASK, **PAIR, "margin": 0.5}, *(cells(dice) for _ in range(60))])
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / kind).write_bytes(bytes(data[: dice.choice([len(data), len(data), dice.randrange(len(data))])]))
        counts = ReadCounts()
        try:
            given = sum(1 for _ in iter_rows(str(tmp_path / kind), on_bad="drop", counts=counts))
        except DataError:
            refused += 1
            continue
        assert counts.read == counts.used + counts.dropped
        assert counts.used == given
    assert refused > 0 or KINDS[kind] is json_lines, "damage to a line is that line's alone; damage to any other file can end it"
