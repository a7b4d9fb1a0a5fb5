"""Bytes of one file into numbered records, streamed: JSON Lines, a JSON array, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from rewardproof.data.checks import BadRow

_CHUNK = 1 << 16
_JSON_CELLS = frozenset(
    [
        "answers",
        "responses",
        "completions",
        "scores",
        "ranks",
        "score",
        "text",
        "margin",
        "preference",
        "preference_strength",
        "label",
        "kto_tag",
        "score_0",
        "score_1",
        "chosen_reward",
        "rejected_reward",
        "helpfulness",
        "messages",
        "conversations",
        "conversation_input",
        "context_messages",
        "loser_list",
        "bon_best",
        "meta",
    ]
)
"""CSV columns that hold numbers, lists or objects, written as JSON; every other cell is text."""


class Record(NamedTuple):
    """One record and where it begins: a line of the file, or the row's number in Parquet (the first is 1)."""

    line: int
    value: Any
    """The decoded value, or the `BadRow` that says why there is none."""


def _json_lines(stream: IO[bytes]) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Record(number, _decoded(line))


def _decoded(line: bytes | str) -> Any:
    try:
        return json.loads(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError) as error:
        return BadRow("broken JSON", f"broken JSON: {error}")


def _json(stream: IO[bytes]) -> Iterator[Record]:
    """A `.json` file is an array, or JSON Lines under another name."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        yield from _json_text(text)


def _json_text(text: io.TextIOWrapper) -> Iterator[Record]:
    buffer, line = "", 1
    while chunk := text.read(_CHUNK):
        buffer += chunk
        if buffer.strip():
            break
    line += buffer[: len(buffer) - len(buffer.lstrip())].count("\n")
    buffer = buffer.lstrip()
    if buffer.startswith("["):
        yield from _json_array(text, buffer[1:], line)
        return
    for number, row in enumerate(_lines(buffer, text), start=line):
        if row.strip():
            yield Record(number, _decoded(row))


def _lines(buffer: str, text: io.TextIOWrapper) -> Iterator[str]:
    pieces = io.StringIO(buffer).readlines()
    if pieces and not pieces[-1].endswith("\n"):
        pieces[-1] += text.readline()
    yield from pieces
    yield from text


def _json_array(text: io.TextIOWrapper, buffer: str, line: int) -> Iterator[Record]:
    """Decode element after element; reads more, in doubling pieces, while the one at hand is incomplete."""
    decoder, size, ended = json.JSONDecoder(), _CHUNK, False
    while True:
        rest = buffer.lstrip(" \t\r\n,")
        line += buffer[: len(buffer) - len(rest)].count("\n")
        buffer = rest
        if buffer.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError) as error:
            value, end = None, len(buffer)
            if ended:
                raise ValueError(f"broken JSON array in the element at line {line}: {error}") from None
        if ended or end < len(buffer):
            yield Record(line, value)
            line += buffer[:end].count("\n")
            buffer, size = buffer[end:], _CHUNK
            continue
        chunk = text.read(size)
        ended, size = not chunk, size * 2
        buffer += chunk


def _csv(stream: IO[bytes]) -> Iterator[Record]:
    # The default limit of 128 KiB a cell is below real conversations; the setting is global, and only ever raised here.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        yield from _csv_rows(text)


def _csv_rows(text: io.TextIOWrapper) -> Iterator[Record]:
    reader = csv.reader(text)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise csv.Error("two columns of one name")
    while True:
        line = reader.line_num + 1
        cells = next(reader, None)
        if cells is None:
            return
        if cells and len(cells) != len(header):
            detail = f"ragged CSV row: {len(cells)} cells under {len(header)} columns"
            yield Record(line, BadRow("ragged CSV row", detail))
        elif cells:
            yield Record(line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)})


def _cell(name: str, cell: str) -> Any:
    """An empty cell is a missing value; a cell of a JSON column that is not JSON stays text."""
    if not cell:
        return None
    if name not in _JSON_CELLS:
        return cell
    value = _decoded(cell)
    return cell if isinstance(value, BadRow) else value


def _parquet(stream: IO[bytes]) -> Iterator[Record]:
    import pyarrow.parquet

    with tempfile.TemporaryFile() as seekable:
        if not isinstance(getattr(stream, "raw", None), io.FileIO):
            shutil.copyfileobj(stream, seekable)
            stream = seekable
        number = 0
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, row)


READERS: dict[str, Callable[[IO[bytes]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""How a file is read, by its ending (before `.gz` or `.zst`)."""
