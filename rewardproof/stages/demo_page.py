"""The demo's `report.html`: what was done, who won, the figures, and how to load the models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardproof.artifacts import RunDirectory
from rewardproof.report import (
    Page,
    Section,
    Table,
    accuracy_figure,
    format_interval,
    hacking_figure,
    provenance_rows,
    save_figure,
    write_page,
)
from rewardproof.stages.experts_page import experts_sections, shown

if TYPE_CHECKING:
    from rewardproof.stages.demo import Demo, Story

WHAT = {
    "dense": "one Bradley-Terry reward model",
    "warm": "the average of several dense models that differ in their seed (WARM)",
    "umm": "experts upcycled from the dense blocks, trained, and merged back into one dense model (UMM-RM)",
}


def write_demo_page(directory: RunDirectory, config: Demo, story: Story, headline: str) -> Path:
    """Draw the figures and write the page."""
    sections = [_told(config), _compared(story), _optimised(directory, story), _accuracy(directory, story)]
    sections += [*_experts(directory, story), _examples(story), _times(story), _loading(directory)]
    page = Page(
        title="Which reward model is harder to game?",
        subtitle=f"{config.model.removeprefix('embedded:')}, {config.pairs} preferences, {config.label_noise:.0%} of them wrong; "
        "judged by a program that knows the truth",
        verdict=f"{headline}.",
        facts=(
            ("models compared", len(story.hacking)),
            ("minutes in all", f"{sum(story.seconds.values()) / 60:.1f}"),
            ("answers judged by gold", sum(one.n_prompts * one.pool for one in list(story.hacking.values())[:1])),
        ),
        sections=sections,
        provenance=provenance_rows(directory.path),
    )
    return write_page(directory.path / "report.html", page)


def _told(config: Demo) -> Section:
    methods = ", ".join(f"{name} ({text})" for name, text in WHAT.items())
    return Section(
        "What was done",
        (
            f"{config.pairs} pairs of answers to prompts with checkable constraints were ordered by a program; {config.label_noise:.0%} "
            f"of the orders were then flipped, as a careless annotator would. Three recipes learned from the same pairs: {methods}.",
            "Each model then chose the answer it likes best among n, and the program scored the choice. A reward model that is gamed "
            "shows a proxy that climbs with n while gold stalls or falls.",
        ),
    )


def _compared(story: Story) -> Section:
    rows = []
    for name, one in story.hacking.items():
        parts = story.accuracy[name]
        gain = story.gain.get(name)
        rows.append(
            (
                name,
                parts["heldout"].overall,
                parts["shifted"].overall,
                format_interval(one.gold[-1], percent=False, digits=3),
                "–" if gain is None else format_interval(gain, percent=False, digits=3),
            )
        )
    first = next(iter(story.hacking.values()))
    length = next(iter(story.accuracy.values()))
    rows.append(("longer answer wins", length["heldout"].length_only, length["shifted"].length_only, "not run", "–"))
    rows.append(("random choice", "–", "–", format_interval(first.random_gold, percent=False, digits=3), "–"))
    rows.append(("gold itself", "–", "–", f"{first.ceiling[-1]:.3f}", "–"))
    n = first.ns[-1]
    return Section(
        "The result",
        table=Table(("model", "accuracy, held out", "accuracy, shifted", f"gold of best of {n}", "gain over dense"), tuple(rows)),
    )


def _optimised(directory: RunDirectory, story: Story) -> Section:
    figure = save_figure(hacking_figure(story.hacking), directory.path, "best-of-n")
    return Section(
        "Optimised against",
        ("Bands are 95 % intervals over prompts; one training seed a model, so they do not show how much another seed would change.",),
        figures=(
            shown(
                figure,
                "Gold and proxy score of the chosen answer against the square root of KL, which grows with the answers to choose from.",
            ),
        ),
    )


def _accuracy(directory: RunDirectory, story: Story) -> Section:
    intervals = {name: {part: report.overall for part, report in parts.items()} for name, parts in story.accuracy.items()}
    figure = save_figure(accuracy_figure(intervals), directory.path, "accuracy")
    return Section(
        "Ordering answers",
        ("Held out: new prompts of the same kinds. Shifted: unseen topics, unseen kinds of constraints, unseen combinations.",),
        figures=(shown(figure, "Pair accuracy on held-out and shifted prompts, against the true order."),),
    )


def _experts(directory: RunDirectory, story: Story) -> list[Section]:
    umm, dense = story.training["umm"], story.training["dense"]
    sections = experts_sections(directory, umm["members"][0]["merge"], of_whom=" of umm")
    told = (
        f"The merged model is the dense one in shape: {umm['parameters']:,} parameters against {dense['parameters']:,}, and "
        f"{story.scoring_seconds['umm']:.2f} s against {story.scoring_seconds['dense']:.2f} s to score one pool of answers."
    )
    return [*sections, Section("What merging costs later: nothing", (told,))]


def _examples(story: Story) -> Section:
    rows: list[tuple[Any, ...]] = []
    for example in _most_different(story.examples, 3):
        for number, (name, (answer, gold)) in enumerate(example["picks"].items()):
            rows.append(("" if number else example["prompt"], name, f"{gold:.2f}", answer))
    return Section(
        "Choices to look at",
        ("The prompts on which the models' choices among all 64 answers differ most.",),
        Table(("prompt", "model", "gold", "its choice"), tuple(rows)),
    )


def _most_different(examples: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    def spread(example: dict[str, Any]) -> float:
        golds = [gold for _, gold in example["picks"].values()]
        return max(golds) - min(golds)

    return sorted(examples, key=spread, reverse=True)[:count]


def _times(story: Story) -> Section:
    return Section(
        "Where the time went", table=Table(("phase", "seconds"), tuple((name, f"{value:.0f}") for name, value in story.seconds.items()))
    )


def _loading(directory: RunDirectory) -> Section:
    code = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{directory.path}/umm/model")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{directory.path}/umm/model")\n'
        'chat = [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "Mars."}]\n'
        "text = tokenizer.apply_chat_template(chat, tokenize=False)\n"
        'reward = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0]'
    )
    return Section("Load it", (f"Every model lies in {directory.path}/<recipe>/model and needs nothing but transformers.",), code=code)
