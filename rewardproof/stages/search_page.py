"""What a search for failures shows: what became of the variants, and failures beside the answers that they score against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardproof.artifacts import Report, RunDirectory
from rewardproof.evaluation.failures import ANY, FATES
from rewardproof.report import Page, Section, SideBySide, Table, format_interval, provenance_rows, side_by_side, write_page
from rewardproof.statistics import Interval

NAMES = {"preferred": "preferred", "non_preferred": "non-preferred", ANY: "either"}


def write_search_page(directory: RunDirectory, report: Report, *, file: str) -> None:
    """Write `report.html` of a search whose failures lie in `file`."""
    results = report.results
    use = f"rewardproof train dense OUT model=… data=DATA,{directory.path / file}"
    sections = [
        *search_sections(results),
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


def search_sections(summary: Mapping[str, Any]) -> list[Section]:
    """Sections on a search, from what `Found.summary` reported."""
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
        *([Section("The widest failures", comparisons=[_shown(one) for one in summary["widest"]])] if summary["widest"] else []),
    ]


def _shown(failure: Mapping[str, Any]) -> SideBySide:
    rival = "the pair's other answer" if failure["kind"] == "preferred" else "the preferred answer"
    rewards = failure["rewards"]
    labels = (f"{rival}, reward {rewards['against']:.3f}", f"the variant, reward {rewards['variant']:.3f}")
    caption = f"Written as a {NAMES[failure['kind']]} answer to: {failure['prompt'][:200]}"
    return side_by_side(caption, failure["against"], failure["variant"], labels=labels)
