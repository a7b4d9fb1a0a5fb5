"""DMoERM's phases: a router, and for each category a first model, its experts by capability, and the network over them.

Every phase leaves what it made in `OUT/model` and says so; a run that goes on does not make it again. `dmoerm.yaml` is written last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rewardproof.artifacts import is_main
from rewardproof.data import Group
from rewardproof.data.capability_labels import Labels, Points, category_of, point_pairs
from rewardproof.errors import DataError
from rewardproof.models.checkpoints import load_reward_model
from rewardproof.models.double_mixture import (
    CapabilityExperts,
    QueryRouter,
    adapter_name,
    add_experts,
    expert_parameters,
    load_experts,
    put_category_head,
    save_expert,
    switch_to,
)
from rewardproof.models.families import family_of
from rewardproof.models.packed import position_table
from rewardproof.models.precision import default_device
from rewardproof.models.saving import save_reward_model
from rewardproof.models.trunk import group_key
from rewardproof.models.upcycling import first_differing, select_layers
from rewardproof.scoring import DoubleMixture, Scale
from rewardproof.scoring.double_mixture import BASE, EXPERTS, ROUTER, CategoryEntry, DoubleMixtureFile, load_category, write_file
from rewardproof.stages.member_context import Member, MemberContext, fitted
from rewardproof.stages.training_report import scored
from rewardproof.training.batches import TrainingSet
from rewardproof.training.double_mixture import (
    Capabilities,
    CategorySets,
    Phase,
    QueryLabels,
    category_sets,
    enough,
    n_pairs,
    part_of,
    query_set,
)
from rewardproof.training.fit import Fit
from rewardproof.training.processes import agreed, wait

LABELS = "capability_labels.jsonl"
GENERAL = "general"
"""Folder of the model that judges categories too small for experts."""
REFERENCE_GROUPS = 200
"""Training groups, chosen by a hash of their tokens, over which a category gets its zero and its unit."""


@dataclass(slots=True)
class _Labelled:
    """Category and capability pairs of groups, in their order, and what is to be reported of how they came about."""

    categories: list[str]
    points: list[Points] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> list[Mapping[str, Any]]:
        """The pairs by point of every group."""
        return [entry.pairs for entry in self.points]


def train_double_mixture(context: MemberContext) -> tuple[Member, DoubleMixture]:
    """Train a router and all categories' experts into `OUT/model`, and load what was made.

    Returns:
        What is to be reported, and the scorer.

    Raises:
        DataError: Prompts without a category, fewer than two categories, or too few pairs.
        ConfigError: Labels that nobody gives.
    """
    course = _Course.of(context)
    training, held_out = course.label_categories()
    names = sorted({name for name in training.categories if name})
    if len(names) < 2:
        raise DataError(
            f"{', '.join(context.config.data)}: got {len(names)} categories in column {course.labels.category!r}, expected two or more: "
            "with one there is nothing to route. Name the column with labels.category, or train recipe dense."
        )
    router = course.router(training, names)
    course.label_points(training, held_out, names)
    sets = {name: course.sets(training, name) for name in names}
    taught = {name: enough(found, name, course.settings) for name, found in sets.items()}
    entries: list[CategoryEntry] = []
    for number, name in enumerate(names):
        folder = f"categories/{number}" if taught[name] else GENERAL
        entry = CategoryEntry(name=name, folder=folder, points=taught[name])
        entries.append(course.category(entry, sets[name], sets))
    if is_main():
        reference = f"answers of up to {REFERENCE_GROUPS} training groups of the category" if course.settings.calibrate else ""
        bias = tuple(router["bias"])
        content = DoubleMixtureFile(reads=course.settings.reads, router_bias=bias, categories=tuple(entries), reference=reference)
        write_file(course.target, content)
    wait()
    delivered = DoubleMixture.load(course.target, precision=context.config.compute.precision)
    course.share_trunks(delivered)
    course.summary["labels"] = {"training": training.counts, "held_out": held_out.counts}
    if context.prepared.held_out:
        from rewardproof.stages.double_mixture_judging import judge_parts

        baselines = {entry.name: course.baseline_place(entry) for entry in entries} if course.settings.baseline else {}
        course.summary["held_out"] = judge_parts(context, delivered, entries, held_out.categories, held_out.pairs, baselines)
    return Member(delivered.models[0].model, course.summary), delivered


@dataclass(slots=True)
class _Course:
    """One run through the phases."""

    context: MemberContext
    settings: Capabilities
    target: Path
    summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: MemberContext) -> _Course:
        """Begin, in a directory that nobody takes for a whole model until the end."""
        assert context.config.capabilities is not None
        return cls(context, context.config.capabilities, context.directory.path / "model")

    @property
    def labels(self) -> Labels:
        """Where categories and capabilities come from."""
        return self.context.config.labels or Labels()

    def label_categories(self) -> tuple[_Labelled, _Labelled]:
        """Categories of training and held-out groups; under `fail` a training prompt has to have one."""
        prepared, column = self.context.prepared, self.labels.category
        training, held_out = (
            _Labelled([category_of(group, column) for group in groups]) for groups in (prepared.training, prepared.held_out)
        )
        missing = [group for group, name in zip(prepared.training, training.categories, strict=True) if not name]
        if missing and self.labels.unlabelled == "fail":
            raise DataError(
                f"{missing[0].origin or missing[0].id}: got a prompt without a category in column {column!r} (one of {len(missing)}), "
                "expected its category: experts learn by it. Name another column with labels.category, or write labels.unlabelled=drop or "
                "route, which asks the trained router."
            )
        training.counts["without_category"] = len(missing)
        return training, held_out

    def router(self, training: _Labelled, names: Sequence[str]) -> dict[str, Any]:
        """Train the router on the queries, and let it label the prompts that have no category where that is asked for."""
        context, prepared = self.context, self.context.prepared
        found = self.finished("router")
        if found is None:
            model = self.fresh_base()
            put_category_head(model, names)
            label_of = {index: names.index(name) for index, name in enumerate(training.categories) if name}
            validation = [self.part(group) == "validation" for group in prepared.training]
            of_train, of_validation = (
                query_set(
                    prepared.training,
                    prepared.training_tokens,
                    [index in label_of and held == wanted for index, held in enumerate(validation)],
                    limit=position_table(model),
                )
                for wanted in (False, True)
            )
            layers = select_layers(self.settings.router_layers or context.config.layers, len(family_of(model).layer_list(model)))
            plan = self.plan(model, "router", "router", of_train, of_validation)
            found = fitted(replace(plan, layers=layers, auxiliaries=lambda _: (QueryLabels(model.get_submodule("score"), label_of),)))
            found |= {"prompts": len(of_train), "validation_prompts": len(of_validation)}
            found["bias"] = self.saved_router(model, names)
            self.finish("router", found)
        if self.labels.unlabelled == "route" and "" in training.categories:
            self.route_unlabelled(training, names, found["bias"])
        self.summary["router"] = {name: value for name, value in found.items() if name != "bias"}
        return found

    def saved_router(self, model: PreTrainedModel, names: Sequence[str]) -> tuple[float, ...]:
        """Write the router, and give the offsets that a stock classifier has no place for."""
        head = model.get_submodule("score")
        if is_main():
            dtype = self.context.config.compute.weights_dtype
            QueryRouter(model, names).save(self.target / ROUTER, self.context.tokenizer, dtype=dtype)
        return tuple(head.get_parameter("bias").tolist())

    def route_unlabelled(self, training: _Labelled, names: Sequence[str], bias: Sequence[float]) -> None:
        """Give prompts without a category that which the router chooses; those it cannot read, being too long, stay without."""
        router = QueryRouter.load(self.target / ROUTER, bias, names, precision=self.context.config.compute.precision)
        router.model.to(default_device())  # pyright: ignore[reportArgumentType]
        asked = [entry for entry in self.context.prepared.training_tokens if not training.categories[entry.index] and entry.queries]
        for entry, name in zip(asked, router.route([entry.queries for entry in asked]), strict=True):
            training.categories[entry.index] = name
        training.counts["routed"] = len(asked)

    def label_points(self, training: _Labelled, held_out: _Labelled, names: Sequence[str]) -> None:
        """Capability pairs of the groups that experts learn from or are judged by; whoever is asked is asked about no others."""
        context, prepared = self.context, self.context.prepared
        for labelled, groups in ((training, prepared.training), (held_out, prepared.held_out)):
            wanted = [name if name in names else "" for name in labelled.categories]
            if labelled is training and self.settings.points_on == "base":
                wanted = [name if self.part(group) != "mix" else "" for name, group in zip(wanted, groups, strict=True)]
            file = context.directory.path / LABELS if is_main() else None
            limit = context.config.read.pairs_per_group
            found = point_pairs(groups, wanted, self.labels, limit=limit, kept=file, progress=context.progress) if is_main() else None
            labelled.points, counts = agreed(found)  # pyright: ignore[reportGeneralTypeIssues]
            labelled.counts.update(counts)

    def part(self, group: Group) -> str:
        """Which part of its category's prompts a training group belongs to."""
        return part_of(group, self.settings, split_seed=self.context.config.split_seed)

    def sets(self, training: _Labelled, name: str) -> CategorySets:
        """What one category's phases train on."""
        return category_sets(
            self.context.prepared,
            training.categories,
            training.pairs,
            self.settings,
            category=name,
            split_seed=self.context.config.split_seed,
        )

    def category(self, entry: CategoryEntry, own: CategorySets, sets: Mapping[str, CategorySets]) -> CategoryEntry:
        """Train what one category needs, and give the entry with its zero and its unit."""
        found: dict[str, Any] = {"rows": own.counts(), "points": entry.points}
        self.summary.setdefault("categories", {})[entry.name] = found
        if entry.points:
            found["base"] = self.base(entry.folder, own.human["base"], own.human["validation"], entry.name)
            found["experts"] = self.experts(entry, own)
            found["mixer"] = self.mixer(entry, own)
        else:
            found["fallback"] = True
            self.general(sets)
        if self.settings.baseline and entry.points:
            found["baseline"] = self.baseline(entry, own)
        model = load_category(self.target / entry.folder, entry.points, precision=self.context.config.compute.precision)
        self.share_trunk(model)
        found["passes"] = 1 + max(1, len(entry.points))
        found["forward_gflops"] = float(f"{2 * model.products / 1e9:.4g}")
        if not self.settings.calibrate:
            return entry
        reference = sorted(own.reference, key=group_key)[:REFERENCE_GROUPS]
        scale = Scale.of(scored(model, reference, self.context.progress), name=f"category {entry.name}")
        found |= {"mean": scale.mean, "std": scale.std}
        return entry.model_copy(update={"mean": scale.mean, "std": scale.std})

    def general(self, sets: Mapping[str, CategorySets]) -> None:
        """Train, once, the model that judges the categories without experts: on all that every category learns from."""
        if GENERAL not in self.summary:
            train = TrainingSet([group for some in sets.values() for group in some.both.groups])
            validation = TrainingSet([group for some in sets.values() for group in some.human["validation"].groups])
            self.summary[GENERAL] = self.base(GENERAL, train, validation, GENERAL)

    def base(self, folder: str, train: TrainingSet, validation: TrainingSet, what: str) -> dict[str, Any]:
        """Phase 1: a reward model from the language model, on the first part of a category's preferences."""
        return self.dense(f"{folder.replace('/', '-')}-base", self.target / folder / BASE, (train, validation), f"{what}: base")

    def baseline(self, entry: CategoryEntry, own: CategorySets) -> dict[str, Any]:
        """What phase 1 gives on all preferences that a category's experts and network get to see; for comparison alone."""
        part = f"{entry.folder.replace('/', '-')}-baseline"
        return self.dense(part, self.baseline_place(entry), (own.both, own.human["validation"]), f"{entry.name}: baseline")

    def baseline_place(self, entry: CategoryEntry) -> Path:
        """Where a category's baseline is until the run has ended."""
        if not entry.points:
            return self.target / entry.folder / BASE
        return self.context.directory.path / "checkpoints" / "baselines" / entry.folder

    def dense(self, part: str, place: Path, sets: tuple[TrainingSet, TrainingSet], what: str) -> dict[str, Any]:
        """A reward model trained from the language model, saved at a place, or what is known of it from an interrupted run."""
        if (found := self.finished(part)) is not None:
            return found
        model = self.fresh_base()
        found = fitted(self.plan(model, part, "base", *sets, what=what))
        if is_main():
            save_reward_model(model, self.context.tokenizer, place, dtype=self.context.config.compute.weights_dtype)
        return self.finish(part, found)

    def experts(self, entry: CategoryEntry, own: CategorySets) -> dict[str, Any]:
        """Phase 2: an adapter and a head a capability point, on the frozen model of phase 1, each on its own pairs alone."""
        parts = [f"{entry.folder.replace('/', '-')}-{adapter_name(number)}" for number in range(len(entry.points))]
        found = [self.finished(part) for part in parts]
        if None in found:
            config = self.context.config
            model = self.loaded_base(entry.folder)
            layers = select_layers(config.layers, len(family_of(model).layer_list(model)))
            adapted = add_experts(model, layers, len(entry.points), self.settings.lora, seed=config.seed)
        for number, (part, point) in enumerate(zip(parts, entry.points, strict=True)):
            if found[number] is not None:
                continue
            switch_to(model, number)
            what = f"{entry.name}: {point}"
            plan = self.plan(model, part, "experts", own.points[point], own.point_validation[point], what=what)
            # Without settings of its own the head learns at its adapter's rate: the network reads states, which it must not run ahead of.
            found[number] = fitted(replace(plan, lora={}, head=None, trainable=_parameters_of(number)))
            if is_main():
                save_expert(adapted, number, self.target / entry.folder / EXPERTS)
            self.finish(part, found[number] or {})
        return dict(zip(entry.points, found, strict=True))

    def mixer(self, entry: CategoryEntry, own: CategorySets) -> dict[str, Any]:
        """Phase 3: the network over the frozen experts' states, on the preferences that phase 1 was not shown."""
        part = f"{entry.folder.replace('/', '-')}-mixer"
        if (found := self.finished(part)) is not None:
            return found
        model = self.loaded_base(entry.folder)
        load_experts(model, self.target / entry.folder / EXPERTS, len(entry.points))
        experts = CapabilityExperts(model, entry.points, seed=self.context.config.seed)
        plan = self.plan(model, part, "mixer", own.human["mix"], own.human["validation"], what=f"{entry.name}: mixture")
        with experts.keeping():
            found = fitted(replace(plan, lora={}, head=None, experts=experts, trainable=lambda _: ()))
        if is_main():
            experts.save_mixer(self.target / entry.folder)
        return self.finish(part, found)

    def plan(self, model: PreTrainedModel, part: str, phase: Phase, train: TrainingSet, validation: TrainingSet, *, what: str = "") -> Fit:
        """How one part is trained: the run's settings and the phase's own."""
        config = self.context.config
        plan = self.context.plan(model, self.context.directory.path / "checkpoints" / part, config.seed, what or part)
        trainer = self.settings.trainer_of(phase, config.trainer)
        if (len(validation) if phase == "router" else n_pairs(validation)) < self.settings.min_validation:
            validation = TrainingSet([])
            trainer["eval_strategy"] = "no"
        head = config.head.model_copy(update={"init": "keep"}) if phase == "router" else config.head
        return replace(plan, train=train, held_out=validation, trainer=trainer, head=head, patience=self.settings.patience)

    def fresh_base(self) -> PreTrainedModel:
        """The language model as it was before any phase."""
        from rewardproof.stages.members import base_model

        return base_model(self.context, self.context.config.seed)

    def loaded_base(self, folder: str) -> PreTrainedModel:
        """What phase 1 left: read from disk, so that the experts grow on what is delivered, to the last bit."""
        return load_reward_model(str(self.target / folder / BASE))[0].to(default_device())  # pyright: ignore[reportArgumentType]

    def share_trunk(self, model: Any) -> None:
        """Let a model keep what its frozen layers put out on disk, for those that have them in common."""
        config = self.context.config
        first = first_differing(config.layers, len(family_of(model.model).layer_list(model.model)))
        model.share_trunk(first, limit_gb=config.compute.trunk_cache_gb)

    def share_trunks(self, delivered: DoubleMixture) -> None:
        """The same of all categories."""
        for model in delivered.models:
            self.share_trunk(model)

    def finished(self, part: str) -> dict[str, Any] | None:
        """What is to be reported of a part that an interrupted run finished."""
        file = self.context.directory.path / "checkpoints" / f"{part}.json"
        return agreed(json.loads(file.read_text()) if self.context.resume and is_main() and file.is_file() else None)

    def finish(self, part: str, found: dict[str, Any]) -> dict[str, Any]:
        """Say that a part is finished, once all of it is written."""
        self.context.directory.write_json(f"checkpoints/{part}.json", found)
        wait()
        return found


def _parameters_of(number: int) -> Callable[[PreTrainedModel], Sequence[Any]]:
    return lambda model: expert_parameters(model, number)
