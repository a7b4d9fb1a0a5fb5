"""What a page shows of an activation reward model: what it asks, what its heads were read from, and what each mask is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardproof.report import Section, Table

TOLD = (
    "Loss and accuracy are those of single replies, on examples that gave neither activations nor gradients. `no head` is the language "
    "model as it is, asked the same question; a mask that does no better adds nothing. Where masks were drawn and the best kept, its "
    "numbers flatter: they are those it was chosen by."
)


def activation_sections(summary: Mapping[str, Any]) -> list[Section]:
    """One section: a row a mask."""
    examples = summary["examples"]
    read = ", ".join(f"{word} read as {' or '.join(map(repr, tokens))}" for word, tokens in summary["options"].items())
    used = (
        f"{examples['extract']} labelled examples gave activations, {examples['select']} selected heads, {examples['check']} compared "
        f"masks; replies: {read}."
    )
    kept = summary["directions_kept"]
    denoised = () if kept is None else (f"Denoised: {kept:.1f} directions of a head's activations were kept on average.",)
    rows = tuple(
        (name, entry["heads"], " ".join(map(str, entry["by_layer"])), round(entry["loss"], 4), f"{100 * entry['accuracy']:.1f} %")
        for name, entry in summary["masks"].items()
    )
    table = Table(("mask", f"heads of {summary['heads']}", "by layer, lowest first", "loss", "right replies"), rows)
    return [Section("Heads", (used, *denoised, TOLD), table=table)]
