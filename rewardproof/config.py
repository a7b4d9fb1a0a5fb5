"""Typed, strict configuration: YAML files, `key=value` overrides, and messages that name the nearest valid key.

Each room declares its own `Section` beside the code that reads it; this module only knows how to parse. It does not know any setting.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rewardproof.errors import ConfigError

OVERRIDE = re.compile(r"^[a-z_][a-z0-9_]*(?:\.[A-Za-z0-9_]*)*=")


class Section(BaseModel):
    """A frozen group of settings; the string under a field documents it, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    return value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, int | float) else _split_commas(value)


Strings = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""A list of strings; `a,b` on the command line."""
Integers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
"""A list of whole numbers; `0,1` on the command line."""
Floats = Annotated[tuple[float, ...], BeforeValidator(_listed)]
"""A list of numbers; `0,0.5` on the command line."""
Range = Annotated[tuple[float, float], BeforeValidator(_split_commas)]
"""From where to where; `0,0.5` on the command line."""


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-5` is a number and `no` a word: PyYAML follows YAML 1.1 and reads them as a string and as false."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|nan)$"),
    list("-+0123456789."),
)
_Loader.yaml_implicit_resolvers = {
    first: sorted((pair for pair in resolvers if pair[0] != "tag:yaml.org,2002:bool"), key=lambda pair: pair[0] != "tag:yaml.org,2002:int")
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)

ConfigT = TypeVar("ConfigT", bound=Section)


def load_yaml(text: str, *, origin: str) -> dict[str, Any]:
    """Parse a YAML mapping.

    Raises:
        ConfigError: The text is not valid YAML or not a mapping; the message names `origin` and the line.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: not valid YAML ({getattr(error, 'problem', error)}); correct the file.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: got a {type(value).__name__}, expected settings as `key: value` lines.")
    return cast("dict[str, Any]", value)


def named_function(name: str, *, key: str, purpose: str = "") -> Callable[..., Any]:
    """A function of the user's own, by `module:function`.

    Args:
        name: As the setting has it.
        key: The setting, for the message.
        purpose: What the function is for, for the message.

    Raises:
        ConfigError: There is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={name}: {error}. Expected a function of a module that Python finds{', ' * bool(purpose)}{purpose}; correct it, or "
            "extend PYTHONPATH."
        ) from error


def recipe_names(verb: str = "") -> list[str]:
    """Names of the shipped recipes, sorted: all of them, or those of `train` or `align`."""
    folder = resources.files("rewardproof") / "recipes"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return [name for name in names if not verb or verb_of(load_yaml(recipe_text(name), origin=name)) == verb]


def recipe_text(recipe: str) -> str:
    """Text of a shipped recipe (by name) or of a YAML file (by path).

    Raises:
        ConfigError: Neither a shipped name nor an existing file.
    """
    if recipe in recipe_names():
        return (resources.files("rewardproof") / "recipes" / f"{recipe}.yaml").read_text()
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path.read_text()
    raise ConfigError(
        f"Unknown recipe {recipe!r}{_nearest(recipe, recipe_names())}; "
        f"shipped recipes: {', '.join(recipe_names())}. Name one of them or give the path of a YAML file."
    )


def load_recipe(recipe: str, *, verb: Literal["train", "align"] = "train") -> dict[str, Any]:
    """Settings of a shipped recipe or YAML file, before overrides.

    Args:
        recipe: Name or path.
        verb: What is to be run.

    Raises:
        ConfigError: There is no such recipe, or it is another verb's.
    """
    settings = load_yaml(recipe_text(recipe), origin=recipe)
    other = verb_of(settings)
    if other not in (verb, ""):
        made = {"train": "trains a reward model", "align": "optimises a policy"}
        raise ConfigError(f"Recipe {recipe!r} {made[other]}, expected one that {made[verb]}; run `rewardproof {other} {recipe} OUT`.")
    return settings


def verb_of(settings: Mapping[str, Any]) -> str:
    """The verb that a recipe is for: `optimise` and `direct` are sections of `align`, `read` and `trainer` of `train`; else empty."""
    return "align" if settings.keys() & {"optimise", "direct"} else "train" if settings.keys() & {"read", "trainer"} else ""


def load_study(file: str) -> dict[str, Any]:
    """Settings of a study's YAML file, before overrides.

    Raises:
        ConfigError: There is no such file, or it is not YAML.
    """
    if not Path(file).is_file():
        raise ConfigError(f"{file} is no file, expected the YAML file of a study (settings, methods, seeds); correct the path.")
    return load_yaml(Path(file).read_text(), origin=file)


def split_tokens(tokens: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split command-line tokens into plain arguments and `key=value` overrides, order kept.

    Example:
        >>> split_tokens(["umm", "out", "seed=1", "./a=b"])
        (['umm', 'out', './a=b'], ['seed=1'])
    """
    plain: list[str] = []
    overrides: list[str] = []
    for token in tokens:
        (overrides if OVERRIDE.match(token) else plain).append(token)
    return plain, overrides


def apply_overrides(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `settings` with `key=value` overrides applied; dotted keys reach into sections.

    Example:
        >>> apply_overrides({"trainer": {"learning_rate": 1e-5}}, ["trainer.learning_rate=2e-5", "seed=3"])
        {'trainer': {'learning_rate': 2e-05}, 'seed': 3}
    """
    merged: dict[str, Any] = {key: _copied(value) for key, value in settings.items()}
    for override in overrides:
        dotted, _, text = override.partition("=")
        *parents, leaf = dotted.split(".")
        place: dict[str, Any] = merged
        for parent in parents:
            child: Any = {} if place.get(parent) is None else place[parent]
            if not isinstance(child, dict):
                raise ConfigError(f"Cannot set {dotted!r}: {parent!r} is a value, not a section; write {parent}=… instead.")
            place[parent] = child
            place = cast("dict[str, Any]", child)
        place[leaf] = _value(text)
    return merged


def _copied(value: Any) -> Any:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value


def _value(text: str) -> object:
    if not text:
        return ""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def parse(kind: type[ConfigT], settings: Mapping[str, Any]) -> ConfigT:
    """Validate settings against a `Section`.

    Raises:
        ConfigError: First offending key, what was got and expected, and the nearest valid key.
    """
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(_message(kind, error.errors()[0])) from error


def _message(kind: type[Section], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(kind, path[:-1])
        where = f"section {'.'.join(path[:-1])!r}" if len(path) > 1 else "the configuration"
        return f"Unknown key {key!r}{_nearest(path[-1], fields)}; {where} has: {', '.join(fields)}."
    if detail["type"] == "missing":
        return f"Missing key {key!r}: it has no default; give it as {key}=… on the command line or in the recipe."
    return f"Bad value for {key!r}: got {detail.get('input')!r}; {detail['msg'][0].lower()}{detail['msg'][1:]}."


def _fields_at(kind: type[Section], path: Sequence[str]) -> list[str]:
    current = kind
    for part in path:
        field = current.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        nested = [entry for entry in candidates if isinstance(entry, type) and issubclass(entry, Section)]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    return _nearest(name, list(known))


def dump_yaml(section: Section) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
