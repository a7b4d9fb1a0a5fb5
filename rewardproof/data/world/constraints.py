"""The table of all constraint kinds, and checking a constraint by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardproof.data.world import case_and_punctuation, keywords, length, opening_and_closing, structure
from rewardproof.data.world.kind import FAMILIES, Kind
from rewardproof.errors import DataError

KINDS: dict[str, Kind] = {
    kind.name: kind for module in (length, keywords, case_and_punctuation, opening_and_closing, structure) for kind in module.KINDS
}
"""Every kind by name. To add one, append a `Kind` to the tuple at the end of its family's file."""

assert {kind.family for kind in KINDS.values()} == set(FAMILIES)


def satisfaction(answer: str, constraint: Mapping[str, Any]) -> float:
    """How far an answer satisfies one constraint, in [0, 1].

    Args:
        answer: Any text.
        constraint: `{"kind": name, "args": {...}}`, as in `Group.meta["constraints"]`; other keys are ignored.
    Raises:
        DataError: The kind is not in the table.
    """
    # A table with a column of structs, as datasets keeps them, gives every kind the arguments of all, without values.
    args = {key: value for key, value in (constraint["args"] or {}).items() if value is not None}
    return float(_kind(constraint).check(answer, **args))


def family_of(constraint: Mapping[str, Any]) -> str:
    """The family of one constraint; arguments and errors as of `satisfaction`."""
    return _kind(constraint).family


def _kind(constraint: Mapping[str, Any]) -> Kind:
    name = constraint["kind"]
    if name not in KINDS:
        raise DataError(f"Unknown constraint kind {name!r}; known: {', '.join(KINDS)}. The gold program cannot score it: correct the data.")
    return KINDS[name]


def compatible(names: Sequence[str]) -> bool:
    """Whether kinds may stand in one prompt: no two of them lay hold of the same slot."""
    taken: set[str] = set()
    for name in names:
        if taken & KINDS[name].slots:
            return False
        taken |= KINDS[name].slots
    return True
