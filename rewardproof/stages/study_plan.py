"""What a study consists of: its file, and the cells (setting, method, seed) that it unfolds to, each with its resolved configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from rewardproof.config import Integers, Section, Strings, load_recipe, nearest_hint, parse
from rewardproof.errors import ConfigError
from rewardproof.merging.experts import Merge
from rewardproof.stages.train import Train, check_settings

SEED_STRIDE = 1000
"""Distance of two cells' training seeds, so that the members of one are never the members of the next."""
OWNED = ("seed", "split_seed")
NAME = re.compile(r"[a-z0-9][a-z0-9_.]*(?:-[a-z0-9_.]+)*")
PLACEHOLDER = re.compile(r"\$([A-Za-z_]\w*)")


class Study(Section):
    """Methods by settings by seeds."""

    name: str
    """Of the study; the folder in `results/`."""
    settings: dict[str, dict[str, Any]]
    """Keys of `train` that make a setting, above all `data`; `$NAME` stands for `paths.NAME`."""
    methods: dict[str, dict[str, Any]]
    """Either `recipe`, keys of `train`, and `reuse` (a method whose model of the same setting and seed is the first member); or `of` (a
    method that leaves a mixture) with `take: moe` (judge the mixture itself) or `merge` (fold it in another way)."""
    seeds: Integers = (0,)
    """Each draws its own split by prompt, its own data order and its own initial weights."""
    common: dict[str, Any] = {}
    """Keys of `train` for every cell."""
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
        of: The method whose mixture is used, or nothing.
        merge: How that mixture is folded; `None` judges it as it is.
    """

    setting: str
    method: str
    seed: int
    config: Train
    parents: tuple[str, ...] = ()
    of: str = ""
    merge: Merge | None = None

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
    return (str(settings["of"]),) if "of" in settings else named


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
    for layer in (study.common, study.settings[setting], own):
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
    return Cell(setting, method, seed, config, parents)


def _require_alike(parent: Cell, config: Train) -> None:
    """A reused model has to be what the first member would have been."""
    if parent.of or parent.config.members > 1:
        raise ConfigError(f"reuse={parent.method} is no single training run, expected one: only that can be a member. Name another method.")
    found = first_difference(parent.config.model_dump(mode="json"), config.model_dump(mode="json"), skip=("members", "reuse"))
    if found:
        raise ConfigError(
            f"reuse={parent.method}, but it has {found.key}={found.old!r} where this method has {found.new!r}; expected equal settings, or "
            "the members would not be of one kind. Make them equal, or drop reuse."
        )


def _derived(study: Study, where: tuple[str, str, int], made: Mapping[str, Cell]) -> Cell:
    setting, method, seed = where
    own = study.methods[method]
    for key in own:
        if key not in ("of", "take", "merge"):
            raise ConfigError(
                f"Unknown key {key!r}{nearest_hint(key, ('take', 'merge'))}; a method with `of` has take: moe, or merge: {{…}}."
            )
    if ("take" in own) == ("merge" in own):
        raise ConfigError("Got `of` with both or neither of `take` and `merge`, expected one of them: what shall be done? Write take: moe.")
    if "take" in own and own["take"] != "moe":
        raise ConfigError(f"Got take={own['take']!r}, expected moe: that is what a run with experts leaves. Write take: moe.")
    parent = made[str(own["of"])]
    if parent.of or parent.config.upcycle is None or parent.config.members > 1:
        raise ConfigError(f"of={parent.method} leaves no mixture, expected a method whose recipe upcycles; name another.")
    merge = None
    if "merge" in own:
        base = parent.config.merge.model_dump() if parent.config.merge else {}
        merge = parse(Merge, deep_merge(base, cast("dict[str, Any]", own["merge"] or {})))
        _require_unseen_prompts(parent, merge)
    return Cell(setting, method, seed, parent.config, (parent.method,), parent.method, merge)


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


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; sections are merged key by key.

    Example:
        >>> deep_merge({"read": {"on_bad": "drop"}, "split": 0.2}, {"read": {"max_groups": 5}})
        {'read': {'on_bad': 'drop', 'max_groups': 5}, 'split': 0.2}
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that two configurations do not agree on."""

    key: str
    old: Any
    new: Any


def first_difference(old: Any, new: Any, *, skip: Sequence[str] = (), prefix: str = "") -> Difference | None:
    """The first key, in order, at which two nested mappings differ.

    Example:
        >>> first_difference({"read": {"max_groups": 5}}, {"read": {"max_groups": 6}})
        Difference(key='read.max_groups', old=5, new=6)
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            found = None if key in skip else first_difference(old.get(key), new.get(key), prefix=f"{prefix}{key}.")
            if found:
                return found
        return None
    return None if old == new else Difference(prefix.removesuffix("."), old, new)


def _require_paths(cell: Cell, paths: Mapping[str, str]) -> None:
    for text in strings(cell.config.model_dump(mode="json")):
        for name in PLACEHOLDER.findall(text):
            if name not in paths and name != "OUT":
                raise ConfigError(
                    f"{cell.setting}: {text} has no path on this machine, expected one, since rows name no folders; add paths.{name}=… to "
                    "the command."
                )


def strings(value: Any) -> Iterator[str]:
    """Every string in nested plain values, keys excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from strings(entry)


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
