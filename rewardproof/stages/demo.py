"""`rewardproof demo [OUT]`: the whole story on the embedded model and world, on a CPU.

Noisy preferences train `dense`, `warm` and `umm`; each picks among shipped answers; the program that knows the truth judges the picks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewardproof.artifacts import Progress, Report, RunDirectory, silent
from rewardproof.config import Section, apply_overrides, load_recipe, parse
from rewardproof.data import Group, read_groups
from rewardproof.evaluation import AccuracyReport, BestOfNRuns, Hacking, pair_accuracy
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import select_layers
from rewardproof.scoring import CheckableGold
from rewardproof.stages.demo_page import write_demo_page
from rewardproof.stages.train import Train
from rewardproof.stages.train import run as run_train
from rewardproof.stages.training_report import scored
from rewardproof.statistics import Interval

WORLD = "embedded:checkable"


class Demo(Section):
    """Sizes of the demo: small enough for two CPU cores; the recipes' own defaults stay as published."""

    model: str = "embedded:smollm2-135m"
    """The language model to start from."""
    layers: str = "top:4"
    """Layers that train."""
    pairs: int = 800
    """Training preferences, one a prompt."""
    label_noise: float = 0.25
    """Share of them that is flipped."""
    epochs: int = 2
    """Passes over them."""
    learning_rate: float = 3e-4
    """Of the backbone."""
    members: int = 3
    """Models that `warm` averages; the first is `dense`."""
    n_experts: int = 4
    """Experts of `umm`, the shared one included."""
    n_active: int = 3
    """Experts that a token uses."""
    merge_steps: int = 40
    """Steps on the merge coefficients at most."""
    prompts: int = 40
    """Held-out prompts with a pool of 64 answers each."""
    evaluated: int = 200
    """Groups of each evaluation part."""
    seed: int = 0
    """Of training; the noise does not depend on it."""


@dataclass(slots=True)
class Story:
    """What the demo found.

    Attributes:
        accuracy: Pair accuracy by model and part.
        hacking: Best-of-n by model.
        gain: Gold of each model's best-of-n choice minus the dense model's, at the largest n, paired by prompt.
        seconds: Wall time by phase.
        training: `report.json` of each training run.
        examples: A prompt, and each model's pick with its gold score.
        scoring_seconds: Time to score one pool through all layers, by model.
    """

    accuracy: dict[str, dict[str, AccuracyReport]] = field(default_factory=dict)
    hacking: dict[str, Hacking] = field(default_factory=dict)
    gain: dict[str, Interval] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    scoring_seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def run(
    config: Demo, out: Path | str, *, overwrite: bool = False, progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Train three recipes on noisy preferences, let each choose among answers, and judge the choices with gold.

    Args:
        config: Sizes.
        out: Run directory; every model lies in its own subdirectory, `report.html` at the top.
        overwrite: Delete an earlier demo there.
        progress: Receives what is being done, how far, of how much.
        say: Receives one line a phase.
    """
    directory = RunDirectory(out, config, overwrite=overwrite)
    story = Story()
    models: dict[str, Path] = {}
    for recipe, own in _recipes(config, directory.path).items():
        with story.phase(f"train {recipe}"):
            settings = parse(Train, apply_overrides(load_recipe(recipe), [*_common(config), *own]))
            report = run_train(settings, directory.path / recipe, progress=progress)
        models[recipe] = directory.path / recipe / "model"
        story.training[recipe] = dict(report.results)
        say(f"{recipe}: {report.headline} ({story.seconds[f'train {recipe}']:.0f} s)")
    with story.phase("judge"):
        _judge(config, story, models, progress)
    say(f"judged by the gold program ({story.seconds['judge']:.0f} s)")
    report = directory.finish(_verdict(story, config), _results(story))
    with story.phase("report"):
        write_demo_page(directory, config, story, report.headline)
    return report


def _common(config: Demo) -> list[str]:
    return [
        f"model={config.model}", f"data={WORLD}/train", f"eval_data={WORLD}/heldout", f"layers={config.layers}", f"seed={config.seed}",
        f"read.label_noise={config.label_noise}", "read.pairs_per_group=1", f"read.max_groups={config.pairs}",
        f"trainer.num_train_epochs={config.epochs}", f"trainer.learning_rate={config.learning_rate}",
        "trainer.per_device_train_batch_size=16", "trainer.save_strategy=no", "trainer.eval_strategy=no",
    ]  # fmt: skip


def _recipes(config: Demo, out: Path) -> dict[str, list[str]]:
    return {
        "dense": [],
        "warm": [f"members={config.members}", f"reuse={out / 'dense' / 'model'}"],
        "umm": [f"upcycle.n_experts={config.n_experts}", f"upcycle.n_active={config.n_active}", f"merge.steps={config.merge_steps}"],
    }


def _judge(config: Demo, story: Story, models: dict[str, Path], progress: Progress) -> None:
    parts = {part: _some(f"{WORLD}/{part}", config.evaluated) for part in ("heldout", "shifted")}
    pools = _some(f"{WORLD}/pool64", config.prompts)
    gold = CheckableGold().score(pools)
    prompts = [group.prompt_key for group in pools]
    runs: dict[str, BestOfNRuns] = {}
    for name, path in models.items():
        model = RewardModel.load(path, precision="auto")
        model.share_trunk(_first_layer(model, config.layers), limit_gb=20.0)
        story.accuracy[name] = {part: pair_accuracy(groups, scored(model, groups, progress)) for part, groups in parts.items()}
        rewards = scored(model, pools, progress)
        story.scoring_seconds[name] = _timed(model, pools[:1])
        sizes = _sizes(len(rewards[0]))
        runs[name] = BestOfNRuns([rewards], gold, sizes, prompts)
        story.hacking[name] = runs[name].summary(seed=config.seed)
        places = [max(range(len(row)), key=row.__getitem__) for row in rewards]
        for number, (group, place) in enumerate(zip(pools, places, strict=True)):
            if number == len(story.examples):
                story.examples.append({"prompt": group.prompt_text, "picks": {}})
            story.examples[number]["picks"][name] = (group.answer_texts[place], gold[number][place])
    gains = {name: made.minus(runs["dense"]) for name, made in runs.items() if name != "dense"}
    story.gain = {name: gain for name, gain in gains.items() if gain is not None}


def _timed(model: RewardModel, groups: Sequence[Group]) -> float:
    """Fastest of three passes through all layers."""
    model.share_trunk(0, limit_gb=0.0)
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        model.score(groups)
        times.append(time.perf_counter() - started)
    return round(min(times), 3)


def _some(source: str, limit: int) -> tuple[Group, ...]:
    groups = read_groups(source, purpose="score").groups
    return tuple(sorted(groups, key=lambda group: group.prompt_key)[:limit])


def _sizes(pool: int) -> list[int]:
    return [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < pool]


def _first_layer(model: RewardModel, layers: str) -> int:
    return select_layers(layers, model.model.config.num_hidden_layers).start


def _verdict(story: Story, config: Demo) -> str:
    largest = {name: (one.gold[-1], one.ns[-1]) for name, one in story.hacking.items()}
    best = max(largest, key=lambda name: largest[name][0].estimate)
    gold, n = largest[best]
    decided = [name for name, gain in story.gain.items() if gain.low > 0 or gain.high < 0]
    others = ", ".join(f"{name} {interval.estimate:.3f}" for name, (interval, _) in largest.items() if name != best)
    certainty = f"different from dense beyond chance: {', '.join(decided)}" if decided else "no difference to dense is beyond chance"
    return (
        f"First place for {best}: its best of {n} scores gold {gold.estimate:.3f} [{gold.low:.3f}, {gold.high:.3f}] on {config.prompts} "
        f"prompts ({others}); {certainty}"
    )


def _results(story: Story) -> dict[str, Any]:
    return {
        "accuracy": {name: {part: report.as_dict() for part, report in parts.items()} for name, parts in story.accuracy.items()},
        "best_of_n": {name: one.as_dict() for name, one in story.hacking.items()},
        "gold_gain_over_dense": {name: gain.as_dict() for name, gain in story.gain.items()},
        "phases_seconds": story.seconds,
        "scoring_seconds": story.scoring_seconds,
        "training": story.training,
    }
