"""How models are written: whole or not at all, under the contract that every consumer reads."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from rewardproof.artifacts import writing
from rewardproof.models.checkpoints import EXPERTS_FILE
from rewardproof.models.factor_head import FACTORS_FILE, LOADING_NOTE, has_factors
from rewardproof.models.tensor_files import write_tensors
from rewardproof.models.upcycling import is_upcycled


def save_reward_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str, *, dtype: torch.dtype | None = None
) -> Path:
    """Write a checkpoint under the contract, atomically: a reader sees the whole directory or none.

    Args:
        model: Reward model, dense, upcycled, or with a head of factors.
        tokenizer: Its tokenizer, saved with the chat template.
        path: Directory to write; replaced if it exists.
        dtype: Precision of the saved weights; `None` keeps the model's own.
    """
    if is_upcycled(model) or has_factors(model):
        return save_streamed(model, tokenizer, path, model.state_dict().items(), dtype=dtype)
    return save_model(model, tokenizer, path, dtype=dtype)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str, *, dtype: torch.dtype | None = None) -> Path:
    """Write a stock model of any kind, atomically; arguments as for `save_reward_model`."""
    state = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in model.state_dict().items()}
    return _publish(model, tokenizer, path, lambda folder: model.save_pretrained(folder, state_dict=state), dtype or model.dtype)


def save_streamed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | str,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint whose tensors come one after the other, without ever holding all of them in the precision to save.

    Args:
        model: Structure, configuration and class; its own parameters may be without data.
        tokenizer: Its tokenizer.
        path: Directory to write; replaced if it exists.
        tensors: The entries of the model's state dict, in any order.
        dtype: Precision of the saved weights; `None` keeps the model's own. A head of factors keeps its own always.
    """
    kept = "score." if has_factors(model) else None
    layout = {
        name: torch.empty_like(tensor, dtype=tensor.dtype if kept and name.startswith(kept) else dtype, device="meta")
        for name, tensor in model.state_dict().items()
    }
    name = EXPERTS_FILE if is_upcycled(model) else FACTORS_FILE if has_factors(model) else SAFE_WEIGHTS_NAME

    def write(folder: Path) -> None:
        write_tensors(folder / name, layout, tensors)
        model.config.save_pretrained(folder)
        if has_factors(model):
            (folder / "README.md").write_text(LOADING_NOTE)

    return _publish(model, tokenizer, path, write, dtype or model.dtype)


def _publish(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str, write: Callable[[Path], None], dtype: torch.dtype
) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.partial-*"):  # of a process that was killed while it saved
        shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    with writing(target, discard=partial):
        write(partial)
        saved = json.loads((partial / "config.json").read_text())
        saved["dtype"] = str(dtype).removeprefix("torch.")
        saved["architectures"] = [type(model).__name__]
        (partial / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
        tokenizer.save_pretrained(partial)
    partial.chmod(0o755)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    return target


def save_reward_scale(path: Path | str, rewards: Sequence[Sequence[float]]) -> None:
    """Write the mean and standard deviation of rewards into a saved checkpoint's configuration, where consumers normalise by them."""
    values = torch.tensor([value for row in rewards for value in row], dtype=torch.float64)
    file = Path(path) / "config.json"
    config = json.loads(file.read_text()) | {"mean": float(values.mean()), "std": float(values.std(correction=0))}
    partial = file.with_name(file.name + ".partial")
    with writing(file, discard=partial):
        partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, file)
