"""What a training run's checkpoints hold, and which of them are whole: a run can be stopped while one is written or deleted."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
STATE = "trainer_state.json"
REQUIRED = (STATE, WEIGHTS, "optimizer.pt", "scheduler.pt")


def latest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole, or nothing; newer ones that are torn are named in the log and deleted."""
    numbered = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()}
    torn: dict[Path, str] = {}
    found: Path | None = None
    for _, path in sorted(numbered.items(), reverse=True):
        flaw = flaw_of(path)
        if flaw is None:
            found = path
            break
        torn[path] = flaw
    for path, flaw in torn.items():
        log.warning("%s is torn (%s); going on from %s", path, flaw, found.name if found else "the beginning")
        shutil.rmtree(path, ignore_errors=True)
    return found


def flaw_of(checkpoint: Path) -> str | None:
    """What is missing or cut off in a checkpoint; nothing where it is whole.

    Sharded checkpoints (FSDP, DeepSpeed) keep their weights in folders of their own, of which only the trainer's state is read here: it is
    written last.
    """
    sharded = any(path.is_dir() for path in checkpoint.iterdir())
    missing = [name for name in REQUIRED if not (checkpoint / name).is_file() and not (sharded and name != STATE)]
    if missing:
        return f"no {missing[0]}"
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        if not _is_whole(file):
            return f"{file.name} is cut off or damaged"
    return None


def _is_whole(file: Path) -> bool:
    """Whether a file can be read to its end, by the check sums or sizes that its format keeps."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return True
        elif file.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
    except (OSError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_trained_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters back by name."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
