"""A scorer behind an address: groups go out as JSON, one list of scores a group comes back; failures are tried again and counted."""

from __future__ import annotations

import json
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from rewardproof.data.group import Group, as_chat
from rewardproof.errors import EvaluationError

log = logging.getLogger(__name__)


class RemoteScorer:
    """Scores by `POST {"groups": [{"prompt": [message…], "answers": [[message…]…]}…]}`, answered by `{"rewards": [[number…]…]}`.

    Attributes:
        retries: Requests repeated so far, because the server did not answer, or not with a score for every answer.
    """

    def __init__(self, address: str, *, timeout: float = 180.0, attempts: int = 5, wait: float = 1.0, batch: int = 64) -> None:
        """Name the server.

        Args:
            address: `http://…` or `https://…`, the path included.
            timeout: Seconds to wait for an answer.
            attempts: Requests for one batch, at most.
            wait: Seconds before the second attempt; each further one waits twice as long.
            batch: Groups in a request.
        """
        self.address = address
        self.timeout, self.attempts, self.wait, self.batch = timeout, attempts, wait, batch
        self.retries = 0

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Score every answer of every group.

        Args:
            groups: Groups of any size.
            context: Unused: it cannot travel.

        Raises:
            EvaluationError: No attempt brought a finite score for every answer; the message has the last one's reason.
        """
        found: list[tuple[float, ...]] = []
        for start in range(0, len(groups), self.batch):
            found += self._batch(groups[start : start + self.batch])
        return found

    def _batch(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        body = json.dumps({"groups": [_as_json(group) for group in groups]}).encode()
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                self.retries += 1
                log.warning("%s: %s; attempt %d of %d", self.address, reason, attempt + 1, self.attempts)
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                return _checked(self._answer(body), groups)
            except urllib.error.HTTPError as error:
                reason = f"HTTP status {error.code}"
                if error.code < 500 and error.code not in (408, 429):
                    break
            except (OSError, HTTPException, ValueError) as error:
                reason = str(error) or type(error).__name__
        raise EvaluationError(
            f"{self.address} gave no scores for {len(groups)} groups: {reason}. Expected a finite score for every answer, because a curve "
            "with holes in it would mislead. See to the server, then run again."
        )

    def _answer(self, body: bytes) -> Any:
        request = urllib.request.Request(self.address, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read())


def _as_json(group: Group) -> dict[str, Any]:
    return {"id": group.id, "prompt": as_chat(group.prompt), "answers": [as_chat(answer) for answer in group.answers]}


def _checked(answer: Any, groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """The scores, as many as there are answers.

    Raises:
        ValueError: They are not.
    """
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    sizes, expected = [len(row) if isinstance(row, list) else -1 for row in rewards or []], [len(group.answers) for group in groups]
    if sizes != expected:
        raise ValueError(
            f"{sum(max(size, 0) for size in sizes)} scores in {len(sizes)} groups for {sum(expected)} answers in {len(expected)}"
        )
    scores = [tuple(float(value) if isinstance(value, (int, float)) else math.nan for value in row) for row in rewards or []]
    if not all(math.isfinite(value) for row in scores for value in row):
        raise ValueError("a score that is no finite number")
    return scores
