"""`rewardproof merge MOE OUT`, or `merge MODEL MODEL… OUT method=average`: experts into one dense model, or models into one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.config import Section, Strings
from rewardproof.errors import ConfigError, ModelError
from rewardproof.merging import average
from rewardproof.merging.experts import Merge
from rewardproof.models.checkpoints import load_reward_model, load_tokenizer, save_reward_model
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import is_upcycled
from rewardproof.stages.members import merge_mixture
from rewardproof.training.fit import Compute
from rewardproof.training.preparation import Read, Sources, prepare


class MergeModels(Section):
    """What to merge and how."""

    models: Strings
    """One mixture, or two or more dense models of one architecture for `method=average`."""
    method: Literal["uniform", "routing_mass", "learned", "average"] = "learned"
    """Coefficients of the routed experts, or the uniform average of whole models (WARM)."""
    data: Strings = ()
    """Preferences on which routing is measured and coefficients are learned; a mixture needs them."""
    shared_weight: float = 0.5
    """Coefficient λ of the shared expert."""
    learn_shared_weight: bool = False
    """Learn λ too."""
    steps: int = 60
    """Steps on the coefficients at most."""
    learning_rate: float = 2e-2
    """AdamW's rate on the coefficients' logits."""
    max_length: int = 2048
    """Longest conversation, in tokens."""
    seed: int = 0
    """Of the data order."""
    read: Read = Read(on_bad="drop_unfit")
    """How the data is read."""
    compute: Compute = Compute()
    """Precision, budgets, cache."""


def run(
    config: MergeModels,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Report:
    """Merge and save to `OUT/model`.

    Raises:
        ConfigError: Models and method do not fit each other, or a mixture comes without data.
        ModelError: A dense model was given where a mixture is expected, or the reverse.
    """
    if config.method == "average":
        return _average(config, out, overwrite=overwrite)
    if len(config.models) != 1:
        raise ConfigError(
            f"Got {len(config.models)} models for method={config.method}, expected one mixture; to average models write method=average."
        )
    if not config.data:
        raise ConfigError(
            "Missing data=: the router's weights are measured, and coefficients learned, on preferences; name the training data."
        )
    spec = config.models[0]
    model, _ = load_reward_model(spec)
    if not is_upcycled(model):
        raise ModelError(
            f"{spec} is dense, expected a mixture of experts: it has nothing to merge. Give OUT/moe of a umm run, or method=average."
        )
    tokenizer = load_tokenizer(spec)
    settings = Merge(**config.model_dump(include={"method", "shared_weight", "learn_shared_weight", "steps", "learning_rate"}))
    prepared = prepare(Sources(config.data, (), 0.2, 0.5, config.read, config.max_length), tokenizer)
    directory = RunDirectory(out, config, overwrite=overwrite)
    summary = merge_mixture(
        RewardModel(model, tokenizer, precision=config.compute.precision, tokens_per_batch=config.compute.tokens_per_batch),
        settings,
        prepared=prepared,
        compute=config.compute,
        folder=directory.path / "checkpoints",
        seed=config.seed,
        record=directory.log,
        progress=progress,
    )
    shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
    save_reward_model(model, tokenizer, directory.path / "model")
    held = summary["held_out"] or {}
    shown = "" if held.get("correlation") is None else f", rewards correlate {held['correlation']:.4f} with the mixture's"
    return directory.finish(f"experts merged ({config.method}){shown}", {"rows": prepared.rows, "merge": summary})


def _average(config: MergeModels, out: Path | str, *, overwrite: bool) -> Report:
    if len(config.models) < 2:
        raise ConfigError(f"method=average got {len(config.models)} model, expected two or more; name them before OUT.")
    loaded = [load_reward_model(spec) for spec in config.models]
    for spec, (model, _) in zip(config.models, loaded, strict=True):
        if is_upcycled(model):
            raise ModelError(f"{spec} is a mixture, expected dense models for method=average; merge its experts first.")
    model, tokenizer = loaded[0]
    model.load_state_dict(average([entry.state_dict() for entry, _ in loaded]))
    directory = RunDirectory(out, config, overwrite=overwrite)
    save_reward_model(model, tokenizer, directory.path / "model")
    return directory.finish(f"{len(loaded)} models averaged", {"models": list(config.models)})
