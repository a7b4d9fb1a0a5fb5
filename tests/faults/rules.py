"""A rule and an assistant for tiny models, by name: the processes that are killed find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def verdict(conversation: Sequence[Mapping[str, str]], reference: str, answer: str) -> bool | None:
    """Right where the first word is of w0 … w69, wrong where of w70 … w79."""
    first = answer.split()[0] if answer.split() else ""
    number = int(first[1:]) if first[1:].isdigit() else 99
    return True if number < 70 else False if number < 80 else None


def broken(conversation: Sequence[Mapping[str, str]], reference: str, answer: str, attempt: int) -> str:
    return f"w75 {answer}" if attempt else ""
