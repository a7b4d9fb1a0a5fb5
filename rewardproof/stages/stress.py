"""`rewardproof stress MODEL… OUT gold=…`: optimise against each reward model, and see whether what is wanted rises along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent
from rewardproof.config import Strings, recipe_names
from rewardproof.errors import ConfigError
from rewardproof.models.precision import Precision
from rewardproof.scoring import method_names
from rewardproof.stages.align_settings import Evaluations
from rewardproof.stages.stress_best_of_n import best_of_n_stress
from rewardproof.stages.stress_policies import plan, policy_stress
from rewardproof.stages.stress_pools import PoolSettings, read_pools, sample_pools


class Stress(PoolSettings):
    """Reward models to optimise against, the answers to pick from, and who judges the picks."""

    models: Strings
    """Reward models or ensembles: directories or hub ids."""
    names: Strings = ()
    """What reports call each of them; models of one name are training seeds of one method. By default the run's directory, less a number at
    its end."""
    sample: Annotated[int, Field(ge=0)] = 0
    """Answers to sample from `policy` to each prompt of `pool`, in place of those it has; 0 takes those."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens after which a sampled answer is cut."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which answers are sampled."""
    methods: Strings = ("bon",)
    """How to optimise: `bon`, best of n; `ppo`, `rloo`, `grpo`, `dpo` or another recipe of `align`, a policy by that recipe."""
    layers: str = "all"
    """Layers in which the models differ, as they were trained (`all`, or `top:K`): those below are computed once for all."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for the activations of the layers below; 0 runs every model whole."""
    precision: Precision = "auto"
    """Of the models' forward passes."""
    policy: str = "embedded:smollm2-135m"
    """The language model that policies start from, and that `sample` samples from."""
    policy_prompts: Strings = ("embedded:checkable/train",)
    """Prompts that policies learn on and, others of them, are judged on."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Policy runs against each model."""
    kl: Annotated[float, Field(ge=0)] | None = None
    """Weight of the divergence from the policy's start, on policy; by default the recipe's."""
    optimise: dict[str, Any] = {}
    """Changes to the recipes' `optimise` section."""
    direct: dict[str, Any] = {}
    """Changes to the `direct` section of recipes that learn from preferences: the answers to `policy_prompts`, whatever the model, which
    then only judges."""
    align: dict[str, dict[str, Any]] = {}
    """By recipe, what it alone is given: any settings of `align`, as `align.metarm.metarm.data=prefs.jsonl`; `$MODEL` is the
    model under stress, as in `align.mu_ppo.reward=$MODEL,embedded:checkable/length align.mu_ppo.constrained.thresholds.$MODEL=1`."""
    evaluate: Evaluations = Evaluations()
    """How policies are judged on the way; what is not said is the recipe's."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the resampling behind the law's ranges, and of the first policy run."""


def run(config: Stress, out: Path | str, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Report:
    """Optimise against every model in every way that is asked for, and judge what comes out.

    Args:
        config: Models, ways and gold.
        out: Run directory: `scores/` has every score of best of n, `policies/` every policy run, `report.html` the curves.
        overwrite: Delete an earlier run there.
        resume: Go on where an interrupted run stopped.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; its headline compares gold at the end of each way.

    Raises:
        ConfigError: Names or methods that mean nothing.
        DataError: Pools or prompts that cannot be read, or too few.
        EvaluationError: A score is not finite, or a model gives all answers the same one.
    """
    from rewardproof.stages.stress_page import write_stress_page

    names = _places(config)
    plans = {method: plan(config, method) for method in config.methods if method != "bon"}
    require_free(out, overwrite=overwrite, resume=resume)
    refuse_inputs_inside(out, [*config.models, *config.pool, *config.policy_prompts, config.policy, config.gold])
    pools = read_pools(config, sample=config.sample) if "bon" in config.methods else None
    directory = RunDirectory(out, config, overwrite=overwrite, resume=resume)
    if pools is not None and config.sample:
        pools = sample_pools(config, pools, directory, progress)
    picks = None if pools is None else best_of_n_stress(config, pools, names, directory, progress)
    policies = {method: policy_stress(method, runs, names, directory, progress) for method, runs in plans.items()}
    told = ([picks.verdict()] if picks else []) + [one.verdict() for one in policies.values()]
    results = (picks.results() if picks else {}) | {"policies": {method: one.results() for method, one in policies.items()}}
    report = directory.finish("; ".join(told), results)
    write_stress_page(directory, config, picks, policies, report.headline)
    return report


def _places(config: Stress) -> dict[str, list[int]]:
    """Places of the models of each method, in order of appearance."""
    known = ("bon", *recipe_names("align"))
    if unknown := [name for name in config.methods if name not in known]:
        raise ConfigError(f"methods={','.join(unknown)}: expected some of {', '.join(known)}: best of n, and policy recipes; correct it.")
    if stray := [name for name in config.align if name not in config.methods or name == "bon"]:
        raise ConfigError(f"align.{stray[0]}: expected the name of a policy recipe among methods={','.join(config.methods)}; correct it.")
    if not config.methods:
        raise ConfigError("methods is empty, expected a way to optimise at least; write methods=bon.")
    if config.names and len(config.names) != len(config.models):
        raise ConfigError(f"names has {len(config.names)} entries for {len(config.models)} models, expected one each; correct names=.")
    names = list(config.names) or method_names(config.models)
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places
