"""The frozen trunk: layers below the first trained one run once per group, and their output is kept on disk.

During training the frozen layers are replaced by pass-through layers (indices kept, embeddings and norms untouched) and the last of them
returns the stored activations. The store is content-addressed: weights, layer and precision name the folder, a group's tokens name its
rows, so that recipes which share data and a trunk share the work.
"""

# T tokens of a stream, D hidden width.
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.artifacts import writing
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import fill, pack
from rewardproof.models.embedded import cache_dir
from rewardproof.models.families import family_of, is_padded_only
from rewardproof.models.packed import hidden_states, position_boundary
from rewardproof.models.precision import Precision, computing_in

log = logging.getLogger(__name__)


_NOT_OF_THE_TRUNK = frozenset(
    "_name_or_path architectures dtype id2label label2id mean std problem_type pad_token_id eos_token_id bos_token_id use_cache "
    "transformers_version value_head_prefix rewardproof_upcycle rewardproof_factors num_labels torch_dtype".split()
)
"""Configuration entries that two models may differ in and still share their lower layers' activations."""


_KNOWN_KEYS = "_rewardproof_trunk_keys"
_ROOM = (
    "Free some space there, point REWARDPROOF_CACHE at another disk, or set compute.trunk_cache_gb=0 to run the frozen layers every step"
)
Versions = tuple[tuple[int, int, int], ...]


class _Reached(Exception):
    """Carries the hidden states out of a forward pass that need go no further."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _PassThrough(nn.Module):
    """Stands where a frozen layer stood; the last one returns the stored activations instead of its input."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        if hasattr(original, "attention_type"):
            self.attention_type = original.attention_type

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states if self.hidden is None else self.hidden.to(hidden_states.dtype)[None]


def trunk_states(model: PreTrainedModel, groups: Sequence[EncodedGroup], first_layer: int, *, precision: Precision) -> list[Tensor]:
    """Hidden states that enter layer `first_layer`, one tensor `(T, D)` a group, computed without gradient."""
    layer = family_of(model).layer_list(model)[first_layer]

    def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    hook = layer.register_forward_pre_hook(stop)
    batch = pack(groups).to(model.device)
    try:
        with torch.no_grad(), computing_in(precision, model.device):
            hidden_states(model, batch)
    except _Reached as reached:
        return list(reached.hidden[0].split([group.n_tokens for group in groups]))
    finally:
        hook.remove()
    raise AssertionError("the forward pass did not reach the first trained layer")


class FrozenTrunk:
    """Detaches a model's frozen layers, so that training sees only the upper ones."""

    def __init__(self, model: PreTrainedModel, first_layer: int) -> None:
        """Remember layers `[0, first_layer)` of `model`."""
        self.layers = family_of(model).layer_list(model)
        self.originals = [self.layers[index] for index in range(first_layer)]
        self.stand_ins = [_PassThrough(layer) for layer in self.originals]

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """Pass-through layers take the frozen ones' places while the context is open."""
        for index, stand_in in enumerate(self.stand_ins):
            self.layers[index] = stand_in
        try:
            yield
        finally:
            for index, original in enumerate(self.originals):
                self.layers[index] = original

    @contextlib.contextmanager
    def feeding(self, hidden_TD: Tensor) -> Iterator[None]:
        """Let the next forward pass start from stored activations."""
        self.stand_ins[-1].hidden = hidden_TD
        try:
            yield
        finally:
            self.stand_ins[-1].hidden = None


class TrunkStore(Protocol):
    """Where activations of a trunk are kept."""

    def fits(self, groups: Sequence[EncodedGroup]) -> bool:
        """Whether these groups can be kept too."""
        ...

    def add(self, groups: Sequence[EncodedGroup], *, tokens_per_batch: int) -> Iterator[int]:
        """Compute and keep what is missing; yields the number of groups done so far."""
        ...

    def read(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Activations of a packed stream of these groups, shape `(T, D)`."""
        ...


class TrunkMemory:
    """Activations in memory, for models that have these layers in common and score the same groups one after the other."""

    def __init__(self, model: PreTrainedModel, first_layer: int, *, precision: Precision) -> None:
        """Take the model that computes them, and the first layer in which the models differ."""
        self.model = model
        self.first_layer = first_layer
        self.precision: Precision = precision
        self.states: dict[str, Tensor] = {}

    def fits(self, groups: Sequence[EncodedGroup]) -> bool:
        """Always: whoever scores decides how many groups there are at a time."""
        return True

    def add(self, groups: Sequence[EncodedGroup], *, tokens_per_batch: int) -> Iterator[int]:
        """Compute what is missing."""
        missing = [group for group in groups if group_key(group) not in self.states]
        for side in _sides(missing, position_boundary(self.model)):
            for run in fill(side, tokens_per_batch=tokens_per_batch):
                states = trunk_states(self.model, run, self.first_layer, precision=self.precision)
                self.states |= {group_key(group): hidden_TD for group, hidden_TD in zip(run, states, strict=True)}
        yield len(groups)

    def read(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Activations of a packed stream of these groups, shape `(T, D)`."""
        return torch.cat([self.states[group_key(group)] for group in groups])


def layers_in_common(models: Sequence[PreTrainedModel]) -> int:
    """Layers from the first on that models have in common, embeddings included; the last layer never counts.

    Zero where configurations differ in more than names, or a model needs padding.
    """
    first, *others = models
    if any(is_padded_only(model) or _trunk_settings(model) != _trunk_settings(first) for model in models):
        return 0
    if not all(_equal(_embeddings(first), _embeddings(other)) for other in others):
        return 0
    layers = [list(family_of(model).layer_list(model)) for model in models]
    for depth, (ours, *theirs) in enumerate(zip(*layers, strict=True)):
        if depth == len(layers[0]) - 1 or not all(_equal([ours], [layer]) for layer in theirs):
            return depth
    return 0


class TrunkCache:
    """Activations on disk: one append-only file of rows, and an index from a group's tokens to its rows."""

    def __init__(self, model: PreTrainedModel, first_layer: int, *, precision: Precision, limit_gb: float) -> None:
        """Open the store of this trunk; other trunks' stores are deleted, oldest first, while all together exceed `limit_gb`."""
        self.model = model
        self.first_layer = first_layer
        self.precision: Precision = precision
        self.limit_bytes = int(limit_gb * 1e9)
        self.width = model.config.hidden_size
        self.half = precision == "bf16"
        self.dtype = np.dtype(np.int16 if self.half else np.float32)
        self.folder = cache_dir() / "trunk" / _trunk_key(model, first_layer, precision)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows_file = self.folder / "rows.bin"
        self.index_file = self.folder / "index.jsonl"
        self.index: dict[str, tuple[int, int]] = {}
        self._rows: np.memmap | None = None
        os.utime(self.folder)
        self._read_index()

    def _read_index(self) -> None:
        if not self.index_file.exists() or not self.rows_file.exists():
            return
        complete = self._complete_rows()
        for line in self.index_file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                key, start, count = json.loads(line)
                if start + count <= complete:
                    self.index[key] = (start, count)

    def _complete_rows(self) -> int:
        """Whole rows on disk; a crash can leave half a row at the end, or an index that promises more."""
        return self.rows_file.stat().st_size // (self.width * self.dtype.itemsize)

    def fits(self, groups: Sequence[EncodedGroup]) -> bool:
        """Whether the store with these groups added stays inside the limit."""
        wanted = sum(group.n_tokens for group in groups if group_key(group) not in self.index)
        stored = self.rows_file.stat().st_size if self.rows_file.exists() else 0
        return stored + wanted * self.width * self.dtype.itemsize <= self.limit_bytes

    def add(self, groups: Sequence[EncodedGroup], *, tokens_per_batch: int) -> Iterator[int]:
        """Compute and store what is missing; yields the number of groups done so far, for a progress bar."""
        done = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.index.clear()
            self._read_index()
            missing = [group for group in {group_key(group): group for group in groups}.values() if group_key(group) not in self.index]
            adding = sum(group.n_tokens for group in missing) * self.width * self.dtype.itemsize
            _make_room(self.folder, self.limit_bytes, adding=adding)
            done = len(groups) - len(missing)
            yield done
            for side in _sides(missing, position_boundary(self.model)):
                for run in fill(side, tokens_per_batch=tokens_per_batch):
                    self._append(run, trunk_states(self.model, run, self.first_layer, precision=self.precision))
                    done += len(run)
                    yield done
        self._rows = None

    def _append(self, groups: Sequence[EncodedGroup], states: Sequence[Tensor]) -> None:
        row_bytes = self.width * self.dtype.itemsize
        start = self._complete_rows() if self.rows_file.exists() else 0
        with writing(self.rows_file, advice=_ROOM):
            with self.rows_file.open("ab") as rows:
                rows.truncate(start * row_bytes)  # half a row, of a process that was killed or had no room left
                for hidden_TD in states:
                    stored = hidden_TD.to("cpu", torch.bfloat16).view(torch.int16) if self.half else hidden_TD.to("cpu", torch.float32)
                    rows.write(stored.contiguous().numpy().tobytes())
            added = [(group_key(group), place, group.n_tokens) for group, place in zip(groups, _starts(start, groups), strict=True)]
            with self.index_file.open("a") as index:
                index.write("".join("\n" + json.dumps(entry) for entry in added))  # a line cut off before it stays apart
        self.index |= {key: (place, count) for key, place, count in added}

    def read(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Stored activations of a packed stream of these groups, shape `(T, D)`."""
        if self._rows is None:
            self._rows = np.memmap(self.rows_file, dtype=self.dtype, mode="r", shape=(self._complete_rows(), self.width))
        spans = [self.index[group_key(group)] for group in groups]
        rows = torch.from_numpy(np.concatenate([self._rows[start : start + count] for start, count in spans]))
        return rows.view(torch.bfloat16).float() if self.half else rows


def _starts(first: int, groups: Sequence[EncodedGroup]) -> Iterator[int]:
    """The row at which each group begins, from the first one's."""
    return accumulate((group.n_tokens for group in groups[:-1]), initial=first)


def _sides(groups: Sequence[EncodedGroup], boundary: int | None) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """Groups up to the length at which rotary factors change and longer ones, which must not share a stream."""
    short: list[EncodedGroup] = []
    long: list[EncodedGroup] = []
    for group in groups:
        beyond = boundary is not None and max(len(tokens) for tokens in group.conversations) > boundary
        (long if beyond else short).append(group)
    return short, long


def group_key(group: EncodedGroup) -> str:
    """Hash of a group's packed tokens."""
    digest = hashlib.sha256(str(group.shared).encode())
    for conversation in group.conversations:
        digest.update(np.asarray(conversation, dtype=np.int32).tobytes() + b"|")
    return digest.hexdigest()[:32]


def _trunk_key(model: PreTrainedModel, first_layer: int, precision: Precision) -> str:
    """Name of a trunk's store; remembered on the model until one of the tensors below `first_layer` changes."""
    asked = json.dumps([first_layer, precision, _trunk_settings(model)], sort_keys=True, default=str)
    lower = list(family_of(model).layer_list(model)[:first_layer])
    tensors = [entry for module in [*_embeddings(model), *lower] for entry in module.state_dict(keep_vars=True).items()]
    known: dict[str, tuple[Versions | None, str]] = model.__dict__.setdefault(_KNOWN_KEYS, {})
    versions = _versions(tensors)
    if asked not in known or versions is None or known[asked][0] != versions:
        digest = hashlib.sha256(asked.encode())
        for name, tensor in tensors:
            digest.update(name.encode())
            digest.update(memoryview(tensor.detach().to("cpu", torch.float32).contiguous().numpy()).cast("B"))
        known[asked] = (versions, digest.hexdigest()[:32])
    return known[asked][1]


def _trunk_settings(model: PreTrainedModel) -> dict[str, Any]:
    return {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_TRUNK}


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.base_model.modules() if isinstance(module, nn.Embedding)]


def _equal(ours: Sequence[nn.Module], theirs: Sequence[nn.Module]) -> bool:
    """Whether modules hold the same tensors under the same names."""
    both = [[entry for module in modules for entry in module.state_dict().items()] for modules in (ours, theirs)]
    return [name for name, _ in both[0]] == [name for name, _ in both[1]] and all(
        one.shape == other.shape and one.device == other.device and torch.equal(one, other)
        for (_, one), (_, other) in zip(*both, strict=True)
    )


def _versions(tensors: Sequence[tuple[str, Tensor]]) -> Versions | None:
    """Which tensors these are, where they lie and how often they were changed in place; `None` where torch does not count that."""
    if any(tensor.is_inference() for _, tensor in tensors):
        return None
    return tuple((id(tensor), tensor.data_ptr(), tensor._version) for _, tensor in tensors)


def _make_room(keep: Path, limit_bytes: int, *, adding: int) -> None:
    """Delete stores, the longest unused first, until `adding` more bytes stay inside the limit; a store that is being filled stays."""
    stores = sorted((path for path in keep.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in stores}
    for path in stores:
        if sum(sizes.values()) + adding <= limit_bytes:
            return
        if path != keep and _delete_unless_locked(path):
            log.warning("trunk cache: deleting %s (%.1f GB) to stay under its limit", path, sizes[path] / 1e9)
            del sizes[path]


def _delete_unless_locked(store: Path) -> bool:
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("trunk cache: %s is being filled by another process and stays, though the limit is reached", store)
            return False
        shutil.rmtree(store)
    return True
