"""Log-probabilities of whole answers, and those of the reference: the model that training starts from, asked once and kept."""

# C conversations of a stream, L answer tokens.
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewardproof.artifacts import is_main, n_processes, process_number, write_whole
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch
from rewardproof.errors import CheckpointError
from rewardproof.models.precision import Precision, computing_in
from rewardproof.training.batches import Collator, Stream, TrainingGroup
from rewardproof.training.processes import agreed, gathered

FILE = "reference.json"
"""Beside a run's checkpoints: an answer's key, and its log-probability under the model that the run started from."""

Reader = Callable[[Stream], Tensor]
"""A value for each conversation of a stream, or several, out of a pass over it."""


def answer_lengths(batch: PackedBatch) -> list[int]:
    """Answer tokens of each conversation, its template's terminator among them."""
    return torch.bincount(batch.target_conversation_L, minlength=len(batch.end_index_C)).tolist()


def summed(values_L: Tensor, batch: PackedBatch) -> Tensor:
    """The sum of each conversation's answer tokens, shape `(C,)`; in the same order on every device."""
    return torch.stack([part.sum() for part in values_L.split(answer_lengths(batch))])


def answer_keys(group: EncodedGroup) -> list[str]:
    """A hash of each answer with its prompt, as tokens, and of where the answer begins."""
    return [
        hashlib.sha256(f"{start}|".encode() + np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()[:24]
        for tokens, start in zip(group.conversations, group.answer_starts, strict=True)
    ]


def values_of(
    module: nn.Module, groups: Sequence[EncodedGroup], reader: Reader, *, collator: Collator, device: torch.device, precision: Precision
) -> Iterator[tuple[EncodedGroup, list[Any]]]:
    """Each group with what a reader says of each of its conversations by a module, without gradient and in evaluation mode."""
    was_training = module.training
    module.eval()
    try:
        for stream in collator.streams([TrainingGroup(group, ()) for group in groups]):
            with torch.no_grad(), computing_in(precision, device):
                values = iter(reader(stream.to(device)).tolist())
            for group in stream.groups:
                yield group, [next(values) for _ in group.conversations]
    finally:
        module.train(was_training)


class Reference:
    """What the model that a run started from says of every answer."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.log_probs: dict[str, float] = {}

    def of(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Log-probabilities of all conversations of the groups, in order, shape `(C,)`."""
        return torch.tensor([self.log_probs[key] for group in groups for key in answer_keys(group)], dtype=torch.float32)

    def keep(
        self,
        file: Path,
        groups: Sequence[EncodedGroup],
        read: Callable[[Sequence[EncodedGroup]], Iterator[tuple[EncodedGroup, list[float]]]],
        *,
        progress: Callable[[int, int], None],
    ) -> None:
        """Take from a file what is known of the groups' answers; compute what is not, each process its share, and keep it there.

        Args:
            file: Written whole once all is known, so that a resumed run asks the model no second time.
            groups: All that will be asked for.
            read: Groups to log-probabilities of their conversations, under the model that the run starts from.
            progress: Receives how many groups are done, of how many.

        Raises:
            CheckpointError: The file cannot be read.
        """
        self.log_probs = agreed(_known(file) if is_main() else {})
        missing = [group for group in groups if not all(key in self.log_probs for key in answer_keys(group))]
        if not missing:
            return
        found: dict[str, float] = {}
        own = missing[process_number() :: n_processes()]
        for done, (group, values) in enumerate(read(own), start=1):
            found |= dict(zip(answer_keys(group), values, strict=True))
            progress(done, len(own))
        for part in gathered(found):
            self.log_probs |= part
        if is_main():
            write_whole(file, json.dumps(self.log_probs) + "\n")


def _known(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    try:
        return {str(key): float(value) for key, value in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}), expected the log-probabilities under the model that the run started from: without them the "
            "policy's loss has no reference. Delete it, and --resume computes it again from that model; the checkpoints stay good."
        ) from error
