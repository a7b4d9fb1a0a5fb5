"""Splits by the prompt's text alone, so that train, evaluate and every file that holds the same prompt agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from rewardproof.data.group import Group
from rewardproof.errors import ConfigError


def split_position(group: Group, salt: str = "") -> float:
    """Where the group's prompt falls in [0, 1).

    Args:
        group: The group; of a group without a known prompt (raw text) the answers' texts are hashed in place of the prompt.
        salt: The empty salt is the main held-out split; any other gives an independent split, for use inside the kept part.
    """
    return key_position(split_key(group), salt)


def key_position(key: str, salt: str = "") -> float:
    """Where the groups of a key (see `split_key`) fall in [0, 1); the salt as for `split_position`."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def split_salt(seed: int, part: str = "") -> str:
    """The salt of a numbered split.

    Args:
        seed: Which split; 0 is the one that everything shares by default.
        part: Name of an independent split inside the kept part; empty for the main one.

    Example:
        >>> split_salt(0), split_salt(0, "merge"), split_salt(2, "merge")
        ('', 'merge', 'merge#2')
    """
    return part if seed == 0 else f"{part}#{seed}"


def split_by_prompt(groups: Iterable[Group], *, fraction: float, salt: str = "") -> tuple[list[Group], list[Group]]:
    """Hold out about a fraction of the prompts; all groups of a prompt fall on the same side.

    Args:
        groups: The groups; their order is kept.
        fraction: Share of prompts held out, in [0, 1].
        salt: See `split_position`; `split_salt` makes one from a number.

    Returns:
        The groups kept and the groups held out.

    Raises:
        ConfigError: When the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(
            f"Got a split fraction of {fraction}; expected a number from 0 to 1. It is the share of prompts held out; 0.1 is usual."
        )
    kept: list[Group] = []
    held_out: list[Group] = []
    for group in groups:
        (held_out if split_position(group, salt) < fraction else kept).append(group)
    return kept, held_out


def prompt_overlap(a: Iterable[Group], b: Iterable[Group]) -> int:
    """How many distinct prompts both hold."""
    return len({split_key(group) for group in a} & {split_key(group) for group in b})


def without_prompts_of(groups: Iterable[Group], others: Iterable[Group]) -> list[Group]:
    """Those of `groups` whose prompt none of `others` has, order kept."""
    known = {split_key(group) for group in others}
    return [group for group in groups if split_key(group) not in known]


def split_key(group: Group) -> str:
    """What splits hash: the prompt's key, or a hash of the answers where no prompt is known."""
    if group.prompt_text.strip():
        return group.prompt_key
    return hashlib.sha256(json.dumps(sorted(group.answer_texts)).encode()).hexdigest()
