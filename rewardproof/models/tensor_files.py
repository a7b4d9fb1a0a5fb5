"""Safetensors files read and written one tensor at a time, so that a file larger than the memory left can be worked through.

The library maps a whole file into memory and writes all tensors at once; here one tensor is read into memory of its own, and a file is laid
out from shapes alone before any of its tensors exists. The format is the library's: either reads what the other wrote.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from rewardproof.artifacts import writing
from rewardproof.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Kinds of numbers by the name that the format gives them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class Place(NamedTuple):
    """Where a file keeps one tensor, and what that tensor is.

    Attributes:
        dtype: Kind of numbers.
        shape: Its shape.
        start: Position of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file whose tensors are read when asked for; close it, or use it in a `with` block."""

    def __init__(self, path: Path | str) -> None:
        """Open a file and read where its tensors lie.

        Raises:
            CheckpointError: The file is cut short, or no safetensors file.
        """
        self.path = Path(path)
        self._stream: BinaryIO = self.path.open("rb")
        try:
            self.places = self._read_header()
        except CheckpointError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Give the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _read_header(self) -> dict[str, Place]:
        size = self.path.stat().st_size
        length = int.from_bytes(self._stream.read(8), "little")
        begin = 8 + length
        try:
            if begin > size:
                raise ValueError("its table of contents is cut off")
            header = json.loads(self._stream.read(length))
            header.pop("__metadata__", None)
            places = {
                name: Place(DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + entry["data_offsets"][0])
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path} is no readable safetensors file ({error}), expected a table of contents and then the tensors; its weights "
                "cannot be found. Copy the checkpoint again, or train it again."
            ) from error
        expected = max((place.start + place.n_bytes for place in places.values()), default=begin)
        if size < expected:
            raise CheckpointError(
                f"{self.path} has {size:,} bytes, expected {expected:,} by its table of contents: the end of its weights is missing, as "
                "after a full disk or a broken copy. Copy the checkpoint again, or train it again."
            )
        return places

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor in memory of its own; `dtype` converts it."""
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._stream.seek(place.start)
        read = self._stream.readinto(_bytes_of(tensor))  # pyright: ignore[reportAttributeAccessIssue]
        assert read == place.n_bytes, "the size of the file was checked when it was opened"
        return tensor if dtype is None else tensor.to(dtype)


def write_tensors(path: Path | str, layout: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a safetensors file from tensors that come one after the other.

    Args:
        path: File to write.
        layout: What the file will hold: tensors of the right shape and kind by name; they may be without data (on the meta device).
        tensors: The same names, each with its tensor, in any order; converted to the layout's kind, from any device.
    """
    names = sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name))  # wide numbers first: all stay aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in names:
        starts[name] = end
        end += layout[name].numel() * layout[name].dtype.itemsize
        header[name] = {"dtype": _NAMES[layout[name].dtype], "shape": list(layout[name].shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with Path(path).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            stream.seek(8 + len(text) + starts.pop(name))
            assert tensor.shape == layout[name].shape, f"{name}: {tuple(tensor.shape)} is not what the layout says"
            stream.write(_bytes_of(tensor.detach().to("cpu", layout[name].dtype).contiguous()))
    assert not starts, f"{next(iter(starts))} was laid out but never came"


def save_whole(target: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors that are in memory, and words about them, into a file that is there whole or not at all.

    Raises:
        StorageError: The disk is full, or a limit on the size of files is reached.
    """
    partial = target.with_name(target.name + ".partial")
    with writing(target, discard=partial):
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(own, partial, metadata=dict(metadata) if metadata else None)
    os.replace(partial, target)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
