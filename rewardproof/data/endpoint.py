"""An address that answers JSON with JSON, a chat endpoint above all: failures that may pass are tried again and counted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, TypeVar

from rewardproof.errors import EvaluationError

log = logging.getLogger(__name__)
Read = TypeVar("Read")
KEY = "REWARDPROOF_JUDGE_KEY"
"""Environment variable with what a chat endpoint wants as a bearer token, so that no run directory holds it."""


MOST_SECONDS = 60.0
"""Longest wait that a server may ask for."""


def seconds_asked_for(header: str | None) -> float:
    """What a server's `Retry-After` says in seconds, within reason; 0 where it says nothing or a date.

    Example:
        >>> [seconds_asked_for(header) for header in ("7", "9999", "Wed, 21 Oct 2026 07:28:00 GMT", None)]
        [7.0, 60.0, 0.0, 0.0]
    """
    return min(float(header), MOST_SECONDS) if header is not None and header.isdecimal() else 0.0


def _said(error: urllib.error.HTTPError) -> str:
    """The status, and what the server says about it."""
    with contextlib.suppress(OSError, HTTPException):
        if told := " ".join(error.read(500).decode(errors="replace").split()):
            return f"HTTP status {error.code}, {told}"
    return f"HTTP status {error.code}"


@dataclass(slots=True)
class Endpoint:
    """Where requests go, and how patiently.

    Attributes:
        address: `http://…` or `https://…`, the path included.
        timeout: Seconds to wait for an answer.
        attempts: Requests for one answer, at most.
        wait: Seconds before the second attempt; each further one waits twice as long.
        retries: Requests repeated so far.
    """

    address: str
    timeout: float = 180.0
    attempts: int = 5
    wait: float = 1.0
    retries: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, body: Any, read: Callable[[Any], Read], *, wanted: str, advice: str, headers: Mapping[str, str] | None = None) -> Read:
        """What `read` makes of the answer to a request; several threads may ask at once.

        Args:
            body: Of the request.
            read: Takes the answer's JSON; raises `ValueError` at one that is no answer, which is tried again as a failure is.
            wanted: What the address did not give, for the message.
            advice: What the message ends with: what was expected, why, and what to do.
            headers: Further headers.

        Raises:
            EvaluationError: No attempt brought an answer; the message has the last one's reason.
        """
        data, reason, asked = json.dumps(body).encode(), "", 0.0
        for attempt in range(self.attempts):
            if attempt:
                with self._counting:
                    self.retries += 1
                log.warning("%s: %s; attempt %d of %d", self.address, reason, attempt + 1, self.attempts)
                time.sleep(max(self.wait * 2 ** (attempt - 1), asked))
            try:
                request = urllib.request.Request(self.address, data=data, headers={"Content-Type": "application/json", **(headers or {})})
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return read(json.loads(response.read()))
            except urllib.error.HTTPError as error:
                reason, asked = _said(error), seconds_asked_for(error.headers.get("Retry-After"))
                if error.code < 500 and error.code not in (408, 429):
                    break
            except (OSError, HTTPException, ValueError) as error:
                reason = str(error) or type(error).__name__
        raise EvaluationError(f"{self.address} gave {wanted}: {reason}. {advice}")

    def chat(self, model: str, question: str, *, wanted: str, advice: str, **options: Any) -> str:
        """The reply to one question: `POST {"model", "messages", …}`, answered by `choices[0].message.content`.

        Args:
            model: The model's name there.
            question: The user's one message.
            wanted: As for `ask`.
            advice: As for `ask`.
            options: Further entries of the request, the temperature for instance.

        Raises:
            EvaluationError: As `ask`.
        """
        key = os.environ.get(KEY)
        return self.ask(
            {"model": model, "messages": [{"role": "user", "content": question}], **options},
            _content,
            wanted=wanted,
            advice=advice,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"no choices[0].message.content in {str(answer)[:80]!r}") from None
