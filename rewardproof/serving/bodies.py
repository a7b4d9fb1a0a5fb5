"""What the bodies of all addresses have in common."""

from __future__ import annotations

from pydantic import FailFast

MOST, MOST_IDS = 65_536, 1_048_576
"""Items of a list, and token ids of a text, beyond which a body is not read on; what a server takes is less by its limits."""


class FirstFault(FailFast):
    """A list is refused at its first fault: a body can hold millions of them, and to list them all takes minutes and gigabytes."""

    def __hash__(self) -> int:
        """Unions of types want one."""
        return hash(FirstFault)
