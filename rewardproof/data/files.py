"""One file into numbered records, streamed: JSON Lines, a JSON array, Parquet or CSV; plain, `.gz` or `.zst`.

A record is whatever the file holds at that line; whether it is a usable row is decided by `reading.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from rewardproof.data.checks import BadRow
from rewardproof.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_JSON_CELLS = frozenset(
    "answers responses completions scores ranks score text margin preference preference_strength label kto_tag score_0 score_1 "
    "chosen_reward rejected_reward helpfulness messages conversations conversation_input context_messages loser_list bon_best meta".split())
"""CSV columns that hold numbers, lists or objects, written as JSON; every other cell is text."""


class Record(NamedTuple):
    """One record and where it begins: a line of the file, or the row's number in Parquet (the first is 1)."""

    line: int
    value: Any
    """The decoded value, or the `BadRow` that says why there is none."""


def data_files(folder: Path) -> list[Path]:
    """Every data file below a folder, sorted; hidden files and folders are left out.

    Raises:
        DataError: When there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    known = [path for path in paths if _kind(path) in READERS]
    if not known:
        raise DataError(
            f"{folder}: got a folder of {len(paths)} files; expected at least one that ends in {_endings()}. Without one there is nothing "
            "to read; name the folder that holds the data.")
    if len(known) < len(paths):
        logger.info("%s: %d files are not data and were left out", folder, len(paths) - len(known))
    return known


def records(path: Path) -> Iterator[Record]:
    """The records of one file, in order and in bounded memory.

    Raises:
        DataError: For a file of unknown kind, or one that breaks off or is damaged.
    """
    kind = _kind(path)
    if kind not in READERS:
        raise DataError(
            f"{path}: got a file that ends in {path.suffix or 'nothing'!r}; expected {_endings()}. The ending says how a file is read; "
            "rename or convert it.")
    try:
        with _open(path) as stream:
            yield from READERS[kind](stream)
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, *_foreign_errors()) as error:
        raise DataError(
            f"{path}: got a file that cannot be read to its end ({type(error).__name__}: {error}); expected a whole {kind} file. Rows after "
            "the damage would be lost unseen; copy or download it again.") from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] in ([".gz"], [".zst"]) else suffixes[-1:])


def _endings() -> str:
    return f"{', '.join(READERS)} (and .gz or .zst after it)"


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_ZstdFile(path.open("rb"), _zstandard().ZstdDecompressor()))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """A .zst file; unlike zstandard's own reader it notices that a file breaks off (python-zstandard returns a short read)."""

    def __init__(self, source: IO[bytes], decompressor: Any) -> None:
        self._source, self._decompressor = source, decompressor
        self._frame: Any = None
        self._waiting, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._advance():
            pass
        piece = self._ready[: len(buffer)]
        self._ready = self._ready[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def _advance(self) -> bool:
        """Decompress one more chunk; false at the end of the file."""
        chunk = self._waiting or self._source.read(_CHUNK)
        self._waiting = b""
        if not chunk:
            if self._frame is not None:
                raise EOFError("the last Zstandard frame is incomplete")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._ready = memoryview(self._frame.decompress(chunk))
        if self._frame.eof:
            self._waiting, self._frame = self._frame.unused_data, None
        return True


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError(
            "Got a .zst file without the package zstandard; expected it to be installed, because Python reads Zstandard only through it. "
            "Run: pip install zstandard") from None
    return zstandard


def _foreign_errors() -> tuple[type[Exception], ...]:
    """Errors of the libraries that happen to be loaded; one that is not loaded cannot have raised."""
    found = []
    if "zstandard" in sys.modules:
        found.append(sys.modules["zstandard"].ZstdError)
    if "pyarrow" in sys.modules:
        found.append(sys.modules["pyarrow"].ArrowException)
    return tuple(found)


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
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
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
            complete = ended or end < len(buffer)
        except (ValueError, RecursionError) as error:
            complete = False
            if ended:
                raise ValueError(f"broken JSON array in the element at line {line}: {error}") from None
        if complete:
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
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
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
