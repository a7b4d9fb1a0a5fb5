"""`rewardproof train RECIPE OUT`: preferences in, a reward model out.

A recipe says by its sections what happens: `upcycle` makes a mixture, `merge` folds it back, `members` trains several models and averages
their weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import Progress, Report, finished_report, is_main, refuse_inputs_inside, require_free, silent
from rewardproof.config import Section, Strings
from rewardproof.data import Scenarios
from rewardproof.data.capability_labels import Labels
from rewardproof.data.rules import Rule
from rewardproof.errors import ConfigError
from rewardproof.evaluation import pair_accuracy, pair_outcomes
from rewardproof.merging.experts import Merge
from rewardproof.models.checkpoints import EXPERTS_FILE, load_tokenizer
from rewardproof.models.factor_head import Factors
from rewardproof.models.heads import Head
from rewardproof.models.precision import resolve_precision
from rewardproof.models.upcycling import Upcycle, check
from rewardproof.report import format_interval
from rewardproof.scoring import Combine
from rewardproof.stages.activation import Activation, check_activation, make_activation
from rewardproof.stages.capability_settings import check_capabilities
from rewardproof.stages.delivery import deliver, save_delivered, save_scale
from rewardproof.stages.domain import Domain, check_domain
from rewardproof.stages.double_mixture import train_double_mixture
from rewardproof.stages.member_context import MemberContext
from rewardproof.stages.members import drop_checkpoints, train_member
from rewardproof.stages.policy_head import check_policy_loss
from rewardproof.stages.reform import Reform, check_reform, reform_headline, train_corrected
from rewardproof.stages.strength_origin import warn_of_held_out_judges
from rewardproof.stages.training_report import CHUNK, scored, write_training_report
from rewardproof.stages.verifier import check_rule, verdict_accuracy, verdict_headline
from rewardproof.training.arguments import check_trainer_keys
from rewardproof.training.contrast import Contrast
from rewardproof.training.double_mixture import Capabilities
from rewardproof.training.fit import Compute
from rewardproof.training.objective import Loss, check_loss
from rewardproof.training.policy_loss import PolicyLoss
from rewardproof.training.preparation import Prepared, Read, Sources, prepare, refuse_ignored_margins
from rewardproof.training.processes import run_directory, start, wait


class Train(Section):
    """One training run, from preference data to a delivered reward model."""

    model: str
    """The language model to start from: a directory, a hub id, or `embedded:smollm2-135m`."""
    data: Strings
    """Training preferences: files, folders, hub ids or `embedded:…`."""
    eval_data: Strings = ()
    """Evaluation preferences; where none are given, a fraction `split` of the training prompts is held out."""
    split: float = 0.2
    """Fraction of prompts held out, by a hash of the prompt's text; not used where `eval_data` is given."""
    split_seed: int = 0
    """Which of the possible splits; 0 is the one that all runs share by default."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of data order, head and routers; a second member takes the next number."""
    members: int = 1
    """Models to train, and to average (WARM) or join in an ensemble."""
    reuse: Strings = ()
    """Reward models already trained with these settings, taken as the first members."""
    start: Literal["sft", "rm"] = "sft"
    """Upcycle the language model itself, or a dense reward model trained from it first."""
    depth: Annotated[int, Field(ge=0)] = 0
    """Layers of the language model that are kept, from the embeddings up; 0 keeps all."""
    layers: str = "all"
    """Layers that train: `all`, or `top:K` for the K nearest the head."""
    max_length: int = 2048
    """Longest conversation, in tokens."""
    lora: dict[str, Any] = {}
    """Settings for peft's `LoraConfig`; empty trains the weights themselves."""
    trainer: dict[str, Any] = {}
    """Settings for transformers' `TrainingArguments`; a step is `per_device_train_batch_size` groups."""
    read: Read = Read()
    """How the data is read."""
    scenarios: Scenarios | None = None
    """Train on some prompts and some answers' sources alone, so that `evaluate` with the same keys can judge by the others; absent
    elsewhere."""
    head: Head = Head()
    """How the reward head starts and learns."""
    loss: Loss = Loss()
    """The objective."""
    policy_loss: PolicyLoss | None = None
    """What the language model's head learns of the same pairs; absent where the reward head trains alone."""
    factors: Factors | None = None
    """The head as non-negative factors; absent where it is linear."""
    upcycle: Upcycle | None = None
    """How dense blocks become mixtures; absent in dense recipes."""
    contrast: Contrast | None = None
    """A contrastive term beside the loss of pairs; absent where there is none."""
    ensemble: Combine | None = None
    """How members judge together; absent where they are averaged into one model."""
    rule: Rule | None = None
    """Labels answers right or wrong by a program: the model reads a reference with the prompt and learns these verdicts (VerifyRM); absent
    where it learns preferences."""
    merge: Merge | None = None
    """How experts are folded back; absent where the mixture itself is delivered."""
    domain: Domain | None = None
    """What language model the trained model is averaged with; absent where it is delivered as it was trained."""
    labels: Labels | None = None
    """Where categories and capabilities come from; absent in recipes that need none."""
    capabilities: Capabilities | None = None
    """Experts by capability behind a router over categories (DMoERM); absent where one model judges all."""
    reform: Reform | None = None
    """How the model is searched for failures and trained again on them (REFORM); absent where it is trained once."""
    activation: Activation | None = None
    """A scorer by the language model's own heads, made of few examples (activation reward model); absent where a model trains."""
    compute: Compute = Compute()
    """Precision, budgets, cache."""


def check_settings(config: Train) -> None:
    """Refuse combinations that cannot mean anything, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    if config.merge is not None and config.upcycle is None:
        raise ConfigError(
            "Got `merge` without `upcycle`, expected both: a dense model has no experts to merge. Use recipe umm, or drop merge."
        )
    if config.upcycle is not None:
        check(config.upcycle)
    if config.domain is not None:
        check_domain(config.domain)
        if config.reuse or (config.upcycle is not None and config.merge is None):
            raise ConfigError(
                "Got `domain` with `reuse` or with experts that stay unmerged, expected a dense model trained here: only such a one is "
                "averaged with a language model. Add a merge section, or merge the model by hand: rewardproof merge MODEL LM OUT "
                "method=domain."
            )
    if config.members < 1:
        raise ConfigError(f"members={config.members}: expected 1 or more, since a run delivers a model; write members=1.")
    if config.ensemble is not None and config.members < 2:
        raise ConfigError(f"members={config.members} with `ensemble`: expected 2 or more to disagree; write members=4, or drop ensemble.")
    if config.members > 1 and config.upcycle is not None and config.merge is None:
        raise ConfigError(f"members={config.members} with unmerged experts: only dense models can be averaged; add a merge section.")
    if len(config.reuse) > config.members:
        raise ConfigError(f"reuse names {len(config.reuse)} models but members={config.members}; raise members or name fewer.")
    if config.lora and config.upcycle is not None:
        raise ConfigError(
            "Got `lora` with `upcycle`: adapters would train no expert. Write upcycle.experts=lora:R for low-rank experts instead."
        )
    if config.layers == "top:0" and (config.lora or config.upcycle is not None):
        raise ConfigError(
            "layers=top:0 trains the head alone, expected layers for `lora` or `upcycle` to change; write layers=top:1 or more."
        )
    if config.start == "rm" and config.upcycle is None:
        raise ConfigError("start=rm says what to upcycle, but nothing is upcycled; drop it, or use a recipe with an upcycle section.")
    if config.layers == "top:0" and config.contrast is not None:
        raise ConfigError(
            "layers=top:0 trains the head alone, expected layers for `contrast` to change: it moves features. Write layers=top:1 or more."
        )
    if config.loss.margin != "data":
        refuse_ignored_margins(config.read, key="read", advice="write loss.margin=data, or ")
    check_policy_loss(config)
    if config.factors is not None and config.upcycle is not None:
        raise ConfigError(
            "Got `factors` with `upcycle`, expected one of them: experts are merged into a model that stock loaders read, and none reads a "
            "head of factors. Drop one."
        )
    if config.factors is not None and config.head.init in ("normal", "probe"):
        raise ConfigError(
            f"Got head.init={config.head.init} with `factors`, expected it unset: it starts a linear head. Drop it, or set "
            "factors.dictionary_init."
        )
    for spec in config.reuse:
        if (Path(spec) / EXPERTS_FILE).exists():
            raise ConfigError(f"reuse={spec} is a mixture, expected dense models: only those can be averaged. Merge it first.")
    check_capabilities(config)
    check_rule(config)
    check_reform(config)
    check_activation(config)
    check_trainer_keys(config.trainer)
    check_loss(config.loss, zero_head=config.head.init == "zero")
    if config.read.strength.treatment != "none" and config.split and not config.eval_data:
        warn_of_held_out_judges(config.data, split=config.split, split_seed=config.split_seed)
    limited = config.read.max_groups or config.read.share != (0.0, 1.0)
    if config.scenarios is not None and (config.eval_data or limited):
        raise ConfigError(
            "Got `scenarios` with eval_data, read.share or read.max_groups, expected none of them: `evaluate` cuts the same data by the "
            "same keys, and would take prompts for seen ones that were not. Drop them; scenarios.max_prompts limits the prompts of both."
        )
    if not config.eval_data and not 0 <= config.split < 1:
        raise ConfigError(
            f"split={config.split}: expected a fraction from 0 up to but not including 1, so that something trains; write split=0.2."
        )


def prepared_for(config: Train, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """The data of a training run, in the parts that it trains on, learns coefficients on and is judged by.

    Raises:
        DataError: As `prepare`.
        ConfigError: The objective asks for margins and the data has none.
    """
    held_out = config.merge.held_out if config.merge and config.merge.method == "learned" else 0.0
    validate = config.domain.validate_on if config.domain else None
    experts = config.capabilities
    sources = Sources(
        config.data,
        config.eval_data,
        config.split,
        held_out,
        config.read,
        config.max_length,
        config.split_seed,
        validate,
        config.scenarios,
        reads=experts.reads if experts else "reference" if config.rule else "conversation",
        queries=experts is not None,
        rule=config.rule,
    )
    prepared = prepare(sources, tokenizer)
    if config.loss.margin == "data" and not any(pair.margin for entry in prepared.train.groups for pair in entry.pairs):
        raise ConfigError(
            "loss.margin=data, but no training pair has a margin; add a `margin` column to the data, or write loss.margin=none."
        )
    return prepared


def run(config: Train, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Report:
    """Train, merge, evaluate on held-out prompts and save.

    Args:
        config: The resolved recipe.
        out: Run directory; `OUT/model` is the deliverable, `OUT/moe` the unmerged mixture.
        overwrite: Delete an earlier run there.
        resume: Go on from what an interrupted run left.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; its headline is the held-out pair accuracy.
    """
    check_settings(config)
    started = time.perf_counter()
    start()
    if is_main():
        require_free(out, overwrite=overwrite, resume=resume)
        more = (config.domain.model, *config.domain.data) if config.domain else ()
        refuse_inputs_inside(out, (config.model, *config.reuse, *config.data, *config.eval_data, *more))
    if resume and (earlier := finished_report(out, config)) is not None:
        if is_main():
            drop_checkpoints(earlier.path)
        return earlier
    tokenizer = load_tokenizer(config.model)
    prepared = prepared_for(config, tokenizer)
    directory = run_directory(out, config, overwrite=overwrite, resume=resume, started=started)
    directory.log({"phase": "data", **prepared.rows})
    context = MemberContext(config, prepared, tokenizer, directory, resume, progress)
    if config.activation is not None:
        member, delivered = make_activation(context)
        members = [member]
    elif config.capabilities is None:
        members = [train_corrected(context)] if config.reform else [train_member(context, number) for number in range(config.members)]
        delivered = deliver(context, members)
    else:
        member, delivered = train_double_mixture(context)
        members = [member]
    if is_main():
        save_delivered(context, delivered)
    groups = prepared.held_out_tokens or [entry.group for entry in prepared.train.groups[:CHUNK]]
    if config.activation is not None:
        groups = delivered.encode(prepared.held_out or prepared.training[:CHUNK])[0]
    rewards = scored(delivered, groups, progress)
    accuracy = pair_accuracy(prepared.held_out, rewards) if prepared.held_out_has_order else None
    verdicts = verdict_accuracy(prepared.held_out, rewards) if config.rule and prepared.held_out else {}
    if accuracy:
        directory.write_json("held_out.json", pair_outcomes(prepared.held_out, rewards))
    if is_main():
        save_scale(context, delivered, rewards)
    results: Mapping[str, Any] = {
        "rows": prepared.rows,
        "precision": resolve_precision(config.compute.precision, members[0].model.device),
        "parameters": delivered.parameters,
        "members": [member.summary for member in members],
        "accuracy": accuracy.as_dict() if accuracy else None,
        **verdicts,
    }
    shown = f"held-out accuracy {format_interval(accuracy.overall)} on {accuracy.n_pairs} pairs" if accuracy else "nothing was held out"
    baseline = f" (longer answer wins: {format_interval(accuracy.length_only)})" if accuracy else ""
    learned = verdict_headline(verdicts) + reform_headline(members[0].summary)
    report = directory.finish(learned + shown + baseline, results)
    wait()
    if is_main():
        write_training_report(directory, report, accuracy, members)
        drop_checkpoints(directory.path)
    return report
