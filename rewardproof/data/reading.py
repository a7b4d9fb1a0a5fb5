"""Sources into checked groups: files, folders, hub datasets and embedded data, streamed, with every bad row named or counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rewardproof.data import embedded
from rewardproof.data.checks import BadRow, Purpose, check_group
from rewardproof.data.decoders import READERS, Record
from rewardproof.data.files import data_files, path_names, records
from rewardproof.data.formats import Format, detect, find_format, to_row
from rewardproof.data.formats.benchmarks import PRIOR_COLLECTION
from rewardproof.data.group import Group
from rewardproof.errors import ConfigError, DataError

OnBad = Literal["fail", "drop_unfit", "drop"]
TextMode = Literal["chat", "raw"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.+%\[\]:-]+)?")


class Row(NamedTuple):
    """A row as it was read, the group it became, and the name of the format that it was read as."""

    raw: dict[str, Any]
    group: Group
    format: str


@dataclass(slots=True)
class ReadCounts:
    """What became of the rows.

    Attributes:
        read: Rows seen.
        used: Rows that became groups.
        bad: Rows dropped, by reason.
    """

    read: int = 0
    used: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> int:
        """Rows dropped, for whatever reason."""
        return self.bad.total()

    def sentence(self) -> str:
        """What was dropped and why, for the log.

        Example:
            >>> ReadCounts(read=10, used=8, bad=Counter({"tie": 2})).sentence()
            'dropped 2 of 10 rows: 2 × tie'
        """
        return f"dropped {self.dropped} of {self.read} rows: " + ", ".join(
            f"{count} × {reason}" for reason, count in self.bad.most_common()
        )


@dataclass(frozen=True, slots=True)
class GroupSet:
    """Groups and what became of the rows that they were read from."""

    groups: tuple[Group, ...]
    counts: ReadCounts


@dataclass(frozen=True, slots=True)
class _Reading:
    """How rows are to be read, checked once for all sources."""

    format: Format | None
    on_bad: OnBad
    purpose: Purpose
    text: TextMode


class _Stream(NamedTuple):
    """Records of one file, or of one table elsewhere."""

    name: str
    subset: str
    records: Iterator[Record]


def read_groups(
    sources: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad: OnBad = "fail",
    purpose: Purpose = "train",
    text: TextMode = "chat",
) -> GroupSet:
    """Read every row of the sources into memory.

    Args:
        sources: Files, folders, hub ids (`org/name` or `org/name:split`) or `embedded:` names.
        format: A name of `FORMATS`, or `auto`: the format of a file is that of its first row.
        on_bad: `fail` stops at the first bad row and names it; `drop` counts bad rows by reason; `drop_unfit` counts rows that can be read
            but are no preference (`checks.UNFIT`: ties, empty answers …) and still stops at damaged ones.
        purpose: What the groups are for; see `check_group`. `judge` means a benchmark's rows, and `train` any others.
        text: `chat` makes a plain prompt the user's turn and plain answers the assistant's; `raw` keeps plain text for joining as it is.

    Returns:
        The groups in the order of the sources, and the counts.

    Raises:
        DataError: For a source that cannot be read, a bad row under `fail`, or sources without one usable row.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    counts = ReadCounts()
    groups = tuple(
        row.group for source in names for row in iter_rows(source, format=format, on_bad=on_bad, purpose=purpose, text=text, counts=counts)
    )
    require_used(names, counts)
    return GroupSet(groups, counts)


def require_used(sources: Sequence[str], counts: ReadCounts) -> None:
    """Refuse sources of which no row could be used.

    Raises:
        DataError: Says why they could not.
    """
    if counts.used:
        return
    bad = ", ".join(f"{count} × {reason}" for reason, count in counts.bad.most_common()) or "no rows at all"
    raise DataError(
        f"{', '.join(sources) or 'no source'}: got {counts.read} rows of which none can be used ({bad}); expected at least one. Nothing "
        "can be computed from no data; look at the rows, or name their format with format=."
    )


def iter_rows(
    source: str,
    *,
    format: str = "auto",
    on_bad: OnBad = "fail",
    purpose: Purpose = "train",
    text: TextMode = "chat",
    counts: ReadCounts | None = None,
) -> Iterator[Row]:
    """Stream the rows of one source in bounded memory.

    Args:
        source: As in `read_groups`.
        format: As in `read_groups`.
        on_bad: As in `read_groups`.
        purpose: As in `read_groups`.
        text: As in `read_groups`.
        counts: Counts to add to, where the caller wants them.

    Returns:
        An iterator of rows; it raises at the bad row, the settings are checked at once.

    Raises:
        ConfigError: For an unknown format, `on_bad`, `purpose` or `text`.
    """
    for name, value, known in (("on_bad", on_bad, OnBad), ("purpose", purpose, Purpose), ("text", text, TextMode)):
        if value not in get_args(known):
            raise ConfigError(
                f"Got {name}={value!r}; expected one of {', '.join(get_args(known))}. It decides what is read, so it is not guessed; "
                f"correct {name}."
            )
    reading = _Reading(None if format == "auto" else find_format(format), on_bad, purpose, text)
    totals = counts if counts is not None else ReadCounts()
    return (row for stream in _streams(source) for row in _rows(stream, reading, totals))


def _rows(stream: _Stream, reading: _Reading, counts: ReadCounts) -> Iterator[Row]:
    held, unknown = reading.format, None
    for record in stream.records:
        counts.read += 1
        origin = f"{stream.name}:{record.line}"
        try:
            row = _object(record.value)
            held = held or detect(row)
            group = _finished(held.to_group(row), stream, origin)
            if reading.text == "raw":
                group = _as_raw(group, row, held)
            check_group(group, purpose=_purpose(reading, held, stream))
        except BadRow as bad:
            if reading.on_bad == "fail" or (reading.on_bad == "drop_unfit" and bad.remedy != reading.on_bad):
                raise DataError(bad.at(origin) + (f" (Read as format {held.name!r}.)" if held else "")) from bad
            counts.bad[bad.reason] += 1
            unknown = unknown or (bad if bad.reason == "unknown format" else None)
            continue
        counts.used += 1
        yield Row(row, group, held.name)
    if held is None and unknown is not None:
        raise DataError(f"{stream.name}: got rows of no known format; first: {unknown}")


def _purpose(reading: _Reading, held: Format, stream: _Stream) -> Purpose:
    """What a row has to be fit for; rows that are to be judged are preferences where they are no benchmark's."""
    if reading.purpose == "judge" and not held.benchmark and PRIOR_COLLECTION not in path_names(stream.name):
        return "train"
    return reading.purpose


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, BadRow):
        raise value
    if not isinstance(value, dict):
        raise BadRow("not an object", f"not an object but {type(value).__name__}")
    return value


def _finished(group: Group, stream: _Stream, origin: str) -> Group:
    return replace(group, origin=origin, id=group.id or origin, subset=group.subset or stream.subset)


def _as_raw(group: Group, row: Mapping[str, Any], held: Format) -> Group:
    if group.raw:
        return group
    prompt = next((row[name] for name in held.plain_columns if row.get(name) is not None), None)
    if not isinstance(prompt, str) or len(group.prompt) != 1 or any(len(answer) != 1 for answer in group.answers):
        raise BadRow("not plain text", f"not plain text: format {held.name!r} gives messages here")
    return replace(group, raw=True)


def _streams(source: str) -> Iterator[_Stream]:
    if source.startswith("embedded:"):
        yield from _embedded_streams(source)
        return
    path = Path(source)
    if path.is_dir():
        yield from map(_file_stream, data_files(path))
    elif path.is_file():
        yield _file_stream(path)
    elif _HUB_ID.fullmatch(source) and path.suffix not in (*READERS, ".gz", ".zst"):
        yield _Stream(source, source.partition(":")[0].rpartition("/")[2], _hub_records(source))
    else:
        raise DataError(
            f"Got {source!r}, which is no file or folder here; expected a path that exists, a hub id like org/name or org/name:split, or "
            f"embedded:… . Data is not searched for elsewhere; correct the path (the working folder is {Path.cwd()})."
        )


def _file_stream(path: Path) -> _Stream:
    return _Stream(str(path), path.resolve().parent.name, records(path))


def _embedded_streams(source: str) -> Iterator[_Stream]:
    name, _, part = source.removeprefix("embedded:").partition("/")
    if name == "checkable":
        rows = (to_row(group) for group in embedded.world_groups(part))
        yield _Stream(source, name, (Record(number, row) for number, row in enumerate(rows, start=1)))
    elif name == "alpaca-annotations" and not part:
        yield from map(_file_stream, embedded.annotation_files())
    else:
        raise embedded.unknown_embedded(source.removeprefix("embedded:"))


def _hub_records(source: str) -> Iterator[Record]:
    import datasets

    name, _, split = source.partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(table, start=1):
            yield Record(number, dict(row))
    except Exception as error:  # network libraries raise without a common root
        raise DataError(
            f"Got {source!r}, which is no path here and could not be reached on the hub ({type(error).__name__}: {str(error)[:300]}); "
            "expected a dataset org/name with that split. Without it there is no data; check the name, the split and the network, or "
            "download the dataset and name its folder."
        ) from error
