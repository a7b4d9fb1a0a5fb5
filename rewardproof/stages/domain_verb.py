"""`rewardproof merge MODEL LM OUT method=domain`: a reward model merged with a domain's language model, as a step of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import Progress, Report, RunDirectory
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.checkpoints import forget_reward_scale, load_reward_model
from rewardproof.models.precision import default_device
from rewardproof.models.saving import save_reward_model, save_reward_scale
from rewardproof.models.upcycling import is_upcycled
from rewardproof.report import format_interval
from rewardproof.stages.domain import Domain, check_domain, matched, merge_with_domain
from rewardproof.stages.domain_page import interval_of, write_domain_page
from rewardproof.training.batches import TrainingSet
from rewardproof.training.preparation import Prepared, Sources, prepare

if TYPE_CHECKING:
    from rewardproof.stages.merge import MergeModels


def check_merge(config: MergeModels) -> None:
    """Refuse what cannot be merged, before any work is done.

    Raises:
        ConfigError: There are not two models, or nothing says which weight the language model gets.
    """
    if len(config.models) != 2:
        raise ConfigError(
            f"Got {len(config.models)} models for method=domain, expected two: a reward model and the language model of a domain, in this "
            "order; name them before OUT."
        )
    if config.weight == "choose" and not config.data:
        raise ConfigError(
            "Missing data=: λ is chosen by accuracy on validation preferences of the domain, never on those that the model will be judged "
            "by; name some, or write weight=0.3 or another number."
        )
    check_domain(_settings(config))


def _settings(config: MergeModels) -> Domain:
    return Domain(
        model=config.models[1], weight=config.weight, weights=config.weights, reward_weight=config.reward_weight, data=config.data
    )


def merge_models(config: MergeModels, out: Path | str, *, overwrite: bool, started: float, progress: Progress) -> Report:
    """Merge and save to `OUT/model`.

    Raises:
        CheckpointError: A model does not exist.
        ModelError: The first is a mixture, the second no language model, or the two are not of one base.
    """
    model, tokenizer = load_reward_model(config.models[0])
    if is_upcycled(model):
        raise ModelError(f"{config.models[0]} is a mixture, expected a dense model for method=domain; merge its experts first.")
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    add = config.domain_tokens == "add"
    merge = matched(model, tokenizer, config.models[1], several=bool(config.data), add_tokens=add)
    sources = Sources(config.data, (), 0.0, 0.0, config.read, config.max_length)
    prepared = prepare(sources, tokenizer) if config.data else None
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    found = merge_with_domain(
        merge,
        _settings(config),
        validation=prepared.train if prepared else TrainingSet([]),
        tokenizer=tokenizer,
        compute=config.compute,
        progress=progress,
    )
    forget_reward_scale(found.model)
    save_reward_model(found.model, tokenizer, directory.path / "model", dtype=config.compute.weights_dtype)
    if found.rewards:
        save_reward_scale(directory.path / "model", found.rewards)
    report = directory.finish(_headline(found.summary), {"rows": _rows(prepared), "models": list(config.models), "domain": found.summary})
    write_domain_page(directory, report)
    return report


def _headline(summary: dict[str, Any]) -> str:
    judged = summary["validation"]
    how = "chosen" if summary["chosen"] else "given"
    if judged is None:
        return f"language model of the domain at weight {summary['weight']:g} ({how})"
    return (
        f"language model of the domain at weight {summary['weight']:g} ({how}): validation accuracy "
        f"{format_interval(interval_of(judged['accuracy']))} on {judged['pairs']} pairs"
    )


def _rows(prepared: Prepared | None) -> dict[str, Any]:
    """What became of the validation rows."""
    if prepared is None:
        return {}
    rows = prepared.rows
    return {
        "validation_sources": rows["train_sources"],
        "validation": rows["train"],
        "fell_away": rows["fell_away"],
        "label_noise": rows["label_noise"],
    }
