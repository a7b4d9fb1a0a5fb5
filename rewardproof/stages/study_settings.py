"""Nested settings of a study: laid over each other, compared, and searched for placeholders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
