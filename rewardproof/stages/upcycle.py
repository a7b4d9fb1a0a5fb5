"""`rewardproof upcycle MODEL OUT`: a dense reward model becomes a mixture that computes the same rewards, ready to train."""

from __future__ import annotations

import time
from pathlib import Path

from rewardproof.artifacts import Report, RunDirectory, refuse_inputs_inside, require_free
from rewardproof.models.checkpoints import forget_reward_scale, load_reward_model
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import CONFIG_KEY, Upcycle, check, upcycle


class UpcycleModel(Upcycle):
    """How to upcycle which model."""

    model: str
    """The dense reward model: a directory or a hub id."""
    seed: int = 0
    """Of the routers."""


def run(config: UpcycleModel, out: Path | str, *, overwrite: bool = False) -> Report:
    """Upcycle a dense reward model and save the mixture to `OUT/model`.

    Raises:
        CheckpointError: OUT holds something, or MODEL does not exist.
        ConfigError: The settings cannot work.
        ModelError: The model is a mixture already, or no reward model.
    """
    settings = Upcycle(**config.model_dump(exclude={"model", "seed"}))
    check(settings)
    started = time.perf_counter()
    refuse_inputs_inside(out, [config.model])
    require_free(out, overwrite=overwrite, resume=False)
    model, tokenizer = load_reward_model(config.model)
    before = sum(parameter.numel() for parameter in model.parameters())
    upcycle(model, settings, seed=config.seed)
    forget_reward_scale(model)
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    save_reward_model(model, tokenizer, directory.path / "model")
    after = sum(parameter.numel() for parameter in model.parameters())
    layers = getattr(model.config, CONFIG_KEY)["layer_indices"]
    headline = f"{len(layers)} layers upcycled to {settings.n_experts} experts, {before:,} → {after:,} parameters, same rewards"
    return directory.finish(headline, {"parameters_before": before, "parameters_after": after, "layers": layers})
