"""Direct alignment in a policy run: the preferences that it learns from, the loop that it runs, and what reports say of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import LOG, Progress, RunDirectory
from rewardproof.errors import ConfigError
from rewardproof.evaluation import IMPLICIT, Evaluation
from rewardproof.policy.baselines import with_sampled_answers
from rewardproof.policy.direct_alignment import DirectAlignment, check_direct
from rewardproof.policy.off_policy import OffPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.report import Section, Table
from rewardproof.training.batches import Collator, TrainingGroup, refuse_too_long
from rewardproof.training.preparation import Sources, prepare
from rewardproof.training.reference import FILE
from rewardproof.training.stored_trunk import stored_trunk

if TYPE_CHECKING:
    from rewardproof.stages.align import Align

SHOWN = {
    "loss": "loss",
    "implicit/accuracy": "implicit accuracy",
    "implicit/gap": "gap",
    "implicit/chosen": "of the preferred",
    "implicit/rejected": "of the others",
}
"""What of the log's records the page shows, and what it calls it."""
BASELINE_SEED = 2**30
"""Added to a run's seed for the baseline's samples, so that they are not those that the run is judged on."""


def check_exclusive(config: Align, direct: DirectAlignment) -> None:
    """Refuse what means nothing where the policy learns from preferences alone.

    Raises:
        ConfigError: Names the keys.
    """
    names = ("optimise", "feedback", "cooper", "metarm", "constrained", "proxy_points")
    on_policy = [name for name in names if getattr(config, name) not in (OnPolicy(), None)]
    if on_policy:
        raise ConfigError(
            f"Got {' and '.join(on_policy)} with direct, expected one way to optimise: direct alignment samples nothing and follows no "
            "reward. Drop one of them; layers, lora, rates and lengths of answers are keys of direct too."
        )
    check_direct(direct)


def read_preferences(
    config: Align, direct: DirectAlignment, tokenizer: PreTrainedTokenizerBase, rows: dict[str, Any]
) -> list[TrainingGroup]:
    """What the training prompts' answers say, on the side of the split that is not judged; counts go to `rows`.

    Raises:
        DataError: Rows that are no preferences, or none that are ordered.
    """
    read = direct.read.model_copy(update={"format": config.format, "text": config.text})
    split = 0.0 if config.eval_prompts else config.split
    prepared = prepare(Sources(config.prompts, (), split, 0.0, read, direct.max_length, config.split_seed), tokenizer)
    rows["preferences"] = {name: prepared.rows[name] for name in ("train_sources", "train", "fell_away", "label_noise")}
    return prepared.train.groups


def off_policy_loop(
    config: Align,
    direct: DirectAlignment,
    policy: Policy,
    preferences: Sequence[TrainingGroup],
    *,
    passes: Passes,
    folder: Path,
    progress: Progress,
) -> OffPolicyLoop:
    """The loop, its reference asked and the frozen layers' output stored, or taken from where an interrupted run has left them.

    Raises:
        ConfigError: Conversations that the policy has no positions for, or fewer than one update takes.
    """
    groups = list(preferences)
    refuse_too_long(policy.model, [entry.group for entry in groups], section="direct.")
    if direct.baseline == "sampled":
        progress("baseline answers", 0, len(groups))
        groups = with_sampled_answers(policy.sampler(passes.precision).model, groups, direct.sampling(config.seed + BASELINE_SEED))
        refuse_too_long(policy.model, [entry.group for entry in groups], section="direct.")
    cache = None
    if policy.trunk is not None and config.compute.trunk_cache_gb:
        cache = stored_trunk(
            policy.model,
            policy.first_layer,
            [entry.group for entry in groups],
            precision=passes.precision,
            limit_gb=config.compute.trunk_cache_gb,
            tokens_per_batch=passes.tokens_per_batch,
            progress=lambda done, total: progress("frozen layers", done, total),
        )
    collator = Collator(tokens_per_batch=passes.tokens_per_batch, cache=cache)
    loop = OffPolicyLoop(policy, groups, direct, collator, precision=passes.precision, seed=config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    loop.ask_reference(folder / FILE, progress=lambda done, total: progress("reference log-probabilities", done, total))
    return loop


def with_implicit_reward(rows: list[dict[str, Any]], direct: DirectAlignment) -> list[dict[str, Any]]:
    """Rows of an evaluation with the reward that the policy itself stands for, β times each answer's log-ratio to the reference."""
    return [{**row, IMPLICIT: [direct.beta * value for value in row["kl"]]} for row in rows]


def direct_section(directory: RunDirectory, evaluations: Sequence[Evaluation]) -> Section:
    """What the preferences taught, at the updates after which the policy was judged: means over the prompts of the update."""
    records = map(json.loads, (directory.path / LOG).read_text().splitlines())
    met = {record["step"]: record for record in records if record["phase"] == "optimising"}
    rows = tuple(
        (one.step, *(f"{met[one.step][name]:.3f}" for name in SHOWN), f"{_explained_by_length(one):.2f}")
        for one in evaluations
        if one.step in met
    )
    text = (
        "An implicit reward is β times an answer's log-ratio to the initial policy. That of preferred answers falls too where the policy "
        "leaves the data, and how well implicit rewards order answers does not say how good the policy's own are. Last: the share of the "
        "variance of log-ratios over the policy's own answers that their length explains.",
    )
    return Section("What the preferences taught", text, Table(("update", *SHOWN.values(), "R² of length"), rows))


def _explained_by_length(evaluation: Evaluation) -> float:
    ratio, tokens = evaluation.table("kl").ravel(), evaluation.table("tokens").ravel()
    return float(np.corrcoef(ratio, tokens)[0, 1] ** 2) if ratio.std() > 0 and tokens.std() > 0 else 0.0
