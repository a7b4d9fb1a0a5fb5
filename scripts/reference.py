"""The pages of docs/reference: a verb each, its command line and its settings, from the code that reads them.

python scripts/reference.py          # writes docs/reference/VERB.md
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo

from rewardproof.cli.main import app
from rewardproof.config import Section
from rewardproof.evaluation import ProxyPoints
from rewardproof.stages.align import Align
from rewardproof.stages.audit import Audit
from rewardproof.stages.demo import Demo
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.export import Export
from rewardproof.stages.merge import MergeModels
from rewardproof.stages.score import Score
from rewardproof.stages.search import Search
from rewardproof.stages.serve import Serve
from rewardproof.stages.strength import Strength
from rewardproof.stages.stress import Stress
from rewardproof.stages.study_plan import Study
from rewardproof.stages.train import Train
from rewardproof.stages.upcycle import UpcycleModel

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
SETTINGS: dict[str, type[Section]] = {
    "train": Train,
    "upcycle": UpcycleModel,
    "merge": MergeModels,
    "score": Score,
    "strength": Strength,
    "evaluate": Evaluate,
    "stress": Stress,
    "audit": Audit,
    "search": Search,
    "align": Align,
    "proxy_points": ProxyPoints,
    "export": Export,
    "serve": Serve,
    "demo": Demo,
    "study": Study,
}
"""What each verb reads as `key=value`, or as YAML where it takes a recipe or a study."""
OPTIONS = {
    "overwrite": "`--overwrite` deletes what an earlier run left in OUT",
    "resume": "`--resume` goes on with an interrupted run",
    "as_json": "`--json` prints `report.json` alone on standard output",
    "debug": "`--debug` shows the traceback of an error",
}


class Row(NamedTuple):
    """One setting, as the page shows it."""

    key: str
    kind: str
    default: str
    meaning: str


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    return {f"{verb}.md": page(verb) for verb in SETTINGS}


def page(verb: str) -> str:
    """The text of a verb's page."""
    command = next(one.callback for one in app.registered_commands if one.callback is not None and one.callback.__name__ == verb)
    usage, _, told = (inspect.getdoc(command) or "").partition(": ")
    options = [text for name, text in OPTIONS.items() if name in inspect.signature(command).parameters]
    rows = "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in settings(SETTINGS[verb]))
    return (
        f"<!-- written by scripts/reference.py -->\n\n# `rewardproof {verb}`\n\n`rewardproof {verb} {usage} [key=value …]`: {told}\n\n"
        f"{'; '.join(options)}. Settings are written `key=value`, those of a section with a dot.\n\n"
        f"| key | kind | default | |\n|---|---|---|---|\n{rows}"
    )


def settings(kind: type[Section], *, within: str = "") -> Iterator[Row]:
    """The settings of a section and of the sections in it, in the order of the code."""
    for name, field in kind.model_fields.items():
        key, inner = f"{within}{name}", _section(field.annotation)
        meaning = " ".join((field.description or "").split())
        if inner is None:
            yield Row(f"`{key}`", _kind(field), _default(field), meaning)
            continue
        yield Row(f"`{key}.…`", "section", "absent" if field.default is None else "", meaning)
        yield from settings(inner, within=f"{key}.")


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field is, or may be."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, Section)), None)


def _kind(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(one, name):g}" for one in field.metadata for name, sign in bounds.items() if hasattr(one, name)]
    return " ".join([_name(field.annotation), *found])


def _name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" if str(one) else "empty" for one in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(one) for one in inner if one is not type(None))
    if origin is typing.Annotated:
        return _name(inner[0])
    if origin in (tuple, list):
        return f"list of {_name(inner[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in ("", (), {}, None):
        return ""
    if isinstance(value, tuple | list):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
