"""Safetensors files one tensor at a time: the library reads what is written here and the reverse, and broken files are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rewardproof.errors import CheckpointError
from rewardproof.models.tensor_files import DTYPES, TensorFile, write_tensors

SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
ENTRIES = st.dictionaries(st.text(min_size=1, max_size=6), st.tuples(SHAPES, st.sampled_from(list(DTYPES.values()))), max_size=6)


def drawn(entries: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (shape, dtype) in entries.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].shape == right[name].shape and torch.equal(left[name], right[name])
        for name in left
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=ENTRIES)
def test_the_library_reads_what_is_written_and_the_reverse(entries: dict[str, tuple[tuple[int, ...], torch.dtype]], tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in drawn(entries).items() if name != "__metadata__"}
    write_tensors(tmp_path / "ours", tensors, reversed(tensors.items()))
    assert same(load_file(tmp_path / "ours"), tensors)
    save_file(tensors, tmp_path / "theirs")
    for file in ("ours", "theirs"):
        with TensorFile(tmp_path / file) as found:
            assert same({name: found.read(name) for name in found.places}, tensors)


def test_tensors_are_converted_one_by_one(tmp_path: Path) -> None:
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    layout = {"w": torch.empty(3, 5, dtype=torch.bfloat16, device="meta"), "t": torch.empty(5, 3, device="meta")}
    write_tensors(tmp_path / "file", layout, iter([("w", weights), ("t", weights.T)]))
    with TensorFile(tmp_path / "file") as file:
        assert torch.equal(file.read("w"), weights.bfloat16())
        assert torch.equal(file.read("w", torch.float32), weights.bfloat16().float())
        assert torch.equal(file.read("t"), weights.T)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("left", [4, 20])
def test_a_file_cut_in_its_table_of_contents(left: int, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"is no readable safetensors file \(its table of contents is cut off\), expected .* Copy"):
        TensorFile(tmp_path / "file")


@pytest.mark.parametrize("text", [b"hello", b"[1, 2]", b'{"w": {"dtype": "F5", "shape": [1], "data_offsets": [0, 1]}}'])
def test_a_file_that_is_something_else(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="is no readable safetensors file"):
        TensorFile(tmp_path / "file")


def test_a_file_whose_end_is_missing(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(whole[:-1])
    with pytest.raises(
        CheckpointError, match=rf"has {len(whole) - 1:,} bytes, expected {len(whole):,} by its table of contents: the end of"
    ):
        TensorFile(tmp_path / "file")
