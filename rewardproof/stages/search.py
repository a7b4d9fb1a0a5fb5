"""`rewardproof search MODEL OUT`: answers that a reward model mis-scores, written for the pairs that it is surest of.

Reference:
    REFORM, arXiv:2507.06419.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, Report, RunDirectory, refuse_inputs_inside, require_free, silent
from rewardproof.config import Strings
from rewardproof.data import Group, merge_single_answers, ordered_pairs, read_groups, to_row
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import DataError, ModelError
from rewardproof.evaluation.failures import SearchedPair, lowest_losses
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import load_model
from rewardproof.stages.failure_search import Discovery, Found, check_discovery, find_failures
from rewardproof.stages.row_file import as_line
from rewardproof.stages.search_page import write_search_page
from rewardproof.stages.training_report import scored

log = logging.getLogger(__name__)
FAILURES = "failures.jsonl"


class Search(Discovery):
    """A reward model, and the preferences for whose pairs it is searched."""

    model: str
    """The reward model: a directory or a hub id."""
    data: Strings
    """Preferences: files, folders, hub ids or `embedded:…`."""
    max_pairs: Annotated[int, Field(ge=0)] = 0
    """At most so many of the chosen pairs are searched, those with the lowest loss; 0 takes all."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Longest conversation of the data, in tokens; longer ones are left out and counted. 0 is the model's own limit."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws and of the resampling."""
    precision: Precision = "auto"
    """Of the policies; the reward model computes in fp32."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "drop_unfit"
    """What happens at a bad row; dropped rows are counted by reason."""


def run(config: Search, out: Path | str, *, overwrite: bool = False, progress: Progress = silent) -> Report:
    """Choose the pairs that the model is surest of, write variants of their answers, and keep the failures.

    Args:
        config: Model, policies, data.
        out: Run directory; `failures.jsonl` has a preference for each failure, which `train` reads.
        overwrite: Delete an earlier run there.
        progress: Receives what is being done, how far, of how much.

    Returns:
        The report; its headline is the share of the searched pairs for which a failure was found.

    Raises:
        ConfigError: As `check_discovery`.
        DataError: Data that cannot be read, or orders no two answers.
        ModelError: A model that cannot be searched with.
    """
    check_discovery(config)
    started = time.perf_counter()
    require_free(out, overwrite=overwrite, resume=False)
    refuse_inputs_inside(out, [config.model, config.aligned, config.flipped, *config.data])
    judge = _judge(config.model)
    groups, encoded, rows = _read(config, judge)
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    pairs: list[SearchedPair] = []
    gaps: list[float] = []
    for entry, rewards in zip(encoded, scored(judge, encoded, progress), strict=True):
        for pair in ordered_pairs(groups[entry.index]):
            pairs.append(SearchedPair(groups[entry.index], pair.winner, pair.loser))
            gaps.append(rewards[pair.winner] - rewards[pair.loser])
    chosen = [pairs[place] for place in lowest_losses(gaps, config.share, limit=config.max_pairs)]
    found = find_failures(judge, chosen, config, precision=config.precision, seed=config.seed, progress=progress)
    rows["written"] = write_failures(directory, found, config)
    report = directory.finish(found.headline(seed=config.seed), {"rows": rows, "pairs": len(pairs), **found.summary(seed=config.seed)})
    write_search_page(directory, report, file=FAILURES)
    return report


def write_failures(directory: RunDirectory, found: Found, config: Discovery) -> int:
    """Write the failures as preferences to `failures.jsonl`; gives how many rows."""
    made = found.preferences(config.pairing)
    directory.write_text(FAILURES, b"".join(as_line(to_row(group)) for group in made).decode())
    return len(made)


def _judge(spec: str) -> RewardModel:
    model = load_model(spec)
    if not isinstance(model, RewardModel) or model.experts is not None:
        raise ModelError(
            f"{spec} is {'an ensemble' if not isinstance(model, RewardModel) else 'a model of experts by capability'}, expected one dense "
            "reward model: the search reads rewards token by token out of one forward pass. Search its members one by one."
        )
    return model


def _read(config: Search, judge: RewardModel) -> tuple[list[Group], list[EncodedGroup], dict[str, Any]]:
    """The data's groups, those with a prompt and an order that fit as tokens, and what became of the rows."""
    found = read_groups(config.data, format=config.format, text=config.text, on_bad=config.on_bad)
    if found.counts.dropped:
        log.warning("%s", found.counts.sentence())
    groups = merge_single_answers(found.groups)
    ordered = [group for group in groups if group.prompt and ordered_pairs(group)]
    encoded, falls = judge.encode(ordered, max_length=config.max_length, overlong="drop")
    rows = {"read": found.counts.read, "used": len(encoded), "dropped": dict(found.counts.bad), **falls}
    rows["without_a_prompt_or_an_order"] = len(groups) - len(ordered)
    if not encoded:
        raise DataError(
            f"{', '.join(config.data)}: {len(groups)} groups but no prompt with two answers that the data orders and the model can read "
            f"({rows}), expected preferences: failures are of a pair's classes. Check the format (format=), and that scores differ."
        )
    return ordered, encoded, rows
