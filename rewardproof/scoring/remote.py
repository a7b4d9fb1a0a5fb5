"""A scorer behind an address: groups go out as JSON, one list of scores a group comes back; failures are tried again and counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from rewardproof.data.endpoint import Endpoint
from rewardproof.data.group import Group, as_chat

ANSWERS = 512
"""Answers in a request at most, where its first group has no more: servers bound what one client may ask."""


class RemoteScorer:
    """Scores by `POST {"groups": [{"prompt": [message…], "answers": [[message…]…]}…]}`, answered by `{"rewards": [[number…]…]}`.

    A group of plain texts says `"raw": true` as well.
    """

    def __init__(
        self, address: str, *, timeout: float = 180.0, attempts: int = 5, wait: float = 1.0, batch: int = 64, token: str = ""
    ) -> None:
        """Name the server.

        Args:
            address: `http://…` or `https://…`, the path included.
            timeout: Seconds to wait for an answer.
            attempts: Requests for one batch, at most.
            wait: Seconds before the second attempt; each further one waits twice as long.
            batch: Groups in a request at most.
            token: Sent as bearer token where there is one.
        """
        self.endpoint = Endpoint(address, timeout=timeout, attempts=attempts, wait=wait)
        self.batch = batch
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def retries(self) -> int:
        """Requests repeated so far, because the server did not answer, or not with a score for every answer."""
        return self.endpoint.retries

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Score every answer of every group.

        Args:
            groups: Groups of any size.
            context: Unused: it cannot travel.

        Raises:
            EvaluationError: No attempt brought a finite score for every answer; the message has the last one's reason.
        """
        found: list[tuple[float, ...]] = []
        while rest := groups[len(found) :]:
            answers = itertools.accumulate(len(group.answers) for group in rest[: self.batch])
            found += self._batch(rest[: max(sum(total <= ANSWERS for total in answers), 1)])
        return found

    def _batch(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        return self.endpoint.ask(
            {"groups": [group_body(group) for group in groups]},
            lambda answer: checked_rewards(answer, groups),
            wanted=f"no scores for {len(groups)} groups",
            advice="Expected a finite score for every answer, because a curve with holes in it would mislead. See to the server, then run "
            "again.",
            headers=self.headers,
        )


def group_body(group: Group) -> dict[str, Any]:
    """A group as JSON has it."""
    body = {"id": group.id, "prompt": as_chat(group.prompt), "answers": [as_chat(answer) for answer in group.answers]}
    return body | {"raw": True} if group.raw else body


def checked_rewards(answer: Any, groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """The scores, as many as there are answers.

    Raises:
        ValueError: They are not.
    """
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        raise ValueError("no list of rewards")
    sizes, expected = [len(row) if isinstance(row, list) else -1 for row in rewards], [len(group.answers) for group in groups]
    if sizes != expected:
        raise ValueError(
            f"{sum(max(size, 0) for size in sizes)} scores in {len(sizes)} groups for {sum(expected)} answers in {len(expected)}"
        )
    scores = [tuple(map(_number, row)) for row in rewards]
    if not all(math.isfinite(value) for row in scores for value in row):
        raise ValueError("a score that is no finite number")
    return scores


def _number(value: Any) -> float:
    """A score, or NaN where it is none: `true` is no number, and an integer may be too large for one."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
