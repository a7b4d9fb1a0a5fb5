"""R2M in a policy run: rewards that read the policy and learn with it, what the report says of them, and the figure of hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardproof.artifacts import RunDirectory
from rewardproof.errors import ConfigError
from rewardproof.evaluation import Evaluation, state_similarities
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.feedback import PolicyFeedback
from rewardproof.report import Section, format_interval, save_figure, similarity_figure
from rewardproof.scoring import PolicyFeedbackReward, Scorer
from rewardproof.stages.experts_page import shown


def following(scorers: Mapping[str, Scorer], feedback: PolicyFeedback, *, policy_width: int, seed: int) -> dict[str, PolicyFeedbackReward]:
    """Each reward model with an attention to the policy's states.

    Raises:
        ConfigError: A scorer is no single reward model.
    """
    found: dict[str, PolicyFeedbackReward] = {}
    for name, scorer in scorers.items():
        if not isinstance(scorer, RewardModel):
            raise ConfigError(
                f"Got {name} ({type(scorer).__name__}) as reward with `feedback`, expected a single reward model: its final state is what "
                "reads the policy, and an ensemble, a program or a server has none to offer. Name a reward model, or drop feedback."
            )
        found[name] = PolicyFeedbackReward(
            scorer, policy_width, feedback.attention, floor=feedback.floor, feedback=feedback.source, seed=seed + len(found)
        )
    return found


def proxies(scorers: Mapping[str, Scorer]) -> dict[str, Scorer]:
    """Who judges an evaluation, by column: scorers, and of one that follows the policy the reward model as it was given.

    What follows changes with schedule and learning, so that its numbers cannot be compared over a run; they are in `followed/…`.
    """
    found: dict[str, Scorer] = {}
    for name, scorer in scorers.items():
        found[f"proxy/{name}"] = scorer.as_given if isinstance(scorer, PolicyFeedbackReward) else scorer
        if isinstance(scorer, PolicyFeedbackReward):
            found[f"followed/{name}"] = scorer
    return found


def feedback_results(log: Path, scorers: Mapping[str, Scorer], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """For `report.json`: how the rewards followed the policy; empty where none did."""
    followers = {name: one for name, one in scorers.items() if isinstance(one, PolicyFeedbackReward)}
    if not followers:
        return {}
    records = [record for record in map(json.loads, log.read_text().splitlines()) if record["phase"] == "optimising"]
    keys = sorted({key for record in records for key in record if key.startswith("feedback/")})
    summed = {key for key in keys if key.endswith("/groups_without_a_pair")}
    told = {key: sum(record.get(key, 0.0) for record in records) if key in summed else records[-1].get(key) for key in keys}
    return {
        "feedback": {
            "parameters": {name: sum(one.numel() for one in follower.attention.parameters()) for name, follower in followers.items()},
            "at_last": {key.removeprefix("feedback/"): value for key, value in told.items() if key not in summed},
            "groups_without_a_pair": sum(told[key] for key in summed),
            "answers_scored_without_a_policy": sum(follower.without_policy for follower in followers.values()),
            "hidden_states": [one.as_dict() for one in state_similarities(evaluations)],
        }
    }


def feedback_sections(directory: RunDirectory, evaluations: Sequence[Evaluation]) -> list[Section]:
    """Similarity of hidden states, hacked answers against normal ones, where an evaluation has kept them."""
    if "states" not in evaluations[0].rows[0]:
        return []
    found = state_similarities(evaluations)
    if not found:
        return [Section("Hidden states", ("Nobody judged the answers, so none can be called hacked: give gold= to compare their states.",))]
    last = found[-1].similarity
    hacked, normal, across = (
        format_interval(one, percent=False) if one.n else "too few to say" for one in (last.marked, last.others, last.across)
    )
    text = (
        "Cosine similarity of the policy's final states, averaged over an answer's tokens; answers to one prompt are not compared. Hacked "
        "is the quarter of the answers for which the proxy promises most beyond gold.",
        f"At last, two hacked answers: {hacked}; two normal ones: {normal}; one of each: {across}. States can warn of hacking where the "
        "third is below both others.",
    )
    figure = save_figure(similarity_figure(found), directory.path, "hidden_states")
    return [Section("Hidden states", text, figures=(shown(figure, "Similarity of hidden states over the updates."),))]
