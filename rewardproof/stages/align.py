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

from pydantic import Field

from rewardproof.artifacts import (
    LOG,
    Progress,
    Report,
    finished_report,
    is_main,
    refuse_inputs_inside,
    require_free,
    silent,
)
from rewardproof.config import Floats, Section, Strings
from rewardproof.data.rules import Rule
from rewardproof.errors import ConfigError
from rewardproof.evaluation import PolicyRuns, ProxyPoints, run_evaluations
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.precision import default_device, resolve_precision, weights_dtype
from rewardproof.models.saving import save_model
from rewardproof.policy.constraints import Constraints
from rewardproof.policy.cooper import Cooper
from rewardproof.policy.direct_alignment import DirectAlignment
from rewardproof.policy.feedback import PolicyFeedback
from rewardproof.policy.meta_learning import MetaLearning
from rewardproof.policy.monitor import HackingMonitor, watched
from rewardproof.policy.redistribution import COUNTS, PREFIX, refuse_others
from rewardproof.policy.settings import OnPolicy, Optimisation
from rewardproof.policy.settings import check as check_optimise
from rewardproof.report import format_gain
from rewardproof.scoring import GIVEN, RetryCount, load_scorer, stream_names
from rewardproof.stages import align_constraints
from rewardproof.stages.align_course import GOLD, PolicyCourse
from rewardproof.stages.align_direct import check_exclusive, read_preferences
from rewardproof.stages.align_learning import (
    check_learning,
    learned_from,
    learning_results,
    learning_sections,
    rewards_that_learn,
)
from rewardproof.stages.align_prompts import read_prompts, refuse_too_long
from rewardproof.stages.align_settings import Evaluations, PolicyCompute
from rewardproof.training.processes import run_directory, start, wait


class Align(Section):
    """One policy run."""

    policy: str
    """The language model to optimise: a directory, a hub id, or `embedded:smollm2-135m`."""
    reward: Strings = ()
    """Who rewards: reward models, ensembles, servers, `embedded:checkable`, or a family of its rules as `embedded:checkable/length`;
    several are streams of their own. With `direct` they only judge, and where there is none the policy's implicit reward does."""
    weights: Floats = ()
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
        read = (config.policy, *config.reward, config.gold, *config.prompts, *config.eval_prompts, *learned_from(config))
        refuse_inputs_inside(out, read)
    if resume and (earlier := finished_report(out, config)) is not None:
        return earlier
    model, tokenizer = load_causal(config.policy)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    refuse_too_long(config, model)
    prompts = read_prompts(config, tokenizer)
    preferences = read_preferences(config, config.direct, tokenizer, prompts.rows) if config.direct else []
    words = zip(stream_names(config.reward), config.reward, strict=True)
    scorers = {name: load_scorer(spec, precision=config.compute.precision) for name, spec in words}
    learning = rewards_that_learn(config, scorers, policy_width=model.config.hidden_size)
    refuse_others(config.optimise.redistribute, learning.scorers)
    gold = load_scorer(config.gold, precision=config.compute.precision) if config.gold else None
    directory = run_directory(out, config, overwrite=overwrite, resume=resume, started=started)
    directory.log({"phase": "data", **prompts.rows})
    course = PolicyCourse(config, directory, model, tokenizer, prompts, preferences, learning, gold)
    retries = RetryCount(directory, "retries", [*scorers.values(), gold])
    with retries.following(progress) as told:
        course.follow(resume=resume, progress=told)
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
            "retries": retries.keep(),
            "evaluations": runs.table(),
            "laws": {name: law.as_dict() for name, law in runs.laws(seed=config.seed).items()},
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
    return told + f"{runs.proxy_name} {format_gain(proxy, digits=2)} {runs.proxy_unit}, against the start"


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
    check_learning(config)
    align_constraints.check(config)
