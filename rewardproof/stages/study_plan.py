"""What a study consists of: its file, and the cells (setting, method, seed) that it unfolds to, each with its resolved configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rewardproof.config import Integers, Section, Strings, load_recipe, nearest_hint, parse, recipe_names
from rewardproof.errors import ConfigError
from rewardproof.merging.experts import Merge
from rewardproof.scoring import Combine
from rewardproof.stages.align import Align
from rewardproof.stages.align import check_settings as check_align
from rewardproof.stages.align_against import against
from rewardproof.stages.stress_pools import PoolSettings
from rewardproof.stages.study_settings import deep_merge, first_difference, strings
from rewardproof.stages.train import Train, check_settings

SEED_STRIDE = 1000
"""Distance of two cells' training seeds, so that the members of one are never the members of the next."""
OWNED = ("seed", "split_seed")
DEEDS = ("take", "merge", "combine", "average", "align")
"""What may be done with what another method left."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.]*(?:-[a-z0-9_.]+)*")
PLACEHOLDER = re.compile(r"\$([A-Za-z_]\w*)")


class Study(Section):
    """Methods by settings by seeds."""

    name: str
    """Of the study; the folder in `results/`."""
    settings: dict[str, dict[str, Any]]
    """Keys of `train` that make a setting, above all `data`; `$NAME` stands for `paths.NAME`. Under `pools`, by name, what every model of
    the setting picks the best of n from: keys of `stress`."""
    methods: dict[str, dict[str, Any]]
    """Either `recipe`, keys of `train`, and `reuse` (a method whose model of the same setting and seed is the first member); or `of` (a
    method) with what to do with what that left: `take: moe` (judge the mixture itself), `merge` (fold it in another way), `combine` (let
    the members of an ensemble judge in another way), `average: weights` (make them one model, as WARM does), or `align` (optimise `runs`
    policies against it, by a recipe of `align`). With `align`, `reward` may name more than `$MODEL`, and `points` methods whose policies'
    evaluations give the thresholds of constraints."""
    seeds: Integers = (0,)
    """Each draws its own split by prompt, its own data order and its own initial weights."""
    common: dict[str, Any] = {}
    """Keys of `train` for every cell."""
    align: dict[str, Any] = {}
    """Keys of `align` for every cell that optimises policies; `optimise` is for recipes on policy, `direct` for those off policy."""
    paths: dict[str, str] = {}
    """What `$NAME` stands for on this machine; results say `$NAME`."""
    only: Strings = ()
    """Run only the cells that match such a pattern (`hh_mixed/*/0`), and those whose models they need."""
    rows: str = ""
    """Folder of rows from earlier (`results/NAME`), which are taken over first; empty starts with those in OUT alone."""
    keep_models: bool = False
    """Keep every model; otherwise it is deleted once its row and those that depend on it are written."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the study.

    Attributes:
        setting: Of the study.
        method: Of the study.
        seed: Of the study.
        config: The training run, with `$NAME` for paths; that of `of` where a mixture of another method is used.
        parents: Methods of the same setting and seed whose models are needed.
        of: The method whose model or mixture is used, or nothing.
        merge: How that mixture is folded.
        combine: How the members of that ensemble judge.
        average: Make the members of that ensemble one model.
        align: How policies are optimised against it. Without any of these, the mixture is judged as it is.
        runs: How many policies.
        points: Methods of the same setting and seed in whose policies its thresholds are found.
        pools: What the model picks the best of n from.
    """

    setting: str
    method: str
    seed: int
    config: Train
    parents: tuple[str, ...] = ()
    of: str = ""
    merge: Merge | None = None
    combine: Combine | None = None
    average: bool = False
    align: Align | None = None
    runs: int = 1
    points: tuple[str, ...] = ()
    pools: Mapping[str, PoolSettings] = field(default_factory=dict)

    @property
    def takes_mixture(self) -> bool:
        """Whether what it needs of `of` is the mixture, not the delivered model."""
        return bool(self.of) and not self.of_ensemble and self.align is None

    @property
    def of_ensemble(self) -> bool:
        """Whether it does something with the members of an ensemble."""
        return self.average or self.combine is not None

    @property
    def name(self) -> str:
        """The cell as the user reads it."""
        return f"{self.setting}/{self.method}/{self.seed}"

    @property
    def file(self) -> str:
        """The name of its row."""
        return f"{self.setting}--{self.method}--{self.seed}.json"

    def folder(self, out: Path, method: str = "") -> Path:
        """Where its run lies, or that of another method of the same setting and seed."""
        return out / "runs" / self.setting / (method or self.method) / str(self.seed)

    def settings(self) -> dict[str, Any]:
        """Everything that decides its numbers, in plain values."""
        found: dict[str, Any] = {"train": self.config.model_dump(mode="json")}
        if self.of:
            found["of"] = self.of
            found["merge"] = self.merge.model_dump(mode="json") if self.merge else None
        if self.combine is not None:
            found["combine"] = self.combine.model_dump(mode="json")
        if self.average:
            found["average"] = "weights"
        if self.align is not None:
            found |= {"align": self.align.model_dump(mode="json"), "runs": self.runs}
        if self.pools:
            found["pools"] = {name: pool.model_dump(mode="json") for name, pool in self.pools.items()}
        return found


def unfold(study: Study) -> list[Cell]:
    """All cells, setting by setting and seed by seed, each directly after the one whose model it needs.

    Raises:
        ConfigError: Names the setting, method or key that cannot be.
    """
    for kind, names in (("setting", study.settings), ("method", study.methods)):
        if not names:
            raise ConfigError(f"The study has no {kind}s, expected at least one: without them there is no cell. Name one under {kind}s:.")
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"Got the {kind} name {name!r}, expected lower-case letters, digits, single - and _ or .: it names files; rename it."
                )
    if not study.seeds or len(set(study.seeds)) != len(study.seeds) or min(study.seeds) < 0:
        raise ConfigError(
            f"Got seeds={list(study.seeds)}, expected one or more different numbers from 0, since a seed is a row; correct them."
        )
    order = _ordered(study.methods)
    cells = [cell for setting in study.settings for seed in study.seeds for cell in _cells(study, setting, seed, order)]
    for cell in cells:
        _require_paths(cell, study.paths)
    return _selected(cells, study.only)


def _ordered(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods, each after those it needs and directly after the last of them.

    Raises:
        ConfigError: A method needs one that does not exist, or itself.
    """
    order: list[str] = []
    for name, settings in methods.items():
        for parent in _parents(settings):
            if parent not in methods:
                raise ConfigError(
                    f"Method {name!r} needs {parent!r}{nearest_hint(parent, methods)}, expected a method of the study: "
                    f"{', '.join(methods)}. Name one of them, or add it."
                )

    def place(name: str) -> None:
        order.append(name)
        for child, settings in methods.items():
            if child not in order and name in _parents(settings) and set(_parents(settings)) <= set(order):
                place(child)

    for name, settings in methods.items():
        if not _parents(settings):
            place(name)
    circular = [name for name in methods if name not in order]
    if circular:
        raise ConfigError(
            f"Methods {', '.join(circular)} need each other in a circle, expected one that needs none: no cell could be the first. "
            "Change their `of` or `reuse`."
        )
    return order


def _parents(settings: Mapping[str, Any]) -> tuple[str, ...]:
    reuse = settings.get("reuse", ())
    named = (reuse,) if isinstance(reuse, str) else tuple(reuse)
    return (str(settings["of"]), *settings.get("points", ())) if "of" in settings else named


def _cells(study: Study, setting: str, seed: int, order: Sequence[str]) -> Iterator[Cell]:
    made: dict[str, Cell] = {}
    for method in order:
        settings = study.methods[method]
        make = _derived if "of" in settings else _trained
        try:
            made[method] = make(study, (setting, method, seed), made)
        except ConfigError as error:
            raise ConfigError(f"{setting}/{method}: {error}") from error
        yield made[method]


def _trained(study: Study, where: tuple[str, str, int], made: Mapping[str, Cell]) -> Cell:
    setting, method, seed = where
    own = dict(study.methods[method])
    parents = _parents(own)
    own.pop("reuse", None)
    if "recipe" not in own:
        raise ConfigError(
            "Missing `recipe` or `of`: expected what to train or whose mixture to use, since a method is one of both; add it."
        )
    keys: dict[str, Any] = load_recipe(str(own.pop("recipe")))
    chosen = {key: value for key, value in study.settings[setting].items() if key != "pools"}
    for layer in (study.common, chosen, own):
        for key in OWNED:
            if key in layer:
                raise ConfigError(
                    f"Got {key}={layer[key]!r}, expected none: the study sets it from `seeds`, or rows would not differ. Drop it."
                )
        keys = deep_merge(keys, layer)
    keys |= {"seed": SEED_STRIDE * seed, "split_seed": seed, "reuse": [f"$OUT/runs/{setting}/{parent}/{seed}/model" for parent in parents]}
    config = parse(Train, keys)
    check_settings(config)
    if not config.eval_data and not config.split:
        raise ConfigError(
            "split=0 without eval_data holds nothing out, expected held-out prompts: a row is their accuracy. Write split=0.4."
        )
    for parent in parents:
        _require_alike(made[parent], config)
    return Cell(setting, method, seed, config, parents, pools=_pools(study, setting))


def _pools(study: Study, setting: str) -> dict[str, PoolSettings]:
    pools = study.settings[setting].get("pools", {})
    if not isinstance(pools, Mapping) or not all(isinstance(keys, Mapping) for keys in pools.values()):
        raise ConfigError(f"Got pools={pools!r}, expected settings by name; write pools: {{NAME: {{pool: …}}}}.")
    return {name: parse(PoolSettings, keys) for name, keys in pools.items()}


def _require_alike(parent: Cell, config: Train) -> None:
    """A reused model has to be what the first member would have been."""
    if parent.of or parent.config.members > 1:
        raise ConfigError(f"reuse={parent.method} is no single training run, expected one: only that can be a member. Name another method.")
    found = first_difference(parent.config.model_dump(mode="json"), config.model_dump(mode="json"), skip=("members", "reuse", "ensemble"))
    if found:
        raise ConfigError(
            f"reuse={parent.method}, but it has {found.key}={found.old!r} where this method has {found.new!r}; expected equal settings, or "
            "the members would not be of one kind. Make them equal, or drop reuse."
        )


def _derived(study: Study, where: tuple[str, str, int], made: Mapping[str, Cell]) -> Cell:
    setting, method, seed = where
    own = study.methods[method]
    for key in own:
        if key not in ("of", "runs", "points", *DEEDS):
            raise ConfigError(f"Unknown key {key!r}{nearest_hint(key, DEEDS)}; a method with `of` has one of {', '.join(DEEDS)}.")
    deeds = [key for key in DEEDS if key in own]
    if len(deeds) != 1:
        raise ConfigError(
            f"Got `of` with {' and '.join(deeds) or 'none'} of {', '.join(DEEDS)}, expected one: what shall be done? Write take: moe."
        )
    if "take" in own and own["take"] != "moe":
        raise ConfigError(f"Got take={own['take']!r}, expected moe: that is what a run with experts leaves. Write take: moe.")
    parent = made[str(own["of"])]
    cell = Cell(setting, method, seed, parent.config, (parent.method, *parent.parents), parent.method, pools=_pools(study, setting))
    keys: Any = own[deeds[0]] or {}
    for key in ("runs", "points"):
        if key in own and deeds[0] != "align":
            raise ConfigError(f"Got {key}={own[key]!r} with {deeds[0]}, expected it with align alone: it is of policies. Drop it.")
    if deeds[0] in ("merge", "combine", "align") and not isinstance(keys, Mapping):
        raise ConfigError(f"Got {deeds[0]}={keys!r}, expected settings; write {deeds[0]}: {{…}}.")
    if deeds[0] == "align":
        return _aligned(study, cell, parent, keys)
    if deeds[0] in ("combine", "average"):
        return _of_members(cell, parent, deeds[0], keys)
    if parent.of or parent.config.upcycle is None or parent.config.members > 1:
        raise ConfigError(f"of={parent.method} leaves no mixture, expected a method whose recipe upcycles; name another.")
    if deeds[0] == "take":
        return cell
    base = parent.config.merge.model_dump() if parent.config.merge else {}
    merge = parse(Merge, deep_merge(base, keys))
    _require_unseen_prompts(parent, merge)
    return replace(cell, merge=merge)


def _of_members(cell: Cell, parent: Cell, deed: str, keys: Any) -> Cell:
    """The members of an ensemble judging in another way, or made one model."""
    if parent.of or parent.config.ensemble is None:
        raise ConfigError(f"of={parent.method} is no ensemble, expected one whose members can be joined in another way; name another.")
    if deed == "combine":
        return replace(cell, combine=parse(Combine, deep_merge(parent.config.ensemble.model_dump(), keys)))
    if keys != "weights":
        raise ConfigError(f"Got average={keys!r}, expected weights: scores are averaged by combine. Write average: weights.")
    if parent.config.head.init == "normal":
        raise ConfigError(
            f"Got average=weights of {parent.method}, whose members drew a head each (head.init=normal), expected one head for all: "
            "weights learned for different heads do not average. Use recipe warm, or head.init=zero or probe."
        )
    return replace(cell, average=True)


def _aligned(study: Study, cell: Cell, parent: Cell, keys: Mapping[str, Any]) -> Cell:
    """Policies against what another method left; a policy's own seed is counted from the cell's."""
    if parent.align is not None:
        raise ConfigError(f"of={parent.method} leaves policies, expected a method that leaves a reward model; name another.")
    named = {**study.align, **keys}
    if "recipe" not in named:
        raise ConfigError(f"Missing align.recipe, expected one of {', '.join(recipe_names('align'))}; add it.")
    if "seed" in named:
        raise ConfigError(f"Got align.seed={named['seed']!r}, expected none: the study sets it. Drop it.")
    recipe = load_recipe(str(named["recipe"]), verb="align")
    other = ("optimise", "feedback") if "direct" in recipe else ("direct",)
    shared = {key: value for key, value in study.align.items() if key not in other}
    settings = deep_merge(deep_merge(recipe, shared), keys)
    settings.pop("recipe")
    folder = f"$OUT/runs/{cell.setting}"
    points = tuple(study.methods[cell.method].get("points", ()))
    if points:
        seen = [f"{folder}/{method}/{cell.seed}/{number}" for method in points for number in range(_runs(study, method))]
        settings = deep_merge(settings, {"proxy_points": {"runs": seen}})
    settings = against(f"{folder}/{parent.method}/{cell.seed}/model", settings, key="align")
    align = parse(Align, {**settings, "seed": SEED_STRIDE * cell.seed})
    check_align(align)
    of = {"merge": parent.merge, "combine": parent.combine, "average": parent.average}
    return replace(cell, align=align, runs=_runs(study, cell.method), points=points, parents=(*cell.parents, *points), pools={}, **of)


def _runs(study: Study, method: str) -> int:
    """How many policies a method has."""
    if "align" not in study.methods[method]:
        raise ConfigError(f"points has {method}, expected methods with align: thresholds are found in policies. Name another.")
    runs = study.methods[method].get("runs", 1)
    if not isinstance(runs, int) or runs < 1:
        raise ConfigError(f"Got runs={runs!r}, expected how many policies, 1 or more; correct it.")
    return runs


def _require_unseen_prompts(parent: Cell, merge: Merge) -> None:
    """Coefficients are learned on prompts that the experts never saw."""
    before = parent.config.merge
    if merge.method == "learned" and (before is None or before.method != "learned" or before.held_out != merge.held_out):
        kept = "none" if before is None or before.method != "learned" else f"held_out={before.held_out}"
        raise ConfigError(
            f"merge.method=learned with held_out={merge.held_out}, but {parent.method} kept {kept} of its prompts from the experts: "
            "coefficients must be learned on prompts that they never saw. Give both methods the same merge.method and held_out, or write "
            "merge.method=routing_mass."
        )


def _require_paths(cell: Cell, paths: Mapping[str, str]) -> None:
    for text in strings(cell.settings()):
        for name in PLACEHOLDER.findall(text):
            if name not in paths and name != "OUT":
                raise ConfigError(
                    f"{cell.setting}: {text} has no path on this machine, expected one, since rows name no folders; add paths.{name}=… to "
                    "the command."
                )


def _selected(cells: Sequence[Cell], only: Strings) -> list[Cell]:
    if not only:
        return list(cells)
    for pattern in only:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            raise ConfigError(
                f"only={pattern} matches no cell, expected SETTING/METHOD/SEED with * for any, as in {cells[0].name}; correct it."
            )
    wanted = {cell.name for cell in cells if any(fnmatchcase(cell.name, pattern) for pattern in only)}
    for cell in reversed(cells):
        if cell.name in wanted:
            wanted |= {f"{cell.setting}/{parent}/{cell.seed}" for parent in cell.parents}
    return [cell for cell in cells if cell.name in wanted]
