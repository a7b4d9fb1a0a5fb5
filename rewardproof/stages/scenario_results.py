"""What `evaluate` says of the four scenarios: accuracy in domain, rank agreement with the data's scores outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardproof.data import Group
from rewardproof.errors import EvaluationError
from rewardproof.evaluation import AccuracyReport, RankAgreement, pair_accuracy, rank_agreement
from rewardproof.report import Table, format_interval


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """Accuracy and rank agreement on one scenario; neither where the data orders no two answers of any of its groups."""

    accuracy: AccuracyReport | None
    ranks: RankAgreement | None


def judged(groups: Sequence[Group], rewards: Sequence[Sequence[float]]) -> ScenarioResult:
    """Judge the rewards of a scenario's groups."""
    if not any(group.scores is not None and len(set(group.scores)) > 1 for group in groups):
        return ScenarioResult(None, None)
    return ScenarioResult(pair_accuracy(groups, rewards), rank_agreement(groups, rewards))


def scenario_headline(results: Mapping[str, ScenarioResult]) -> str:
    """The numbers by which the scenarios are compared: accuracy in domain, Kendall's tau elsewhere.

    Raises:
        EvaluationError: No scenario has an order.
    """
    if all(result.accuracy is None for result in results.values()):
        raise EvaluationError(
            "None of the four scenarios has two answers to a prompt that the data orders, expected at least one: nothing can be judged. "
            "Check scenarios.unseen, and that scores differ."
        )
    in_domain = results["in_domain"].accuracy
    first = f"in-domain accuracy {format_interval(in_domain.overall)}" if in_domain else "no in-domain answers"
    ranks = {name: result.ranks for name, result in results.items() if name != "in_domain"}
    rest = [
        f"{name.replace('_', '-')} {format_interval(found.tau, percent=False) if found else 'no answers'}" for name, found in ranks.items()
    ]
    return f"{first}; mean Kendall tau: {', '.join(rest)}"


def scenario_table(results: Mapping[str, ScenarioResult]) -> Table:
    """One row a scenario; prompts on which tau is undefined are counted beside it."""
    rows = []
    for name, result in results.items():
        accuracy, ranks = result.accuracy, result.ranks
        if accuracy is None or ranks is None:
            rows.append((name.replace("_", "-"), "no answers that the data orders", None, None, None, None, None))
            continue
        tau = format_interval(ranks.tau, percent=False)
        counts = (ranks.n_prompts, ranks.constant_scores, ranks.constant_rewards, ranks.tied_pairs)
        rows.append((name.replace("_", "-"), format_interval(accuracy.overall), tau, *counts))
    columns = ("scenario", "pair accuracy", "mean Kendall tau", "prompts", "constant scores", "constant rewards (tau 0)", "tied pairs")
    return Table(columns, tuple(rows))
