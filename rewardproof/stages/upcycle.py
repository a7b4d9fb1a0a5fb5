"""`rewardproof upcycle MODEL OUT`: a dense reward model becomes a mixture that computes the same rewards, ready to train."""

from __future__ import annotations

from pathlib import Path

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.models.checkpoints import load_reward_model, save_reward_model
from rewardproof.models.upcycling import CONFIG_KEY, Upcycle, upcycle


class UpcycleModel(Upcycle):
    """How to upcycle which model."""

    model: str
    """The dense reward model: a directory or a hub id."""
    seed: int = 0
    """Of the routers."""


def run(config: UpcycleModel, out: Path | str, *, overwrite: bool = False) -> Report:
    """Upcycle a dense reward model and save the mixture to `OUT/model`."""
    model, tokenizer = load_reward_model(config.model)
    before = sum(parameter.numel() for parameter in model.parameters())
    settings = Upcycle(**config.model_dump(exclude={"model", "seed"}))
    upcycle(model, settings, seed=config.seed)
    directory = RunDirectory(out, config, overwrite=overwrite)
    save_reward_model(model, tokenizer, directory.path / "model")
    after = sum(parameter.numel() for parameter in model.parameters())
    layers = getattr(model.config, CONFIG_KEY)["layer_indices"]
    headline = f"{len(layers)} layers upcycled to {settings.n_experts} experts, {before:,} → {after:,} parameters, same rewards"
    return directory.finish(headline, {"parameters_before": before, "parameters_after": after, "layers": layers})
