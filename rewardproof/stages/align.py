"""`rewardproof align RECIPE OUT`: optimise a policy against rewards, and watch what becomes of what is wanted.

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
from rewardproof.data.rules import Rule
from rewardproof.errors import ConfigError
from rewardproof.evaluation import EVALUATIONS, PolicyRuns, ProxyPoints, run_evaluations
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.precision import Precision, default_device, resolve_precision, weights_dtype
from rewardproof.models.saving import save_model
from rewardproof.models.upcycling import select_layers
from rewardproof.policy.checkpoints import load_loop, save_loop
from rewardproof.policy.constraints import Constraints
from rewardproof.policy.cooper import Cooper
from rewardproof.policy.evaluation import evaluate_policy
from rewardproof.policy.feedback import PolicyFeedback
from rewardproof.policy.meta_learning import MetaLearning
from rewardproof.policy.monitor import HackingMonitor, watched
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.redistribution import COUNTS, PREFIX, Redistributor, refuse_others
from rewardproof.policy.rewards import RewardSource, ScoredAnswers
from rewardproof.policy.rollouts import Prompt
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.settings import check as check_optimise
from rewardproof.policy.streams import Passes
from rewardproof.report import format_gain
from rewardproof.scoring import GIVEN, Scale, Scorer, load_scorer, stream_names
from rewardproof.stages import align_constraints
from rewardproof.stages.align_learning import (
    Learning,
    check_learning,
    learned_from,
    learning_results,
    learning_sections,
    rewards_that_learn,
)
from rewardproof.stages.align_prompts import Prompts, read_prompts, refuse_too_long
from rewardproof.training.checkpoints import latest_whole
from rewardproof.training.freezing import add_adapters, freeze_all_but
from rewardproof.training.processes import agreed, run_directory, start, wait

GOLD = "gold"


class Evaluations(Section):
    """How often, and on how much, the policy is judged."""

    every: Annotated[int, Field(ge=1)] = 10
    """Updates between two evaluations; the first is before any, the last after all."""
    prompts: Annotated[int, Field(ge=2)] = 32
    """Prompts, chosen by a hash of their text."""
    answers: Annotated[int, Field(ge=1)] = 4
    """Answers to each."""
    exact: bool = True
    """Measure the divergence over the whole vocabulary at every token of an answer: the same mean as the log-ratio of the answer, with far
    less noise, for one more pass of the heads."""
    states: bool = False
    """Keep the mean of the policy's final hidden states over each answer, and compare hacked answers with normal ones by them."""


class PolicyCompute(Section):
    """How the work is laid on the machine."""

    precision: Precision = "auto"
    """Of the policy's passes and of the reward models."""
    tokens_per_batch: Annotated[int, Field(ge=1)] = 4096
    """Token budget of one pass of the policy."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the saved weights."""
    save_every: Annotated[int, Field(ge=1)] = 20
    """Updates between two checkpoints."""


class Align(Section):
    """One policy run."""

    policy: str
    """The language model to optimise: a directory, a hub id, or `embedded:smollm2-135m`."""
    reward: Strings
    """Who rewards: reward models, ensembles, servers, `embedded:checkable`, or a family of its rules as `embedded:checkable/length`;
    several are streams of their own."""
    weights: tuple[float, ...] = ()
    """Of the streams; 1 each where left out."""
    gold: str = ""
    """Who judges the policy without its learning from it; none where empty."""
    prompts: Strings = ("embedded:checkable/train",)
    """Training prompts: files, folders, hub ids or `embedded:…`, in any format; answers in them are left aside."""
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
    """How."""
    feedback: PolicyFeedback | None = None
    """How the reward models read the policy's hidden states and learn with it (R2M); absent where they stay as they are."""
    constrained: Constraints | None = None
    """What the values of the rewards shall do beside or in place of rising (constrained RLHF); absent where they shall rise."""
    proxy_points: ProxyPoints | None = None
    """Earlier runs in which the thresholds of `constrained` are found; absent where it has them, or seeks them."""
    rule: Rule | None = None
    """Certifies answers as right or wrong, and gives prompts the reference that a verifier reads; absent where no reward reads one."""
    cooper: Cooper | None = None
    """How a verifier learns from right answers and broken copies of them; absent where it stays as it is."""
    metarm: MetaLearning | None = None
    """How the reward models are refreshed before each round; absent where they stay as they are."""
    evaluate: Evaluations = Evaluations()
    """How the policy is judged on the way."""
    compute: PolicyCompute = PolicyCompute()
    """Precision, budgets, checkpoints."""


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
        read = (config.policy, *config.reward, config.gold, *config.prompts, *config.eval_prompts, *learned_from(config))
        refuse_inputs_inside(out, read)
    if resume and (earlier := finished_report(out, config)) is not None:
        return earlier
    model, tokenizer = load_causal(config.policy)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    refuse_too_long(config, model)
    prompts = read_prompts(config, tokenizer)
    words = zip(stream_names(config.reward), config.reward, strict=True)
    scorers = {name: load_scorer(spec, precision=config.compute.precision) for name, spec in words}
    learning = rewards_that_learn(config, scorers, policy_width=model.config.hidden_size)
    refuse_others(config.optimise.redistribute, learning.scorers)
    gold = load_scorer(config.gold, precision=config.compute.precision) if config.gold else None
    directory = run_directory(out, config, overwrite=overwrite, resume=resume, started=started)
    directory.log({"phase": "data", **prompts.rows})
    course = _Course(config, directory, model, tokenizer, prompts, learning, gold)
    course.follow(resume=resume, progress=progress)
    if not is_main():
        wait()
        return Report(directory.path, "", {})
    dtype = weights_dtype(config.compute.save_dtype)
    learning.save(directory.path, dtype)
    save_model(course.delivered(), tokenizer, directory.path / "model", dtype=dtype)
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
            **learning_results(directory.path / LOG, learning, evaluations),
            **align_constraints.results(directory.path / LOG, course.points),
        },
    )
    sections = learning_sections(directory, learning, evaluations)
    sections += token_maps(learning.scorers, course.scales, [prompt.group for prompt in prompts.judged], evaluations)
    constraints = align_constraints.sections(directory, config, course.points)
    write_align_page(directory, config, runs, evaluations, report, constraints=constraints, more=sections)
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
    return told + f"proxy {format_gain(proxy, digits=2)} standard deviations, against the start"


def check_settings(config: Align) -> None:
    """Refuse combinations that cannot mean anything, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    if not config.reward:
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
    check_learning(config)
    align_constraints.check(config)


class _Course:
    """One run from its first evaluation to its last."""

    def __init__(
        self,
        config: Align,
        directory: RunDirectory,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        learning: Learning,
        gold: Scorer | None,
    ) -> None:
        self.config, self.directory, self.tokenizer, self.prompts = config, directory, tokenizer, prompts
        self.learning, self.scorers, self.gold = learning, dict(learning.scorers), gold
        self.points = align_constraints.proxy_points(config, [prompt.group for prompt in prompts.judged])
        self.passes = Passes(resolve_precision(config.compute.precision, model.device), config.compute.tokens_per_batch)
        layers = select_layers(config.optimise.layers, model.config.num_hidden_layers)
        if not len(layers):
            raise ConfigError(
                "optimise.layers=top:0: expected layers that train, since nothing else of a policy does; write top:1 or more."
            )
        torch.manual_seed(config.seed)
        self.adapters = add_adapters(model, layers, config.optimise.lora) if config.optimise.lora else None
        if self.adapters is None:
            freeze_all_but(model, layers)
        self.model = model
        heads = config.optimise.value_heads(len(self.scorers))
        self.policy = Policy(model, n_values=heads, first_layer=layers.start, temperature=config.optimise.temperature)
        self.reference = self.policy.frozen_copy()
        self.sampler = self.policy.sampler(self.passes.precision)
        self.scales: dict[str, Scale] = {}

    def follow(self, *, resume: bool, progress: Progress) -> None:
        """Judge, optimise, judge again."""
        settings, folder = self.config.optimise, self.directory.path / "checkpoints"
        self._measure_scales()
        loop = OnPolicyLoop(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            self.prompts.training,
            self._source(),
            settings,
            self.passes,
            seed=self.config.seed,
        )
        checkpoint = agreed(latest_whole(folder) if resume and is_main() else None)
        if checkpoint is not None:
            load_loop(loop, checkpoint)
            self._forget_beyond(loop.done)
        while loop.done < settings.steps:
            progress("optimising", loop.done, settings.steps)
            self.directory.log({"phase": "optimising", **loop.update()})
            if (trial := align_constraints.scored(loop.source, lambda: self._validated({GOLD: self.gold}, loop.done))) is not None:
                self.directory.log({"phase": "searching", "step": loop.done, **trial})
            if loop.done % self.config.evaluate.every == 0 or loop.done == settings.steps:
                self._judge(loop.done)
            if is_main() and loop.done % self.config.compute.save_every == 0:
                save_loop(loop, folder)
            wait()
        progress("optimising", settings.steps, settings.steps)

    def _source(self) -> RewardSource:
        """The scorers, which learn where the recipe says so."""
        settings = self.config.optimise
        scored = ScoredAnswers(
            self.scorers,
            align_constraints.units(self.config, self.scales),
            weights=self.config.weights,
            cut_penalty=settings.cut_penalty,
            limit=settings.reward_limit,
            redistributor=Redistributor(settings.redistribute, self.tokenizer) if settings.redistribute.share else None,
        )
        if self.config.constrained is not None:
            return align_constraints.source(self.config, scored, self.scales, self.points, lambda: self._validated(self.scorers, 0))
        return self.learning.source(scored)

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
        chosen = self.config.evaluate
        judges = self.learning.judges()
        if self.gold is not None:
            judges[GOLD] = self.gold
        rows = self._rows(self.prompts.judged, judges, step, answers=chosen.answers, exact=chosen.exact, states=chosen.states)
        if is_main():
            self.directory.write_text(f"{EVALUATIONS}/{file.name}", "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def _validated(self, judges: Mapping[str, Scorer | None], step: int) -> list[dict[str, Any]]:
        """Rows of the prompts that thresholds are sought on, which are neither those to learn on nor those of the evaluations."""
        assert self.config.constrained is not None
        assert self.config.constrained.search is not None
        known = {name: judge for name, judge in judges.items() if judge is not None}
        return self._rows(self.prompts.validation, known, step, answers=self.config.constrained.search.answers)

    def _rows(
        self, prompts: Sequence[Prompt], judges: Mapping[str, Scorer], step: int, *, answers: int, exact: bool = False, states: bool = False
    ) -> list[dict[str, Any]]:
        return evaluate_policy(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            prompts,
            judges,
            answers=answers,
            sampling=self.config.optimise.sampling(self.config.seed + 2**31),
            passes=self.passes,
            exact=exact,
            states=states,
            step=step,
            steps=self.config.optimise.steps,
        )
