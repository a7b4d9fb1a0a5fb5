"""Which settings of a run mean something with experts by capability."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardproof.errors import ConfigError
from rewardproof.training.arguments import check_trainer_keys
from rewardproof.training.double_mixture import PHASES

if TYPE_CHECKING:
    from rewardproof.stages.train import Train


def check_capabilities(config: Train) -> None:
    """Refuse settings that mean nothing with experts by capability, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    if config.capabilities is None:
        if config.labels is not None:
            raise ConfigError(
                "Got `labels` without `capabilities`, expected both: nothing else reads them. Use recipe dmoerm, or drop labels."
            )
        return
    others = {
        "upcycle": config.upcycle, "merge": config.merge, "ensemble": config.ensemble, "reuse": config.reuse, "domain": config.domain,
        "contrast": config.contrast, "policy_loss": config.policy_loss, "factors": config.factors, "loss.language": config.loss.language,
    }  # fmt: skip
    found = [name for name, value in others.items() if value] + (["members"] if config.members != 1 else [])
    if found:
        raise ConfigError(
            f"Got `capabilities` with {', '.join(found)}, expected it alone: one run trains one router with its categories' experts. Train "
            "several runs, and name their models in an ensemble.yaml."
        )
    if config.layers == "top:0":
        raise ConfigError("layers=top:0 with `capabilities`, expected layers that experts can be adapters on; write layers=top:1 or more.")
    for settings in config.capabilities.trainer.values():
        check_trainer_keys(settings)
    unjudged = [phase for phase in PHASES if config.capabilities.trainer_of(phase, config.trainer).get("eval_strategy") == "no"]
    if unjudged and config.capabilities.validation:
        raise ConfigError(
            f"Got eval_strategy=no for {', '.join(unjudged)} with capabilities.validation={config.capabilities.validation}, expected epoch "
            "or steps: every phase keeps the state that does best on the prompts held out for that. Drop eval_strategy, or write "
            "capabilities.validation=0 to keep the last states."
        )
