"""Loading the world: shipped prompts, sampled answers and gold scores as groups."""

from __future__ import annotations

import json
import lzma
from functools import cache
from importlib import resources
from typing import Any

from rewardproof.data.group import Group, Message
from rewardproof.errors import DataError

PARTS = ("train", "heldout", "shifted", "pool64", "pool256")
"""`train`, `heldout`, `shifted`: 8 answers a prompt. `pool64`, `pool256`: held-out prompts with 64 and 256 answers."""
ANSWERS = {"train": 8, "heldout": 8, "shifted": 8, "pool64": 64, "pool256": 256}


def load_world(part: str) -> list[Group]:
    """Groups of one part of `embedded:checkable`, with exact gold as scores.

    The pools extend held-out prompts: the first 8 answers of a pool are the answers of the same prompt in `heldout`, the first 64 of
    `pool256` those in `pool64`.

    Args:
        part: One of `PARTS`.
    Returns:
        Groups: `scores` gold in [0, 1]; `category` the family and `meta["capability"]` the kind of the first constraint; `subset` the
        part, for shifted prompts `shifted/topics`, `shifted/kinds` or `shifted/combinations`; `meta` also `topic`, `constraints`, `shift`.
    Raises:
        DataError: There is no such part.
    """
    if part not in PARTS:
        raise DataError(
            f"embedded:checkable has no part {part!r}; it has {', '.join(PARTS)}. Name one of them, as in embedded:checkable/train."
        )
    n = ANSWERS[part]
    source = part if part in ("train", "shifted") else "heldout"
    return [_group(row, part, n) for row in _rows(source) if len(row["answers"]) >= n]


def world_facts() -> dict[str, Any]:
    """Counts, mean lengths, sampling settings and the table of kinds, as measured when the world was built."""
    return json.loads(_read("facts.json"))


@cache
def _rows(source: str) -> tuple[dict[str, Any], ...]:
    """Stored rows of one file."""
    return tuple(json.loads(line) for line in lzma.decompress(_read(f"{source}.jsonl.xz")).decode().splitlines())


def _read(name: str) -> bytes:
    return resources.files("rewardproof.data.world").joinpath("resources", name).read_bytes()


def _group(row: dict[str, Any], part: str, n: int) -> Group:
    first = row["constraints"][0]
    return Group(
        prompt=(Message("user", row["prompt"]),),
        answers=tuple((Message("assistant", text),) for text in row["answers"][:n]),
        scores=tuple(row["scores"][:n]),
        id=row["id"],
        subset=f"{part}/{row['shift']}" if row["shift"] else part,
        category=first["family"],
        meta={"topic": row["topic"], "constraints": row["constraints"], "capability": first["kind"], "shift": row["shift"]},
        origin=f"embedded:checkable/{part}:{row['id']}",
    )
