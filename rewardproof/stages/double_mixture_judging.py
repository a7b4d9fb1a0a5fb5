"""What a DMoERM's parts are worth on held-out prompts: the router, each category's first model, each expert on its point, and the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardproof.data import Group, ordered_pairs
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair
from rewardproof.evaluation import agreement, correct_shares
from rewardproof.models.double_mixture import switch_to
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import Section, Table
from rewardproof.scoring import DoubleMixture
from rewardproof.scoring.double_mixture import BASE, CategoryEntry
from rewardproof.stages.member_context import MemberContext
from rewardproof.stages.training_report import scored
from rewardproof.statistics import Interval, paired_difference, wilson

Rewards = list[tuple[float, ...]]


def judge_parts(
    context: MemberContext,
    delivered: DoubleMixture,
    entries: Sequence[CategoryEntry],
    categories: Sequence[str],
    points: Sequence[Mapping[str, tuple[Pair, ...]]],
    baselines: Mapping[str, Path],
) -> dict[str, Any]:
    """Accuracies of all parts on the held-out prompts, with intervals over prompts.

    Args:
        context: The run.
        delivered: The whole.
        entries: Its categories.
        categories: Category of every held-out group, empty where it has none.
        points: Pairs by capability point of every held-out group.
        baselines: Where each category's model is that was trained on all of the category's preferences; none where there are none.

    Returns:
        `router`; `final`, `base` and, where asked for, `baseline` over all groups as the router sends them, by category and together;
        `final_by_label`, were the router always right; `experts`, each on its own point beside the first model on the same pairs; and
        `gain_over_base` and `gain_over_baseline`, differences of accuracy on the same groups.
    """
    groups, encoded = context.prepared.held_out, context.prepared.held_out_tokens
    routes = delivered.route(encoded)
    judged = _Judged([ordered_pairs(group) for group in groups], [group.prompt_key for group in groups], routes)
    folder = context.directory.path / "model"
    places = {"base": {entry.name: folder / entry.folder / BASE for entry in entries}, "baseline": baselines}
    rewards = {"final": delivered.score_as(encoded, routes)}
    for name, found in places.items():
        if found:
            rewards[name] = _dense(context, encoded, routes, found)
    known = [place for place, name in enumerate(categories) if name in delivered.categories]
    found: dict[str, Any] = {"router": _router(groups, categories, routes, known)}
    found |= {name: judged.by_category(some) for name, some in rewards.items()}
    for name in ("base", "baseline"):
        if name in rewards:
            found[f"gain_over_{name}"] = judged.gain(rewards["final"], rewards[name])
    if known:
        by_label = delivered.score_as([encoded[place] for place in known], [categories[place] for place in known])
        found["final_by_label"] = judged.part(known).overall(by_label)
    found["experts"] = {entry.name: _experts(context, entry, folder, delivered, categories, points) for entry in entries if entry.points}
    return found


class _Judged:
    """Held-out pairs, and the categories by which accuracies are told apart."""

    def __init__(self, pairs: Sequence[Sequence[Pair]], prompts: Sequence[str], categories: Sequence[str]) -> None:
        self.pairs, self.prompts, self.categories = pairs, prompts, categories

    def part(self, places: Sequence[int]) -> _Judged:
        """Some of the groups."""
        pairs, prompts = [self.pairs[place] for place in places], [self.prompts[place] for place in places]
        return _Judged(pairs, prompts, [self.categories[place] for place in places])

    def overall(self, rewards: Rewards) -> Interval | None:
        """Accuracy over all groups."""
        return agreement(self.prompts, self.pairs, rewards)

    def by_category(self, rewards: Rewards) -> dict[str, Any]:
        """Accuracy over all groups, and over those of each category."""
        names = sorted(set(self.categories))
        places = {name: [place for place, category in enumerate(self.categories) if category == name] for name in names}
        parts = {name: self.part(some).overall([rewards[place] for place in some]) for name, some in places.items()}
        return {"overall": self.overall(rewards), "by_category": {name: one for name, one in parts.items() if one is not None}}

    def gain(self, rewards: Rewards, others: Rewards) -> Interval:
        """By how much one is more often right than the other, on the same groups."""
        ordered = [place for place, pairs in enumerate(self.pairs) if pairs]
        part = self.part(ordered)
        ours, theirs = (correct_shares(part.pairs, [some[place] for place in ordered]) for some in (rewards, others))
        return paired_difference(ours, theirs, part.prompts)


def _router(groups: Sequence[Group], categories: Sequence[str], routes: Sequence[str], known: Sequence[int]) -> dict[str, Any]:
    """How often the router agrees with the labels, every prompt counting once, and where it sends whom."""
    prompts = {groups[place].prompt_key: place for place in known}.values()
    sent: dict[str, dict[str, int]] = {}
    for place in prompts:
        row = sent.setdefault(categories[place], {})
        row[routes[place]] = row.get(routes[place], 0) + 1
    correct = sum(categories[place] == routes[place] for place in prompts)
    return {
        "accuracy": wilson(correct, len(prompts)) if prompts else None,
        "sent": {name: dict(sorted(row.items())) for name, row in sorted(sent.items())},
        "without_label": len(groups) - len(known),
    }


def _dense(context: MemberContext, encoded: Sequence[EncodedGroup], routes: Sequence[str], places: Mapping[str, Path]) -> Rewards:
    """Rewards by one stock model a category, loaded one after the other."""
    rewards: Rewards = [()] * len(encoded)
    for name, place in places.items():
        own = [index for index, category in enumerate(routes) if category == name]
        if own:
            model = context.reward_model(RewardModel.load(place).model)
            for index, row in zip(own, scored(model, [encoded[index] for index in own], context.progress), strict=True):
                rewards[index] = row
    return rewards


def _experts(
    context: MemberContext,
    entry: CategoryEntry,
    folder: Path,
    delivered: DoubleMixture,
    categories: Sequence[str],
    points: Sequence[Mapping[str, tuple[Pair, ...]]],
) -> dict[str, Any]:
    """Accuracy of every expert's own reward at its point, and of the first model on the same pairs; of the prompts with that label."""
    groups, encoded = context.prepared.held_out, context.prepared.held_out_tokens
    model = delivered.categories[entry.name].model
    alone = context.reward_model(model)
    base = context.reward_model(RewardModel.load(folder / entry.folder / BASE).model)
    found: dict[str, Any] = {}
    for number, point in enumerate(entry.points):
        own = [place for place, name in enumerate(categories) if name == entry.name and point in points[place]]
        if not own:
            found[point] = None
            continue
        switch_to(model, number)
        pairs, prompts = [points[place][point] for place in own], [groups[place].prompt_key for place in own]
        wanted = [encoded[place] for place in own]
        found[point] = {
            "expert": agreement(prompts, pairs, scored(alone, wanted, context.progress)),
            "base": agreement(prompts, pairs, scored(base, wanted, context.progress)),
            "pairs": sum(map(len, pairs)),
        }
    return found


def parts_section(found: Mapping[str, Any]) -> Section:
    """The accuracies of all parts as a table of the report's page."""
    rows: list[tuple[Any, ...]] = [("router", found["router"]["accuracy"], "")]
    names = {"final": "experts and network", "base": "first model", "baseline": "one model on all the preferences"}
    for name, told in names.items():
        if name in found:
            rows.append((told, found[name]["overall"], ""))
            rows += [(f"· {category}", interval, "") for category, interval in found[name]["by_category"].items()]
    for category, experts in found["experts"].items():
        rows += [(f"{category}: {point}", one["expert"], one["base"]) for point, one in experts.items() if one is not None]
    text = "Share of held-out prompts or pairs that each part gets right; an expert is judged by the labels of its own capability point."
    return Section(
        "Router, experts and the models to compare with", (text,), table=Table(("part", "accuracy", "first model there"), tuple(rows))
    )
