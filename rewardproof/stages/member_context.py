"""What the parts of a training run share: its settings and data, how a part is trained, and what is kept of a finished one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Progress, RunDirectory
from rewardproof.models.families import family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import first_differing, select_layers
from rewardproof.stages.policy_head import policy_callbacks, policy_terms
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.contrast import contrast_terms
from rewardproof.training.factor_divergence import FactorDivergence
from rewardproof.training.fit import Fit, fit
from rewardproof.training.language_term import ChosenLanguage
from rewardproof.training.pointwise import Pointwise
from rewardproof.training.preparation import Prepared

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

SUMMARY = "summary.json"
"""What is to be reported of a finished part of a member, kept beside its checkpoints."""


@dataclass(frozen=True, slots=True)
class MemberContext:
    """What all members of a run share."""

    config: Train
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    directory: RunDirectory
    resume: bool
    progress: Progress

    def reward_model(self, model: PreTrainedModel) -> RewardModel:
        """The model ready to score, its frozen layers' activations shared with the run's other models."""
        compute = self.config.compute
        wrapped = RewardModel(model, self.tokenizer, precision=compute.precision, tokens_per_batch=compute.tokens_per_batch)
        first = first_differing(self.config.layers, len(family_of(model).layer_list(model)))
        return wrapped.share_trunk(first, limit_gb=compute.trunk_cache_gb)

    def folder(self, number: int) -> Path:
        """Where a member keeps its own files: the run directory itself where there is only one."""
        return self.directory.path if self.config.members == 1 else self.directory.path / "members" / str(number)

    def head_seed(self, seed: int) -> int:
        """Seed of a member's head: members that judge together each have their own, weights that are averaged have to belong to one."""
        return self.config.seed if self.config.ensemble is None else seed

    def plan(self, model: PreTrainedModel, folder: Path, seed: int, what: str) -> Fit:
        """How the run trains a model, `what` by name, with its checkpoints in `folder`."""
        config = self.config
        has_head = config.factors is not None or (what == "mixture" and config.start == "rm")
        head = config.head.model_copy(update={"init": "keep"}) if has_head else config.head
        return Fit(
            model=model,
            train=self.prepared.train,
            held_out=self.prepared.held_out_set,
            layers=select_layers(config.layers, len(family_of(model).layer_list(model))),
            folder=folder,
            seed=seed,
            trainer=config.trainer,
            loss=config.loss,
            compute=config.compute,
            head=head,
            head_seed=self.head_seed(seed),
            router_learning_rate=config.upcycle.router_learning_rate if config.upcycle else 0.0,
            expert_learning_rate=config.upcycle.expert_learning_rate if config.upcycle else 0.0,
            lora=config.lora,
            callbacks=lambda module: policy_callbacks(config, module),
            judged=self.prepared.held_out_tokens if config.policy_loss else (),
            auxiliaries=lambda model: self.terms(model, seed),
            resume=self.resume,
            record=lambda entry: self.directory.log({"phase": what, "seed": seed, **entry}),
            progress=self.progress,
            what=what,
            look_at_states=True,
        )

    def terms(self, model: PreTrainedModel, seed: int) -> list[AuxiliaryTerm]:
        """The terms of the objective that the settings ask for beside the pairs' loss, made for the model that trains."""
        config = self.config
        terms = [*contrast_terms(config.contrast, config.loss, seed)(model), *policy_terms(self, model)]
        if config.rule is not None:
            terms.append(Pointwise())
        if config.factors is not None:
            terms.append(FactorDivergence(model, config.factors))
        if config.loss.language:
            terms.append(ChosenLanguage(model, config.model, weight=config.loss.language, beta=config.loss.language_beta))
        return terms

    def remember(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """Keep what is to be reported of a finished part beside its checkpoints, for a run that goes on from that part."""
        self.directory.write_json(str((folder / "checkpoints" / SUMMARY).relative_to(self.directory.path)), summary)


@dataclass(slots=True)
class Member:
    """A trained member: its model, and what to report of it."""

    model: PreTrainedModel
    summary: dict[str, Any] = field(default_factory=dict)


def fitted(plan: Fit) -> dict[str, Any]:
    """Train a model in place, and what is to be reported of that."""
    result = fit(plan)
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "trainable_parameters": result.trainable_parameters,
        "tokens": result.tokens,
        "tflops": float(f"{result.tflops:.4g}"),
        "last": dict(result.last),
        **result.found,
        "states": {when: asdict(found) for when, found in result.states.items()},
        **({} if result.best_step is None else {"best_step": result.best_step}),
    }


def remembered(folder: Path) -> dict[str, Any]:
    """What was kept of a finished part; empty where there is none."""
    file = folder / "checkpoints" / SUMMARY
    return json.loads(file.read_text()) if file.is_file() else {}
