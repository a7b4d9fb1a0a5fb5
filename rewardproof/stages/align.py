"""`rewardproof align RECIPE OUT`: optimise a policy, against rewards or by preferences, and watch what becomes of what is wanted.

The policy is judged, again and again, on prompts that it is not trained on: proxy, gold, divergence and length of the same answers, kept in
`evaluations/`, a file a step, so that curves can be drawn again without a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import (
    LOG,
    Progress,
    Report,
    RunDirectory,
    finished_report,
    is_main,
    refuse_inputs_inside,
    require_free,
    silent,
)
from rewardproof.config import Section, Strings
from rewardproof.errors import ConfigError
from rewardproof.evaluation import Evaluation, PolicyRuns, read_evaluation
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.precision import default_device, resolve_precision, weights_dtype
from rewardproof.models.saving import save_model
from rewardproof.models.upcycling import select_layers
from rewardproof.policy.checkpoints import load_loop, save_loop
from rewardproof.policy.direct_alignment import DirectAlignment
from rewardproof.policy.evaluation import evaluate_policy
from rewardproof.policy.feedback import LearningFeedback, PolicyFeedback, check_feedback
from rewardproof.policy.monitor import HackingMonitor, watched
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.redistribution import COUNTS, PREFIX, Redistributor, refuse_others
from rewardproof.policy.rewards import RewardSource, ScoredAnswers
from rewardproof.policy.settings import OnPolicy, Optimisation
from rewardproof.policy.settings import check as check_optimise
from rewardproof.policy.stepping import Loop
from rewardproof.policy.streams import Passes
from rewardproof.report import format_gain
from rewardproof.scoring import GIVEN, PolicyFeedbackReward, Scale, Scorer, load_scorer, stream_names
from rewardproof.stages.align_direct import check_exclusive, off_policy_loop, read_preferences, with_implicit_reward
from rewardproof.stages.align_feedback import feedback_results, following, proxies
from rewardproof.stages.align_prompts import Prompts, read_prompts, refuse_too_long
from rewardproof.stages.align_settings import Evaluations, PolicyCompute
from rewardproof.training.batches import TrainingGroup
from rewardproof.training.checkpoints import latest_whole
from rewardproof.training.freezing import add_adapters, freeze_all_but
from rewardproof.training.processes import agreed, run_directory, start, wait

EVALUATIONS = "evaluations"
GOLD = "gold"


class Align(Section):
    """One policy run."""

    policy: str
    """The language model to optimise: a directory, a hub id, or `embedded:smollm2-135m`."""
    reward: Strings = ()
    """Who rewards: reward models, ensembles, `embedded:checkable` or servers; several are streams of their own. With `direct` they only
    judge, and where there is none the policy's implicit reward does."""
    weights: tuple[float, ...] = ()
    """Of the streams; 1 each where left out."""
    gold: str = ""
    """Who judges the policy without its learning from it; none where empty."""
    prompts: Strings = ("embedded:checkable/train",)
    """Training prompts: files, folders, hub ids or `embedded:…`, in any format; answers in them are left aside, but for `direct`, which
    learns from their order."""
    eval_prompts: Strings = ()
    """Prompts to judge the policy on; where none are given, a fraction `split` of the training prompts."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the prompts held out; not used where `eval_prompts` is given."""
    split_seed: int = 0
    """Which of the possible splits."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longer prompts are left out and counted."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` takes plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop"] = "fail"
    """Stop at a row that is no prompt, or leave it out and count it."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the prompts' order and of sampling."""
    optimise: OnPolicy = OnPolicy()
    """How, on policy."""
    direct: DirectAlignment | None = None
    """How the policy learns from the answers that came with the training prompts (DPO, IPO, SLiC, RPO), in place of `optimise`; absent
    where it learns from rewards."""
    feedback: PolicyFeedback | None = None
    """How the reward models read the policy's hidden states and learn with it (R2M); absent where they stay as they are."""
    evaluate: Evaluations = Evaluations()
    """How the policy is judged on the way."""
    compute: PolicyCompute = PolicyCompute()
    """Precision, budgets, checkpoints."""

    @property
    def way(self) -> Optimisation:
        """How the policy is optimised, one way or the other."""
        return self.direct or self.optimise


def run(config: Align, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Report:
    """Optimise, judge on the way, and save the policy.

    Args:
        config: The resolved recipe.
        out: Run directory; `OUT/model` is the policy.
        overwrite: Delete an earlier run there.
        resume: Go on from the last checkpoint of an interrupted run.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; its headline compares the last evaluation with the first.

    Raises:
        ConfigError: Settings that cannot mean anything.
        DataError: Prompts that cannot be read, or too few of them.
        EvaluationError: A scorer gives no finite numbers, or the same one for all answers.
        TrainingError: The loss is no longer finite.
    """
    from rewardproof.stages.align_page import token_maps, write_align_page

    started = time.perf_counter()
    check_settings(config)
    start()
    if is_main():
        require_free(out, overwrite=overwrite, resume=resume)
        refuse_inputs_inside(out, (config.policy, *config.reward, config.gold, *config.prompts, *config.eval_prompts))
    if resume and (earlier := finished_report(out, config)) is not None:
        return earlier
    model, tokenizer = load_causal(config.policy)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    refuse_too_long(config, model)
    prompts = read_prompts(config, tokenizer)
    preferences = read_preferences(config, config.direct, tokenizer, prompts.rows) if config.direct else []
    words = zip(stream_names(config.reward), config.reward, strict=True)
    scorers = {name: load_scorer(spec, precision=config.compute.precision) for name, spec in words}
    if config.feedback is not None:
        scorers = following(scorers, config.feedback, policy_width=model.config.hidden_size, seed=config.seed)
    refuse_others(config.optimise.redistribute, scorers)
    gold = load_scorer(config.gold, precision=config.compute.precision) if config.gold else None
    directory = run_directory(out, config, overwrite=overwrite, resume=resume, started=started)
    directory.log({"phase": "data", **prompts.rows})
    course = _Course(config, directory, model, tokenizer, prompts, preferences, scorers, gold)
    course.follow(resume=resume, progress=progress)
    if not is_main():
        wait()
        return Report(directory.path, "", {})
    save_model(course.delivered(), tokenizer, directory.path / "model", dtype=weights_dtype(config.compute.save_dtype))
    evaluations = run_evaluations(directory.path)
    runs = PolicyRuns([evaluations], weights=config.weights, gold=GOLD if gold is not None else "")
    updates = [record for record in map(json.loads, (directory.path / LOG).read_text().splitlines()) if record["phase"] == "optimising"]
    report = directory.finish(
        _verdict(runs),
        {
            "rows": prompts.rows,
            "precision": resolve_precision(config.compute.precision, model.device),
            "scales": course.scales,
            "signs_without_gold": _signs(updates),
            **_redistributed(updates),
            "retries": sum(getattr(scorer, "retries", 0) for scorer in (*scorers.values(), gold)),
            "evaluations": runs.table(),
            "laws": {name: law.as_dict() for name, law in runs.laws(seed=config.seed).items()},
            **feedback_results(directory.path / LOG, scorers, evaluations),
        },
    )
    maps = token_maps(scorers, course.scales, [prompt.group for prompt in prompts.judged], evaluations)
    write_align_page(directory, config, runs, evaluations, report, maps)
    wait()
    return report


def _signs(updates: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Signs of hacking that need no gold, and the update at which each was first beyond its limit."""
    monitor, found = HackingMonitor(), dict[str, int]()
    for record in updates:
        for name in monitor.named(monitor.observe(watched(record))):
            found.setdefault(name, record["step"])
    return found


def _redistributed(updates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where rewards were spread over tokens, on how many of them nothing lies, and how many answers could not be followed."""
    found = [record for record in updates if PREFIX + COUNTS[0] in record]
    return {"redistribution": {name: sum(record[PREFIX + name] for record in found) for name in COUNTS}} if found else {}


def _verdict(runs: PolicyRuns) -> str:
    proxy, gold = runs.gain()
    told = f"after {runs.steps[-1]} updates, {runs.kl_SEP[:, -1].mean():.2f} nats away: "
    if gold is not None:
        told += f"gold {format_gain(gold)}, "
    return told + f"{runs.proxy_name} {format_gain(proxy, digits=2)} {runs.proxy_unit}, against the start"


def run_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of a run, by step."""
    return [read_evaluation(file) for file in sorted((folder / EVALUATIONS).glob("*.jsonl"))]


def check_settings(config: Align) -> None:
    """Refuse combinations that cannot mean anything, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    if config.direct is not None:
        check_exclusive(config, config.direct)
    elif not config.reward:
        raise ConfigError("Got no reward, expected a reward model or another scorer at least; write reward=runs/umm/model.")
    if config.weights and len(config.weights) != len(config.reward):
        raise ConfigError(
            f"weights has {len(config.weights)} entries for {len(config.reward)} rewards, expected one each; correct weights=."
        )
    if GIVEN in (*config.reward, config.gold):
        raise ConfigError(
            f"Got {GIVEN!r} as a scorer, expected one that reads answers: those that the policy writes have no scores yet. Name a reward "
            "model, embedded:checkable or a server."
        )
    check_optimise(config.optimise)
    if config.feedback is not None:
        check_feedback(config.feedback, config.optimise)


class _Course:
    """One run from its first evaluation to its last."""

    def __init__(
        self,
        config: Align,
        directory: RunDirectory,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        preferences: Sequence[TrainingGroup],
        scorers: Mapping[str, Scorer],
        gold: Scorer | None,
    ) -> None:
        self.config, self.directory, self.tokenizer, self.prompts = config, directory, tokenizer, prompts
        self.preferences, self.scorers, self.gold = preferences, dict(scorers), gold
        self.passes = Passes(resolve_precision(config.compute.precision, model.device), config.compute.tokens_per_batch)
        layers = select_layers(config.way.layers, model.config.num_hidden_layers)
        if not len(layers):
            raise ConfigError(
                f"{config.way.section}.layers=top:0: expected layers that train, since nothing else of a policy does; write top:1 or more."
            )
        torch.manual_seed(config.seed)
        self.adapters = add_adapters(model, layers, config.way.lora) if config.way.lora else None
        if self.adapters is None:
            freeze_all_but(model, layers)
        self.model = model
        heads = 0 if config.direct else config.optimise.value_heads(len(self.scorers))
        self.policy = Policy(model, n_values=heads, first_layer=layers.start, temperature=config.way.temperature)
        self.reference = self.policy.frozen_copy()
        self.sampler = self.policy.sampler(self.passes.precision)
        self.scales: dict[str, Scale] = {}

    def follow(self, *, resume: bool, progress: Progress) -> None:
        """Judge, optimise, judge again."""
        folder = self.directory.path / "checkpoints"
        self._measure_scales()
        loop = self._loop(folder, progress)
        checkpoint = agreed(latest_whole(folder) if resume and is_main() else None)
        if checkpoint is not None:
            load_loop(loop, checkpoint)
            self._forget_beyond(loop.done)
        while loop.done < loop.steps:
            progress("optimising", loop.done, loop.steps)
            self.directory.log({"phase": "optimising", **loop.update()})
            if loop.done % self.config.evaluate.every == 0 or loop.done == loop.steps:
                self._judge(loop.done)
            if is_main() and loop.done % self.config.compute.save_every == 0:
                save_loop(loop, folder)
            wait()
        progress("optimising", loop.steps, loop.steps)

    def _loop(self, folder: Path, progress: Progress) -> Loop:
        """The updates to come: on policy, or off policy from preferences."""
        config = self.config
        if config.direct is not None:
            return off_policy_loop(
                config, config.direct, self.policy, self.preferences, passes=self.passes, folder=folder, progress=progress
            )
        return OnPolicyLoop(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            self.prompts.training,
            self._source(),
            config.optimise,
            self.passes,
            seed=config.seed,
        )

    def _source(self) -> RewardSource:
        """The scorers, which learn where the recipe says so."""
        settings, feedback = self.config.optimise, self.config.feedback
        scored = ScoredAnswers(
            self.scorers,
            self.scales,
            weights=self.config.weights,
            cut_penalty=settings.cut_penalty,
            limit=settings.reward_limit,
            redistributor=Redistributor(settings.redistribute, self.tokenizer) if settings.redistribute.share else None,
        )
        if feedback is None:
            return scored
        followers = {name: one for name, one in self.scorers.items() if isinstance(one, PolicyFeedbackReward)}
        return LearningFeedback(scored, followers, feedback.learning, answers=settings.answers)

    def _forget_beyond(self, step: int) -> None:
        """Drop what the interrupted run found after its last checkpoint: it is found anew, on some machines not to the last bit."""
        for file in (self.directory.path / EVALUATIONS).glob("*.jsonl") if is_main() else ():
            if int(file.stem) > step:
                file.unlink()
        wait()

    def delivered(self) -> PreTrainedModel:
        """The policy's model, adapters folded in."""
        return self.model if self.adapters is None else self.adapters.merge_and_unload()

    def _measure_scales(self) -> None:
        """Judge the policy as it starts; a scorer's zero and unit are those of these answers, the same for every scorer."""
        rows = self._judge(0)
        self.scales = {name: Scale.of([row[f"proxy/{name}"] for row in rows], name=name) for name in self.scorers}

    def _judge(self, step: int) -> list[dict[str, Any]]:
        """Rows of `evaluations/STEP.jsonl`: read where an interrupted run has written them, else made."""
        file = self.directory.path / EVALUATIONS / f"{step:06d}.jsonl"
        if agreed(file.is_file()):
            return [json.loads(line) for line in file.read_text().splitlines()]
        chosen, direct = self.config.evaluate, self.config.direct
        judges = proxies(self.scorers)
        if self.gold is not None:
            judges[GOLD] = self.gold
        rows = evaluate_policy(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            self.prompts.judged,
            judges,
            answers=chosen.answers,
            sampling=self.config.way.sampling(self.config.seed + 2**31),
            passes=self.passes,
            exact=chosen.exact,
            states=chosen.states,
            step=step,
            steps=direct.updates(len(self.preferences)) if direct else self.config.optimise.steps,
        )
        if direct is not None and not self.scorers:
            rows = with_implicit_reward(rows, direct)
        if is_main():
            self.directory.write_text(f"{EVALUATIONS}/{file.name}", "".join(json.dumps(row) + "\n" for row in rows))
        return rows
