"""Checkpoints of a policy run: what trained, the optimiser, and how far it is; sampling needs nothing more to go on the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rewardproof.artifacts import writing
from rewardproof.policy.stepping import Loop
from rewardproof.training.checkpoints import STATE, WEIGHTS, load_trained_state, trained_state


def save_loop(loop: Loop, folder: Path) -> Path:
    """Write `checkpoint-N` after update N and delete older ones; whole once its state file is there."""
    target = folder / f"checkpoint-{loop.done}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with writing(target, discard=target):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trained_state(loop.policy).items()}, target / WEIGHTS)
        torch.save(loop.optimizer.state_dict(), target / "optimizer.pt")
        torch.save(loop.schedule.state_dict(), target / "scheduler.pt")
        torch.save(loop.state(), target / "loop.pt")
        (target / STATE).write_text(json.dumps({"global_step": loop.done}) + "\n")
    for older in folder.glob("checkpoint-*"):
        if older != target:
            shutil.rmtree(older)
    return target


def load_loop(loop: Loop, checkpoint: Path) -> None:
    """Go on from a checkpoint; tensors and plain values that the loop keeps are read, other objects are not."""
    load_trained_state(loop.policy, load_file(checkpoint / WEIGHTS))
    loop.optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    loop.schedule.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))
    loop.load_state(torch.load(checkpoint / "loop.pt", weights_only=True))
    loop.done = json.loads((checkpoint / STATE).read_text())["global_step"]
