"""What a run tells of a head of factors: the reading in `report.json`, and the section of the page with its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.artifacts import RunDirectory, plain
from rewardproof.data.encoding import EncodedGroup
from rewardproof.evaluation import read_factors
from rewardproof.models.factor_head import factor_head_of, has_factors
from rewardproof.models.reward_model import RewardModel
from rewardproof.report import Section, Table, factors_figure, save_figure
from rewardproof.stages.experts_page import shown
from rewardproof.stages.member_context import MemberContext

TRAINING_GROUPS = 256
"""Training groups that factors are read on where nothing is held out."""
EXCERPT = 160
"""Characters of an answer that are quoted."""


def dictionary_of(model: PreTrainedModel) -> Tensor | None:
    """A copy of the dictionary of a model's head; `None` where the head is linear."""
    return factor_head_of(model).dictionary().detach().cpu().clone() if has_factors(model) else None


def factors_summary(context: MemberContext, model: PreTrainedModel, start_K: Tensor) -> dict[str, Any]:
    """What a trained head's factors do on the held-out answers, or on some of the training answers where there are none."""
    prepared, wrapped = context.prepared, context.reward_model(model)
    held_out = prepared.held_out_tokens
    groups = held_out or [entry.group for entry in prepared.train.groups[:TRAINING_GROUPS]]
    head = factor_head_of(model)
    with torch.no_grad():
        active_NK = head.activations(torch.cat(wrapped.states(groups)).to(model.device)).cpu()
        phi_K = head.dictionary().cpu()
        rewards = (active_NK @ phi_K + head.bias.relu().cpu()).tolist()
    reading = read_factors(active_NK, phi_K, start_K, rewards=rewards, answers=_answers(wrapped, groups))
    return {"of": "held-out answers" if held_out else "training answers", **asdict(reading)}


def _answers(model: RewardModel, groups: Sequence[EncodedGroup]) -> list[tuple[str, int]]:
    """How every answer begins, and its tokens."""
    found: list[tuple[str, int]] = []
    for group in groups:
        for tokens, start in zip(group.conversations, group.answer_starts, strict=True):
            text = " ".join(str(model.tokenizer.decode(list(tokens[start:]), skip_special_tokens=True)).split())
            found.append((text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…", len(tokens) - start))
    return found


def factors_sections(directory: RunDirectory, summary: Mapping[str, Any], *, of_whom: str = "") -> list[Section]:
    """Sections on a head of factors, from `factors_summary`: how much of it works, and what its strongest factors respond to."""
    summary = plain(summary)
    strongest = summary["strongest"]
    told = (
        f"On {summary['answers']} {summary['of']}, {summary['dead']:.1%} of {summary['n_factors']} factors give no reward: "
        f"{summary['dead_dictionary']:.1%} of the dictionary is zero, {summary['dead_activation']:.1%} of the activations always. The mean "
        f"reward is spread as evenly as over {summary['in_effect']:.1f} factors. In training the dictionary moved by "
        f"{summary['phi_travelled']:.2%} of its norm."
    )
    if not strongest:
        return [Section(f"Factors{of_whom}", (told,))]
    if summary["alike"] is not None:
        told += f" Two of the strongest correlate {summary['alike']:.3f} on average: near 1 they are one factor in many copies."
    suffix = of_whom.strip().replace(" ", "-")
    drawn = factors_figure(strongest, length_correlation=summary["length_correlation"])
    figure = save_figure(drawn, directory.path, f"factors{suffix and '-'}{suffix}")
    names = ("factor", "Φ", "mean", "spread", "share of spread", "with length", "with reward")
    rows = tuple(
        (f"factor {entry['number']}", entry["phi"], entry["mean"], entry["spread"], entry["share"], *map(_shown, _correlations(entry)))
        for entry in strongest
    )
    caption = "The factors that spread the rewards most, and the correlation of their activation with the answer's length and reward."
    quotes = tuple((f"factor {entry['number']}", _quoted(entry["highest"]), _quoted(entry["lowest"])) for entry in strongest)
    return [
        Section(f"Factors{of_whom}", (told,), table=Table(names, rows), figures=(shown(figure, caption),)),
        Section(
            f"What factors respond to{of_whom}",
            ("The answers with the highest and the lowest activation of each factor, the activation before each.",),
            table=Table(("factor", "highest", "lowest"), quotes),
        ),
    ]


def _correlations(entry: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return entry["length_correlation"], entry["reward_correlation"]


def _shown(correlation: float | None) -> str:
    return "constant" if correlation is None else f"{correlation:+.3f}"


def _quoted(answers: Sequence[Mapping[str, Any]]) -> str:
    return " · ".join(f"{entry['activation']:.3g}: “{entry['text']}”" for entry in answers)
