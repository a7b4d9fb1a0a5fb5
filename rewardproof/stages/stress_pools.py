"""The answers that best of n picks from: read from data, or sampled live from a policy and kept as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rewardproof.artifacts import Progress, RunDirectory, writing
from rewardproof.config import Integers, Range, Section, Strings
from rewardproof.data import Group, Message, merge_single_answers, read_groups, split_position
from rewardproof.errors import ConfigError, DataError, EvaluationError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.precision import default_device, resolve_precision, weights_dtype
from rewardproof.policy.rollouts import Prompt, roll_out
from rewardproof.policy.row_cache import longest_row
from rewardproof.policy.sampling import Sampling
from rewardproof.scoring import GIVEN

if TYPE_CHECKING:
    from rewardproof.stages.stress import Stress


class PoolSettings(Section):
    """Prompts with many answers each, the values of n, and who judges the picks."""

    pool: Strings = ("embedded:checkable/pool64",)
    """Prompts with many answers each, in one row or one row an answer: files, folders, hub ids or `embedded:…`."""
    gold: str = "embedded:checkable"
    """Who judges: `embedded:checkable`, `scores` (those of the data), a reward model, an ensemble, or a server's address."""
    n: Integers = ()
    """Values of n; by default the powers of two below the smallest pool."""
    prompts: Annotated[int, Field(ge=0)] = 0
    """At most so many prompts, chosen by a hash of their text; 0 takes all."""
    share: Range = (0.0, 1.0)
    """Range of the prompts taken at all, by a hash of their text in [0, 1), as training's `read.share`: disjoint ranges share none."""
    without: Strings = ()
    """Sources whose prompts are left out of the pool: what was trained on, or what another test is kept for."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop"] = "fail"
    """Stop at a row that cannot be scored, or leave it out and count it."""


POOLS = "pools.jsonl"
PROMPTS_AT_ONCE = 16
"""Prompts sampled and kept together; an interruption loses no more."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Prompts with their answers, the values of n, and what became of the rows."""

    groups: tuple[Group, ...]
    ns: tuple[int, ...]
    rows: dict[str, Any]

    @property
    def lengths(self) -> list[list[float]]:
        """Characters of every answer."""
        return [[float(len(text)) for text in group.answer_texts] for group in self.groups]


def read_pools(config: PoolSettings, *, sample: int = 0) -> Pools:
    """Read what is to be picked from.

    Args:
        config: The pools.
        sample: Answers that will be sampled to each prompt in place of those it has; the prompts alone are read. 0 takes what is there.

    Raises:
        ConfigError: Sampled answers are to be judged by scores that came with others.
        DataError: Pools that cannot be read, or have too few answers.
    """
    if sample and config.gold == GIVEN:
        raise ConfigError(f"gold={GIVEN} with sample={sample}, expected a judge that reads answers: sampled ones have no scores yet.")
    purpose = "answer" if sample else "score"
    found = read_groups(config.pool, format=config.format, text=config.text, on_bad=config.on_bad, purpose=purpose)
    groups = sorted(_wanted(config, merge_single_answers(found.groups)), key=lambda group: group.prompt_key)
    if not groups:
        raise DataError(
            f"{', '.join(config.pool)}: none of {len(found.groups)} prompts is left after share= and without=, expected some; widen the "
            "range, or leave out less."
        )
    if sample:
        groups = list({group.prompt_key: replace(group, answers=(), scores=None) for group in groups}.values())
    kept = tuple(groups[: config.prompts or None])
    rows = {"read": found.counts.read, "used": len(kept), "dropped": dict(found.counts.bad)}
    return Pools(kept, _sizes(config, kept, sample), rows)


def _wanted(config: PoolSettings, groups: Sequence[Group]) -> list[Group]:
    low, high = config.share
    if (low, high) != (0.0, 1.0):
        groups = [group for group in groups if low <= split_position(group, "share") < high]
    if config.without:
        others = read_groups(config.without, text=config.text, on_bad="drop", purpose="answer").groups
        kept_apart = {group.prompt_key for group in others}
        groups = [group for group in groups if group.prompt_key not in kept_apart]
    return list(groups)


def _sizes(config: PoolSettings, pools: Sequence[Group], sample: int) -> tuple[int, ...]:
    smallest = min(pools, key=lambda group: len(group.answers))
    count = sample or len(smallest.answers)
    sizes = config.n or tuple(2**power for power in range(20) if 2**power < count)
    if count < 2 or max(sizes) >= count:
        raise DataError(
            f"{smallest.origin or smallest.id} has {count} answers for n up to {max(sizes, default=1)}, expected more answers than "
            "the largest n: at n = N one answer a prompt decides and the variance explodes. Give larger pools, or lower n."
        )
    return tuple(sizes)


def sample_pools(config: Stress, pools: Pools, directory: RunDirectory, progress: Progress) -> Pools:
    """Sample answers to every prompt from `config.policy`, as far as `pools.jsonl` does not have them.

    An answer's random numbers depend on the seed, its prompt's place and its own number alone: an interrupted run ends at the same pools.

    Raises:
        EvaluationError: The file holds answers to other prompts.
    """
    file = directory.path / POOLS
    rows = whole_rows(file)
    if len(rows) > len(pools.groups) or any(row["id"] != group.prompt_key for row, group in zip(rows, pools.groups, strict=False)):
        raise EvaluationError(
            f"{file} holds answers to other prompts than those read now, expected the same: the data has changed since. Restore it, or "
            "pass --overwrite to start again."
        )
    if len(rows) < len(pools.groups):
        with writing(file), file.open("a") as stream:
            for made in _sampled(config, pools.groups, len(rows), progress):
                stream.write("".join(json.dumps(row) + "\n" for row in made))
                stream.flush()
                rows += made
    answers = [tuple((Message("assistant", text),) for text in row["answers"]) for row in rows]
    return replace(pools, groups=tuple(replace(group, answers=made) for group, made in zip(pools.groups, answers, strict=True)))


def whole_rows(file: Path) -> list[dict[str, Any]]:
    """Rows that an interrupted run wrote whole; what was cut off is removed from the file."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        file.write_bytes(b"".join(whole))
    return [json.loads(line) for line in whole]


def _sampled(config: Stress, groups: Sequence[Group], first: int, progress: Progress) -> Iterator[list[dict[str, Any]]]:
    """Rows of prompts from `first` on, some at a time."""
    device = default_device()
    model, tokenizer = load_causal(config.policy, dtype=weights_dtype(resolve_precision(config.precision, device)))
    model.to(device)  # pyright: ignore[reportArgumentType]
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed)
    if (limit := longest_row(model)) is not None:
        longest = max(len(Prompt.of(group, tokenizer).token_ids) for group in groups)
        if longest + config.max_new_tokens > limit[0]:
            raise DataError(
                f"The longest prompt has {longest} tokens and max_new_tokens={config.max_new_tokens}: expected at most {limit[0]} "
                f"together, since {config.policy} has {limit[0]} {limit[1]}. Lower max_new_tokens, or leave long prompts out."
            )
    for start in range(first, len(groups), PROMPTS_AT_ONCE):
        progress("sampling answers", start, len(groups))
        places = range(start, min(start + PROMPTS_AT_ONCE, len(groups)))
        prompts = [Prompt.of(groups[place], tokenizer) for place in places]
        rollouts = roll_out(model, tokenizer, prompts, list(places), answers=config.sample, sampling=sampling)
        yield [
            {"id": groups[place].prompt_key, "prompt": groups[place].prompt_text, "answers": list(made.answer_texts)}
            for place, made in zip(places, rollouts.groups, strict=True)
        ]
