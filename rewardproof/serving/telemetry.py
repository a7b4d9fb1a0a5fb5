"""What a server tells of itself: numbers for Prometheus, and one line of JSON a request. Neither has a text, a token or a header in it."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOGGER = "rewardproof.serving.requests"
_TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "rewardproof"}
        self.requests = Counter("requests", "Requests answered, by address and status.", ["path", "status"], **made)
        self.seconds = Histogram("request_seconds", "Seconds from a request's head to its answer.", ["path"], buckets=_SECONDS, **made)
        self.abandoned = Counter("abandoned", "Requests whose client left before they were scored.", **made)
        self.waiting = Gauge("waiting_texts", "Texts in line for the model.", **made)
        self.texts = Counter("texts", "Texts scored.", **made)
        self.tokens = Counter("tokens", "Tokens of the texts scored, beginnings that texts of a batch share counted once.", **made)
        self.together = Histogram("batch_requests", "Requests scored together.", buckets=_TOGETHER, **made)
        self.busy = Counter("scoring_seconds", "Seconds spent in the models.", **made)

    def batch(self, *, requests: int, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.together.observe(requests)
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.busy.inc(seconds)

    def page(self) -> bytes:
        """All numbers in Prometheus's text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: its time, level and event, the fields it was given, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return json.dumps({"time": round(time.time(), 3), "level": record.levelname.lower(), "event": record.getMessage(), **fields})


def log_to_stderr() -> None:
    """Write requests, and what the server and uvicorn warn of, to standard error as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("rewardproof.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


def tell(event: str, **fields: Any) -> None:
    """Log an event with its fields."""
    logging.getLogger(LOGGER).info(event, extra={"fields": fields})
