"""Files and folders into numbered records, by their endings; plain, `.gz` or `.zst`.

A record is whatever the file holds at that line; whether it is a usable row is decided by `reading.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rewardproof.data.decoders import READERS, Record
from rewardproof.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_NAME_ENDINGS = re.compile(r"(-\d{5}-of-\d{5})?(\.(jsonl?|csv|parquet|gz|zst))*$")


def path_names(path: str) -> tuple[str, ...]:
    """Names of a file and of the folders that it lies in, in lower case, the nearest first; of a hub id the split comes first.

    Example:
        >>> path_names("data/LLMBar/Natural/dataset-00000-of-00001.parquet")
        ('dataset', 'natural', 'llmbar', 'data')
    """
    names = [name for name in re.split(r"[/\\:]", path) if name not in ("", ".", "..")]
    return tuple(_NAME_ENDINGS.sub("", name).lower() for name in reversed(names))


_COPIES = (
    (re.compile(r"filtered-\d{5}-of-\d{5}\."), re.compile(r"(raw|train)-\d{5}-of-\d{5}\.")),
    (re.compile(r"\w+_filtered\.json"), re.compile(r"total_dataset\.json")),
)
"""Names that published folders give to what is to be read (RewardBench, RM-Bench), and to further forms of the same rows beside it."""


def data_files(folder: Path) -> list[Path]:
    """Every data file below a folder, sorted; hidden files and folders are left out, and what a published folder holds in another form.

    Raises:
        DataError: When there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    known = [path for path in paths if _kind(path) in READERS]
    if not known:
        raise DataError(
            f"{folder}: got a folder of {len(paths)} files; expected at least one that ends in {_endings()}. Without one there is nothing "
            "to read; name the folder that holds the data."
        )
    if len(known) < len(paths):
        logger.info("%s: %d files are not data and were left out", folder, len(paths) - len(known))
    copies = _copies(known)
    if copies:
        names = ", ".join(sorted(path.name for path in copies))
        logger.warning("%s: left out %s, further forms of rows that are read; name a file to read it", folder, names)
    return [path for path in known if path not in copies]


def _copies(paths: list[Path]) -> set[Path]:
    found: set[Path] = set()
    for original, copy in _COPIES:
        folders = {path.parent for path in paths if original.match(path.name)}
        found |= {path for path in paths if path.parent in folders and copy.match(path.name)}
    return found


def records(path: Path) -> Iterator[Record]:
    """The records of one file, in order and in bounded memory.

    Raises:
        DataError: For a file of unknown kind, or one that breaks off or is damaged.
    """
    kind = _kind(path)
    if kind not in READERS:
        raise DataError(
            f"{path}: got a file that ends in {path.suffix or 'nothing'!r}; expected {_endings()}. The ending says how a file is read; "
            "rename or convert it."
        )
    try:
        with _open(path) as stream:
            yield from READERS[kind](stream)
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, *_foreign_errors()) as error:
        raise DataError(
            f"{path}: got a file that cannot be read to its end ({type(error).__name__}: {error}); expected a whole {kind} file. Rows "
            "after the damage would be lost unseen; copy or download it again."
        ) from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] in ([".gz"], [".zst"]) else suffixes[-1:])


def _endings() -> str:
    return f"{', '.join(READERS)} (and .gz or .zst after it)"


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        decompressor = _zstandard().ZstdDecompressor()
        return io.BufferedReader(_ZstdFile(path.open("rb"), decompressor))
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
            "Run: pip install zstandard"
        ) from None
    return zstandard


def _foreign_errors() -> tuple[type[Exception], ...]:
    """Errors of the libraries that happen to be loaded; one that is not loaded cannot have raised."""
    named = (("zstandard", "ZstdError"), ("pyarrow", "ArrowException"))
    return tuple(getattr(sys.modules[module], name) for module, name in named if sys.modules.get(module))
