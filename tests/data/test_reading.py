"""Sources of every kind give the same rows, name the file and line of a bad one, and count what is dropped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardproof.data import Group, ReadCounts, iter_rows, read_groups, to_row
from rewardproof.errors import ConfigError, DataError, MissingExtraError

ROWS = [{"prompt": f"Question {n}?\nSay.", "chosen": f"good “{n}”", "rejected": f"poor, {n}", "margin": n / 2} for n in range(1, 6)]


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def csv_table(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


KINDS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.json": json_array,
    "b.json": json_lines,
    "a.csv": csv_table,
    "a.parquet": parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def write(folder: Path, rows: list[Any], name: str = "prefs.jsonl") -> str:
    path = folder / name
    path.write_bytes(json_lines(rows))
    return str(path)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, packer: str) -> None:
    path = tmp_path / f"{kind}{packer}"
    path.write_bytes(PACKERS[packer](KINDS[kind](ROWS)))
    rows = list(iter_rows(str(path)))
    assert [row.raw for row in rows] == ROWS
    assert [row.group.answer_texts for row in rows] == [(row["chosen"], row["rejected"]) for row in ROWS]
    assert [row.group.margin for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert {row.group.subset for row in rows} == {tmp_path.name}
    assert all(row.group.origin == row.group.id and row.group.origin.startswith(f"{path}:") for row in rows)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(("kind", "line"), [("a.jsonl", 4), ("a.json", 17), ("a.csv", 6), ("a.parquet", 3)])
def test_a_bad_row_names_its_line(tmp_path: Path, kind: str, line: int, packer: str) -> None:
    rows = [*ROWS[:2], dict(ROWS[2], chosen="")]
    data = KINDS[kind](rows)
    path = tmp_path / f"{kind}{packer}"
    path.write_bytes(PACKERS[packer](data.replace(b"\n", b"\n\n", 1) if kind == "a.jsonl" else data))
    if kind == "a.json":
        line = data[: data.index(b'"prompt": "Question 3')].count(b"\n")
    reason = "missing field 'chosen'" if kind == "a.csv" else "empty answer"
    with pytest.raises(DataError, match=rf"{kind}{packer}:{line}: got .*{reason}.*; expected .*on_bad=drop.*format 'trl'"):
        list(iter_rows(str(path)))


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    good = ROWS[0]
    lines = [
        json.dumps(good),
        "{broken",
        "[1]",
        "3",
        json.dumps({"prompt": "a"}),
        json.dumps(dict(good, chosen=3)),
        "[" * 100_000,
        json.dumps(dict(good, margin=float("nan"))),
        '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
        json.dumps(dict(good, rejected=good["chosen"])),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')
    result = read_groups([str(path)], on_bad="drop")
    assert dict(result.counts.bad) == {
        "broken JSON": 3,
        "not an object": 2,
        "missing field": 1,
        "non-string field": 1,
        "non-finite score": 1,
        "invalid text": 1,
        "identical answers": 1,
    }
    assert (result.counts.read, result.counts.used, result.counts.dropped) == (11, 1, 10)
    assert len(result.groups) == 1


@pytest.mark.parametrize(
    ("line", "reason"), [("{broken", "broken JSON: "), ("[1]", "not an object but list"), ('{"a": 1}', "unknown format: columns a; known")]
)
def test_a_line_that_is_no_row_stops_the_reading(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=rf"a\.jsonl:1: got .*{reason}"):
        list(iter_rows(str(path)))


def test_ties_and_missing_scores_are_bad_for_training_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answers": ["b", "c"], "scores": [1, 1]}, {"prompt": "a", "answers": ["b", "c"]}]
    path = write(tmp_path, rows)
    assert len(read_groups(path, purpose="score").groups) == 2
    with pytest.raises(DataError, match=r"got 2 rows of which none can be used \(1 × tie, 1 × missing scores\)"):
        read_groups(path, on_bad="drop")


def test_the_format_of_a_file_is_held(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[0], {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}])
    with pytest.raises(DataError, match=r":2: got missing field 'chosen'.*\(Read as format 'trl'\.\)"):
        read_groups([path])
    two = [write(tmp_path, ROWS[:1], "x.jsonl"), write(tmp_path, [{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}])]
    assert len(read_groups(two).groups) == 2


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, [{"query": "a", "responses": {"law": "b", "art": "c"}}])
    assert read_groups(path, format="dsp:art").groups[0].scores == (0.0, 1.0)
    with pytest.raises(DataError, match=r"missing field 'chosen'.*format 'hh'"):
        read_groups(path, format="hh")


def test_the_first_known_row_sets_the_format_when_dropping(tmp_path: Path) -> None:
    path = write(tmp_path, [{}, *ROWS])
    assert read_groups(path, on_bad="drop").counts.bad == {"unknown format": 1}
    with pytest.raises(DataError, match=r"rows of no known format; first: unknown format: columns none"):
        read_groups(write(tmp_path, [{}, {}]), on_bad="drop")


def test_plain_text_is_chat_unless_raw_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    chat, raw = read_groups(path).groups[0], read_groups(path, text="raw").groups[0]
    assert (chat.raw, raw.raw) == (False, True)
    assert chat.prompt == raw.prompt
    unprompted = write(tmp_path, [{"prompt": "", "chosen": "a", "rejected": "b"}], "empty.jsonl")
    assert read_groups(unprompted, text="raw").groups[0].raw
    with pytest.raises(DataError, match="empty prompt"):
        read_groups(unprompted)
    implicit = write(tmp_path, [{"chosen": "a", "rejected": "b"}], "implicit.jsonl")
    assert read_groups(implicit).groups[0].raw
    messages = write(tmp_path, [{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}], "chat.jsonl")
    with pytest.raises(DataError, match="not plain text: format 'trl' gives messages here"):
        read_groups(messages, text="raw")


def test_a_folder_is_read_in_order_and_names_the_subsets(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a/one.jsonl.gz", "a/.hidden.jsonl", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = json_lines([ROWS[0], dict(ROWS[1], subset="own")])
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    groups = read_groups(str(tmp_path)).groups
    assert [group.subset for group in groups] == ["a", "own", "b", "own"]


@pytest.mark.parametrize(
    ("own", "copies"),
    [
        ("filtered-00000-of-00001.jsonl", ("raw-00000-of-00001.jsonl", "train-00000-of-00001.jsonl")),
        ("chat_filtered.json", ("total_dataset.json",)),
    ],
)
def test_published_folders_are_read_once(own: str, copies: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place, name in enumerate((own, *copies)):
        (tmp_path / name).write_bytes(json_lines([dict(ROWS[0], subset=name)] * (place + 1)))
    assert [group.subset for group in read_groups(str(tmp_path)).groups] == [own]
    assert f"left out {', '.join(copies)}, further forms of rows that are read" in caplog.text
    (alone,) = {group.subset for group in read_groups(str(tmp_path / copies[0])).groups}
    assert alone == copies[0], "who names a file means it"
    (tmp_path / own).unlink()
    assert {group.subset for group in read_groups(str(tmp_path)).groups} == set(copies), "without the other they are all there is"


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(ROWS) + b"{broken")
    counts = ReadCounts()
    assert next(iter_rows(str(path), counts=counts)).raw == ROWS[0]
    assert (counts.read, counts.used) == (1, 1)


def test_a_long_array_is_decoded_over_the_bounds_of_its_chunks(tmp_path: Path) -> None:
    rows = [dict(ROWS[0], prompt="long " * (3**n)) for n in range(11)]
    (tmp_path / "a.json").write_bytes(b"\n " + json_array(rows))
    assert [row.raw for row in iter_rows(str(tmp_path / "a.json"))] == rows


def test_two_frames_of_zstandard_are_one_file(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(json_lines(ROWS[:2])) + compress(json_lines(ROWS[2:])))
    assert len(read_groups(str(tmp_path)).groups) == 5


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS * 50))[:-20]),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(json_lines(ROWS * 5000))[:-20]),
        ("a.jsonl.zst", b"no zstandard"),
        ("a.json", json_array(ROWS)[:-20]),
        ("a.json", b"[1, \xff]"),
        ("a.parquet", b"no parquet"),
        ("a.csv", b"a,a\n1,2\n"),
    ],
)
def test_a_damaged_file_is_an_error_even_when_dropping(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: got a file that cannot be read to its end"):
        read_groups(str(tmp_path / name), on_bad="drop")


def test_a_ragged_csv_row_is_bad(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,b,c\n\na,b\n")
    with pytest.raises(DataError, match=r"a\.csv:4: got ragged CSV row: 2 cells under 3 columns"):
        read_groups(str(tmp_path / "a.csv"))


def test_csv_cells_of_lists_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_table([{"prompt": "7", "answers": json.dumps(["a", "b"]), "scores": "[1, 0]", "id": ""}]))
    group = read_groups(str(tmp_path)).groups[0]
    assert (group.prompt_text, group.answer_texts, group.scores) == ("7", ("a", "b"), (1.0, 0.0))
    (tmp_path / "a.csv").write_bytes(csv_table([{"prompt": "7", "answers": "a", "scores": "[1, 0]"}]))
    with pytest.raises(DataError, match="not a list of answers"):
        read_groups(str(tmp_path))


@pytest.mark.parametrize("source", ["no/such/file.jsonl", "nowhere", "./org/name", "/org/name", "a/b.jsonl.gz", ""])
def test_a_path_that_does_not_exist_is_an_error(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no file or folder here; expected a path" if source else "expected at least one that ends in"):
        read_groups([source])


def test_files_of_other_kinds_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: got a file that ends in '\.txt'; expected \.jsonl"):
        read_groups(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="got a folder of 1 files; expected at least one"):
        read_groups(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"got 0 rows of which none can be used \(no rows at all\)"):
        read_groups(str(tmp_path))


@pytest.mark.parametrize("setting", ["on_bad", "purpose", "text"])
def test_settings_are_checked_before_reading(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"Got {setting}='skip'; expected one of"):
        iter_rows("nowhere", **{setting: "skip"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown data format 'nope'"):
        iter_rows("nowhere", format="nope")


def test_zstandard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match="pip install zstandard"):
        read_groups(str(tmp_path))


def test_hub_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, split, streaming))
        if name == "org/missing":
            raise ConnectionError("no network")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    groups = read_groups(["org/prefs", "org/prefs.v2:test"]).groups
    assert asked == [("org/prefs", "train", True), ("org/prefs.v2", "test", True)]
    assert (groups[0].subset, groups[5].origin) == ("prefs", "org/prefs.v2:test:1")
    with pytest.raises(DataError, match=r"could not be reached on the hub \(ConnectionError: no network\)"):
        read_groups("org/missing")


def test_the_embedded_world_is_read_by_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = read_groups(write(tmp_path, ROWS)).groups
    asked: list[str] = []

    def load_world(part: str) -> tuple[Group, ...]:
        asked.append(part)
        return groups

    monkeypatch.setitem(sys.modules, "rewardproof.data.world", types.SimpleNamespace(load_world=load_world))
    rows = [*iter_rows("embedded:checkable"), *iter_rows("embedded:checkable/shifted")]
    assert asked == ["train", "shifted"]
    assert rows[0].raw == to_row(groups[0])
    assert rows[0].group.answers == groups[0].answers
    assert rows[0].group.origin == "embedded:checkable:1"
    with pytest.raises(DataError, match="Got embedded:nothing; expected one of embedded:checkable"):
        list(iter_rows("embedded:nothing"))


def test_alpaca_annotations_come_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"no package alpaca-eval.*pip install --no-deps alpaca-eval==0\.1\.7"):
        read_groups("embedded:alpaca-annotations")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: types.SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(MissingExtraError, match="alpaca-eval without annotations"):
        read_groups("embedded:alpaca-annotations")
    folder = tmp_path / "evaluators_configs" / "judge"
    folder.mkdir(parents=True)
    rows = [{"instruction": "a", "input": "", "output_1": "b", "output_2": "c", "preference": n, "annotator": "judge"} for n in (2, 0)]
    (folder / "annotations_seed0_configs.json").write_bytes(json_array(rows))
    with caplog.at_level(logging.WARNING):
        result = read_groups("embedded:alpaca-annotations", on_bad="drop")
    assert "CC BY-NC" in caplog.text
    assert (result.groups[0].scores, result.groups[0].subset, dict(result.counts.bad)) == ((0.0, 1.0), "judge", {"tie": 1})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60) | st.text('[]{}":,\\ \nab1e-', max_size=60).map(str.encode), kind=st.sampled_from([*KINDS, "a.jsonl.gz"])
)
def test_junk_bytes_raise_nothing_but_data_errors(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / kind
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"got|Got"):
        read_groups(str(path), on_bad="drop")


def test_drop_unfit_counts_what_is_no_preference_and_stops_at_damage(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    tie, empty = {**good, "rejected": "a"}, {**good, "rejected": ""}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (good, tie, empty)))
    found = read_groups(str(file), on_bad="drop_unfit")
    assert len(found.groups) == 1
    assert dict(found.counts.bad) == {"identical answers": 1, "empty answer": 1}
    assert found.counts.sentence().startswith("dropped 2 of 3 rows: 1 × ")
    file.write_text(json.dumps(good) + "\n{torn\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: got broken JSON.*pass on_bad=drop to drop"):
        read_groups(str(file), on_bad="drop_unfit")
