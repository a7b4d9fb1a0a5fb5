"""R2M in a policy run: rewards that read the policy and learn with it, what the report says of them, and the figure of hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def feedback_results(scorers: Mapping[str, Scorer], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """For `report.json`: what R2M adds to what every reward that learns tells; empty where none reads the policy."""
    followers = {name: one for name, one in scorers.items() if isinstance(one, PolicyFeedbackReward)}
    if not followers:
        return {}
    return {
        "parameters": {name: sum(one.numel() for one in follower.attention.parameters()) for name, follower in followers.items()},
        "answers_scored_without_a_policy": sum(follower.without_policy for follower in followers.values()),
        "hidden_states": [one.as_dict() for one in state_similarities(evaluations)],
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
