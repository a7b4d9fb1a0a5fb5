"""What a training run shows: the accuracy table, figures of training, routing and coefficients, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.artifacts import Progress, Report, RunDirectory
from rewardproof.data import Group
from rewardproof.data.encoding import EncodedGroup, encode_group
from rewardproof.evaluation import AccuracyReport
from rewardproof.models.checkpoints import EXPERTS_FILE
from rewardproof.models.factor_head import FACTORS_FILE
from rewardproof.report import Page, Section, Table, provenance_rows, reliability_figure, save_figure, training_figure, write_page
from rewardproof.scoring import AnyModel
from rewardproof.stages.activation_page import activation_sections
from rewardproof.stages.domain_page import domain_sections
from rewardproof.stages.experts_page import experts_sections, shown, specialists_section
from rewardproof.stages.factors_page import factors_sections
from rewardproof.stages.member_context import Member
from rewardproof.stages.policy_head import policy_section
from rewardproof.stages.verifier import verdict_sections

CHUNK = 256
"""Groups scored between two signs of progress."""

STATES = "The reward is the head's length times the state's length times the cosine between them; log.jsonl has the rest."
STATE_COLUMNS = {
    "norm_mean": "state length",
    "norm_variance": "its variance",
    "cosine_mean": "cosine",
    "cosine_variance": "its variance",
    "reward_mean": "reward",
    "reward_variance": "its variance",
    "effective_rank": "effective rank",
}


def scored(model: AnyModel, groups: Sequence[Group] | Sequence[EncodedGroup], progress: Progress) -> list[tuple[float, ...]]:
    """Rewards of all groups, given as text or encoded, with progress."""
    rewards: list[tuple[float, ...]] = []
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        rewards += model.score_encoded(
            entry if isinstance(entry, EncodedGroup) else encode_group(entry, model.tokenizer, index=start + place)
            for place, entry in enumerate(chunk)
        )
        progress("scoring", len(rewards), len(groups))
    return rewards


def accuracy_table(reports: Mapping[str, AccuracyReport]) -> Table:
    """One row a data set or model, and one a subset of it, beside the length rule on the same pairs."""
    rows: list[tuple[Any, ...]] = []
    for name, report in reports.items():
        rows.append((name, report.overall, report.length_only, report.n_pairs, round(report.ece, 3), report.length_correlation))
        for subset, interval in report.by_subset.items():
            rows.append((f"· {subset}", interval, report.length_only_by_subset.get(subset), interval.n, None, None))
    return Table(("data", "pair accuracy", "longer answer wins", "pairs", "calibration error", "length correlation"), tuple(rows))


def write_training_report(directory: RunDirectory, report: Report, accuracy: AccuracyReport | None, members: Sequence[Member]) -> None:
    """Draw the figures of a run and write `report.html`."""
    sections: list[Section] = []
    if accuracy is not None:
        figure = save_figure(reliability_figure(accuracy.calibration), directory.path, "calibration")
        sections.append(
            Section(
                "Held-out preferences",
                table=accuracy_table({"held out": accuracy}),
                figures=(shown(figure, "How often the preferred answer agrees with the data, by the model's own confidence."),),
            )
        )
    sections += verdict_sections(report.results)
    records = _records(directory)
    if any("loss" in record for record in records):
        figure = save_figure(training_figure(records, accuracy="eval_pair/accuracy"), directory.path, "training")
        sections.append(Section("Training", figures=(shown(figure, "Training loss, and pair accuracy on the held-out prompts."),)))
    states = _states_table(members)
    if states.rows:
        sections.append(Section("What the head reads", (STATES,), table=states))
    for number, member in enumerate(members):
        of_whom = "" if len(members) == 1 else f" of member {number}"
        policy = member.summary.get("dense", {}).get("policy", {})
        if "accuracy" in policy:
            sections.append(policy_section(policy, of_whom=of_whom))
        found = member.summary.get("merge") or member.summary.get("mixture") or {}
        if "factors" in member.summary:
            sections += factors_sections(directory, member.summary["factors"], of_whom=of_whom)
        if "domain" in member.summary:
            sections += domain_sections(directory, member.summary["domain"], of_whom=of_whom)
        if "reform" in member.summary:
            from rewardproof.stages.reform import reform_sections

            sections += reform_sections(member.summary["reform"])
        if "routing" in found:
            sections += experts_sections(directory, found, of_whom=of_whom)
            if "experts" in member.summary:
                sections.append(specialists_section(directory, member.summary["experts"], of_whom=of_whom))
        if "activation" in member.summary:
            sections += activation_sections(member.summary["activation"])
        if "held_out" in member.summary:
            from rewardproof.stages.double_mixture_judging import parts_section

            sections.append(parts_section(member.summary["held_out"]))
    sections.append(_loading(directory))
    write_page(
        directory.path / "report.html",
        Page(
            title="Reward model",
            verdict=report.headline[0].upper() + report.headline[1:] + ".",
            facts=(
                ("seconds", report.results["seconds"]),
                ("peak memory, GB", report.results["peak_memory_gb"]),
                ("parameters", report.results["parameters"]),
            ),
            sections=sections,
            provenance=provenance_rows(directory.path),
        ),
    )


def _loading(directory: RunDirectory) -> Section:
    model = directory.path / "model"
    if not (model / "config.json").is_file() or any((model / name).is_file() for name in (EXPERTS_FILE, FACTORS_FILE)):
        told, loader = "No stock class computes the delivered model; rewardproof loads it.", ("rewardproof.scoring", "load_model")
    else:
        told, loader = "The delivered model is a stock checkpoint.", ("transformers", "AutoModelForSequenceClassification")
    call = f"{loader[1]}.from_pretrained" if loader[0] == "transformers" else loader[1]
    return Section("Load it", (told,), code=f'from {loader[0]} import {loader[1]}\n\nmodel = {call}("{model}")')


def _states_table(members: Sequence[Member]) -> Table:
    """One row a training of a member and moment."""
    rows: list[tuple[Any, ...]] = []
    for number, member in enumerate(members):
        of_whom = "" if len(members) == 1 else f" of member {number}"
        for what in ("dense", "mixture"):
            for when, found in member.summary.get(what, {}).get("states", {}).items():
                rows.append(
                    (f"{when} training, {what}{of_whom}", *("undefined" if found[name] is None else found[name] for name in STATE_COLUMNS))
                )
    return Table(("held-out answers", *STATE_COLUMNS.values()), tuple(rows))


def _records(directory: RunDirectory) -> list[dict[str, Any]]:
    file = directory.path / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line.get("phase") in {"training", "mixture"}]
