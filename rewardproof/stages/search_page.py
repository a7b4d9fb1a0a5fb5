"""What a search for failures shows: what became of the variants, and failures beside the answers that they score against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.evaluation.failures import FATES, Failure
from rewardproof.report import Page, Section, SideBySide, Table, format_interval, provenance_rows, side_by_side, write_page
from rewardproof.stages.failure_search import Found
from rewardproof.statistics import Interval

SHOWN = 6
"""Failures on the page, the widest."""
NAMES = {"preferred": "preferred", "non_preferred": "non-preferred", "any": "either"}


def write_search_page(directory: RunDirectory, report: Report, found: Found, *, file: str) -> None:
    """Write `report.html` of a search whose failures lie in `file`."""
    results = report.results
    use = f"rewardproof train dense OUT model=… data=DATA,{directory.path / file}"
    sections = [
        *search_sections(results, found.failures),
        Section("Train on them", (f"`{file}` holds each failure as a preference that says what the reward should have.",), code=use),
    ]
    write_page(
        directory.path / "report.html",
        Page(
            title="Failures of a reward model",
            verdict=report.headline[0].upper() + report.headline[1:] + ".",
            facts=(("pairs", results["pairs"]), ("pairs searched", results["searched_pairs"]), ("seconds", results["seconds"])),
            sections=sections,
            provenance=provenance_rows(directory.path),
        ),
    )


def search_sections(summary: Mapping[str, Any], failures: Sequence[Failure]) -> list[Section]:
    """Sections on a search, from what `Found.summary` reported, and its widest failures."""
    rates = tuple((NAMES[kind], format_interval(Interval(**rate))) for kind, rate in summary["discovery_rate"].items())
    fates = tuple(
        (NAMES[kind], *(counts[fate] for fate in FATES), summary["perplexity"][kind], summary["perplexity_of_failures"][kind])
        for kind, counts in summary["variants"].items()
    )
    told = (
        "A preferred variant fails where it scores below the pair's other answer, a non-preferred one where it scores above the preferred "
        "answer, both on the whole text. That a variant is of its class is the policy's word: read some before you train on them."
    )
    heads = ("written as", *(fate.replace("_", " ") for fate in FATES), "perplexity", "of failures")
    return [
        Section("Failures found", (told,), table=Table(("written as", "pairs with a failure"), rates)),
        Section(
            "What became of the variants",
            ("Perplexity is under the policy that wrote them: high, where the reward outweighed it.",),
            table=Table(heads, fates),
        ),
        *([Section("The widest failures", comparisons=[_shown(one) for one in _widest(failures)])] if failures else []),
    ]


def _widest(failures: Sequence[Failure]) -> list[Failure]:
    return sorted(failures, key=lambda one: -one.width)[:SHOWN]


def _shown(failure: Failure) -> SideBySide:
    written, (winner, loser, variant) = failure.written, failure.rewards
    preferred = written.kind == "preferred"
    against = written.pair.key[2 if preferred else 1]
    caption = f"Written as a {NAMES[written.kind]} answer to: {written.pair.group.prompt_text[:200]}"
    rival = "the pair's other answer" if preferred else "the preferred answer"
    labels = (f"{rival}, reward {loser if preferred else winner:.3f}", f"the variant, reward {variant:.3f}")
    return side_by_side(caption, against, written.text, labels=labels)
